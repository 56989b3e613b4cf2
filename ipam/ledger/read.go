package ledger

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"time"

	"go.etcd.io/bbolt"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
	"github.com/underlay-cni/underlay/ipam/ledger/export"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
)

// Attachment returns the record of an attachment and those of its addresses,
// in the order of the range sets; found is false when it has none.
func (l *Ledger) Attachment(a ipam.Attachment) (att ipam.AttachmentRecord, recs []ipam.Record, found bool, err error) {
	if err := checkAttachment(a); err != nil {
		return att, nil, false, err
	}
	err = l.view(func(t *tx) (err error) {
		if att, found, err = t.attachment(a); err != nil {
			return err
		}
		for _, addr := range att.Addresses {
			rec, err := t.heldBy(a, addr)
			if err != nil {
				return err
			}
			recs = append(recs, rec)
		}
		return nil
	})
	return att, recs, found, err
}

// Attachments calls fn with the records of all attachments, in the order of
// network, container and interface, until it returns an error. fn must not
// call the ledger.
func (l *Ledger) Attachments(fn func(ipam.AttachmentRecord) error) error {
	return l.view(func(t *tx) error { return t.attachments(nil, fn) })
}

// Record returns the record of an address; found is false if it is free.
func (l *Ledger) Record(a netip.Addr) (rec ipam.Record, found bool, err error) {
	err = l.view(func(t *tx) error {
		rec, err = t.record(plain(a))
		return err
	})
	return rec, rec.State != "", err
}

// Records calls fn with the records of all addresses that are not free, IPv4
// first and each family in order, until it returns an error. fn must not call
// the ledger.
func (l *Ledger) Records(fn func(ipam.Record) error) error {
	return l.view(func(t *tx) error { return t.allRecords(fn) })
}

func (t *tx) allRecords(fn func(ipam.Record) error) error {
	return t.records(netip.IPv4Unspecified(), func(r ipam.Record) (bool, error) { return true, fn(r) })
}

// History calls fn with all that is known of who held an address, the first one
// first: the holds that have ended, then the one that lasts. fn must not call
// the ledger.
func (l *Ledger) History(a netip.Addr, fn func(ipam.Hold) error) error {
	a = plain(a)
	return l.view(func(t *tx) error {
		if t.bucket(bucketHistory) != nil {
			if err := corrupt(t.history().Of(a, fn)); err != nil {
				return err
			}
		}
		rec, err := t.record(a)
		if err != nil || rec.State != ipam.Held {
			return err
		}
		return fn(rec.Hold(time.Time{}))
	})
}

// Users returns the attachments that use the VLAN sub-interface of u, and
// those that use the host-side sibling on its parent and VLAN: so many of each
// at most, or all for 0.
func (l *Ledger) Users(u ipam.Uses, most int) (vlan, hostAccess []ipam.AttachmentRecord, err error) {
	err = l.view(func(t *tx) error {
		return t.users(u, func(key []byte, usesVLAN, usesHostAccess bool) error {
			usesVLAN = usesVLAN && (most == 0 || len(vlan) < most)
			usesHostAccess = usesHostAccess && (most == 0 || len(hostAccess) < most)
			if !usesVLAN && !usesHostAccess {
				return nil
			}
			att, err := decodeAttachment(key, t.get(bucketAttachment, key))
			if usesVLAN {
				vlan = append(vlan, att)
			}
			if usesHostAccess {
				hostAccess = append(hostAccess, att)
			}
			return err
		})
	})
	return vlan, hostAccess, err
}

// SegmentUsers returns the attachments that the segment of a VNI goes with, so
// many at most, or all for 0.
func (l *Ledger) SegmentUsers(vni, most int) (out []ipam.AttachmentRecord, err error) {
	out, _, err = l.Users(segmentUses(vni), most)
	return out, err
}

// Pools returns the local pools as they were last used, and the cluster pools as
// the registry has them, by ID.
func (l *Ledger) Pools() (pools []ipam.Pool, err error) {
	err = l.view(func(t *tx) (err error) {
		pools, err = t.allPools()
		return err
	})
	return pools, err
}

func (t *tx) allPools() (pools []ipam.Pool, err error) {
	err = t.bucket(bucketPool).ForEach(func(id, _ []byte) error {
		p, _, err := t.pool(string(id))
		pools = append(pools, p)
		return err
	})
	return pools, err
}

// poolOf returns the pool of a name that the node gives an address out of.
func (t *tx) poolOf(name string, a netip.Addr) (p ipam.Pool, from ipam.Range, err error) {
	pools, err := t.allPools()
	if err != nil {
		return p, from, err
	}
	refusal := &ipam.FieldError{Place: "pool", Msg: fmt.Sprintf("this node knows no pool %q", name)}
	for _, p := range pools {
		if p.Name != name {
			continue
		}
		from, usable := p.Find(a)
		if !usable {
			refusal = &ipam.FieldError{Place: "address", Msg: fmt.Sprintf("%s is %s", a, p.Refusal(a))}
			continue
		}
		here, err := t.mine(p, a)
		if err != nil || here {
			return p, from, err
		}
		b, leased, err := t.blockOf(p.ID(), a)
		if err != nil {
			return p, from, err
		}
		where := "this node has no lease of it"
		if to, giving := b.Giving[a]; giving {
			where = fmt.Sprintf("it is on its way to node %s", to.Node)
		} else if leased {
			where = fmt.Sprintf("of block %s another node has it", b.CIDR)
		}
		refusal = &ipam.FieldError{Place: "address", Msg: fmt.Sprintf("%s of cluster pool %q is not this node's to reserve: %s", a, name, where)}
	}
	return p, from, refusal
}

// Counts counts the addresses of each range set of p. It reads all records
// of its ranges.
func (l *Ledger) Counts(p ipam.Pool) (out []ipam.Counts, err error) {
	err = l.view(func(t *tx) error {
		for _, set := range p.Sets {
			n, err := t.counts(p, set, nil)
			if err != nil {
				return err
			}
			out = append(out, n)
		}
		return nil
	})
	return out, err
}

// Info is what there is to know of a ledger as a whole, Dump all of it, and Found
// what Rebuild and Import make records of.
type (
	Info  = export.Info
	Dump  = export.Dump
	Found = export.Found
)

// Info reads all records.
func (l *Ledger) Info() (Info, error) {
	info := l.fileInfo()
	err := l.view(func(t *tx) error { return t.info(&info) })
	return info, err
}

// fileInfo is the part of Info that is not in the file. It must not be asked
// for within a transaction: a writer may be waiting for that to end.
func (l *Ledger) fileInfo() Info {
	info := Info{Path: l.o.dbPath()}
	info.Size, info.FreeBytes = l.file.Size()
	if err := l.Refused(); err != nil {
		info.Refused = err.Error()
	}
	return info
}

func (t *tx) info(info *Info) (err error) {
	if info.ID, info.Sequence, err = t.identity(); err != nil {
		return err
	}
	if info.Schema, err = t.schema(); err != nil {
		return err
	}
	info.MachineID = string(t.get(bucketMeta, keyMachine))
	info.BootID = string(t.get(bucketMeta, keyBoot))
	info.Pools = t.bucket(bucketPool).Stats().KeyN
	info.Attachments = t.bucket(bucketAttachment).Stats().KeyN
	if t.bucket(bucketHistory) != nil {
		info.History, _ = t.history().Count() // Check says what is wrong with it
	}
	return t.allRecords(func(r ipam.Record) error {
		switch r.State {
		case ipam.Held:
			info.Held++
		case ipam.Cooling:
			info.Cooling++
		case ipam.Quarantined:
			info.Quarantined++
		case ipam.Reserved, ipam.Lent:
			info.Reserved++
		}
		return nil
	})
}

// Dump returns all that the ledger knows at this moment.
func (l *Ledger) Dump() (Dump, error) {
	d := Dump{Version: 1, Pools: []ipam.Pool{}, Attachments: []ipam.AttachmentRecord{}, Addresses: []ipam.Record{}, Blocks: []export.Block{}}
	d.Ledger = l.fileInfo()
	err := l.view(func(t *tx) error {
		d.ExportedAt = t.now
		if err := t.info(&d.Ledger); err != nil {
			return err
		}
		pools, err := t.allPools()
		if err != nil {
			return err
		}
		d.Pools = append(d.Pools, pools...)
		err = t.allBlocks(func(pool string, b record.Block) { d.Blocks = append(d.Blocks, export.NewBlock(pool, b)) })
		if err != nil {
			return err
		}
		err = t.attachments(nil, func(r ipam.AttachmentRecord) error {
			d.Attachments = append(d.Attachments, r)
			return nil
		})
		if err != nil {
			return err
		}
		return t.allRecords(func(r ipam.Record) error {
			d.Addresses = append(d.Addresses, r)
			return nil
		})
	})
	return d, err
}

// Backup writes a copy of the file as it is at this moment, and is to be given
// what takes it at once: allocations may wait for it.
func (l *Ledger) Backup(w io.Writer) error {
	wrote, err := l.file.Copy(w)
	if wrote != nil {
		return wrote
	}
	return l.o.explain(err)
}

// Export writes all that the ledger knows at this moment as one JSON document,
// a Dump.
func (l *Ledger) Export(w io.Writer) error {
	d, err := l.Dump()
	if err == nil {
		_, err = d.WriteTo(w)
	}
	return err
}

// allBlocks calls fn with what is known of the blocks of all pools, which are
// UUIDs.
func (t *tx) allBlocks(fn func(pool string, b record.Block)) error {
	if t.bucket(bucketBlock) == nil {
		return nil
	}
	return t.bucket(bucketBlock).ForEach(func(k, v []byte) error {
		b, err := decodeBlock(k, v)
		if err == nil {
			id := k[:len(k)-len(addrKey(b.CIDR.Addr()))-1]
			fn(string(bytes.TrimPrefix(id, []byte{1})), b) // see ipam.Pool.ID
		}
		return err
	})
}

// Block is what the ledger has of a block of a cluster pool.
type Block struct {
	lease.Book
	// Keys of the sticky owners that hold addresses of it: lease.Goal.Tag.
	Keys map[netip.Addr]string
	// Lent is to whom it is; "" for a block in use here.
	Lent string
}

// Blocks returns those that the ledger knows of a pool, which is a UUID, in
// order.
func (l *Ledger) Blocks(pool string) (out []Block, err error) {
	id := ipam.Pool{UUID: pool}.ID()
	err = l.view(func(t *tx) error {
		p, _, err := t.pool(id)
		if err != nil {
			return err
		}
		return t.blocks(id, func(kept record.Block) error {
			b := Block{Keys: map[netip.Addr]string{}}
			if b.Book, _, err = t.book(id, kept.CIDR); err != nil {
				return err
			}
			err := t.recordsOf(id, kept.CIDR, func(rec ipam.Record) {
				if p.Sticky != ipam.NotSticky && rec.State == ipam.Held && rec.Owner != "" {
					b.Keys[rec.Address.Addr()] = rec.Owner
				} else if rec.State == ipam.Lent {
					b.Lent = rec.Reason
				}
			})
			out = append(out, b)
			return err
		})
	})
	return out, err
}

// Book returns the lease.Book of one block, known or not.
func (l *Ledger) Book(pool string, cidr netip.Prefix) (b lease.Book, err error) {
	err = l.view(func(t *tx) (err error) {
		b, _, err = t.book(ipam.Pool{UUID: pool}.ID(), cidr)
		return err
	})
	return b, err
}

// remains is what could be read of a ledger that is made anew.
type remains struct {
	held map[netip.Addr]ipam.Record
	// past has all holds; of those that lasted, until now.
	past []ipam.Hold
}

// salvage reads what a file that is to be replaced can tell, whatever state it
// is in. The ledger of another machine says nothing about this one's containers.
func (o *Options) salvage() remains {
	r := remains{held: map[netip.Addr]ipam.Record{}}
	file, err := boltfile.Open(o.dbPath(), true, true)
	if err != nil {
		return r
	}
	defer file.Close()
	// After an error there is as much as was read before it.
	_ = file.View(func(b *bbolt.Tx) error {
		t := newTx(b, o)
		if _, _, err := t.identity(); err != nil {
			return err
		}
		if err := o.foreign(string(t.get(bucketMeta, keyMachine))); err != nil {
			return err
		}
		if t.bucket(bucketHistory) != nil {
			_ = t.history().Of(netip.Addr{}, func(h ipam.Hold) error {
				r.past = append(r.past, h)
				return nil
			})
		}
		return t.allRecords(func(rec ipam.Record) error {
			if rec.State == ipam.Held {
				r.held[rec.Address.Addr()] = rec
				r.past = append(r.past, rec.Hold(t.now))
			}
			return nil
		})
	})
	return r
}
