package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
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
	return l.view(func(t *tx) error { return t.attachments(fn) })
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

// Info is what there is to know of a ledger as a whole.
type Info struct {
	Path string `json:"path"`
	// ID is the UUID that was minted with the file.
	ID string `json:"id"`
	// Schema of the buckets and records.
	Schema int `json:"schema"`
	// Sequence counts the transactions that changed it.
	Sequence uint64 `json:"sequence"`
	// MachineID and BootID are of the machine that made it, and of the boot
	// in which it was last open for writing.
	MachineID string `json:"machineID,omitempty"`
	BootID    string `json:"bootID"`
	// Size of the file and FreeBytes inside of it, in bytes.
	Size      int64 `json:"size"`
	FreeBytes int64 `json:"freeBytes"`
	// Refused says why no address is given out, if so.
	Refused string `json:"refused,omitempty"`

	Pools       int `json:"pools"`
	Attachments int `json:"attachments"`
	// Held to Reserved count addresses by state.
	Held        int `json:"held"`
	Cooling     int `json:"cooling"`
	Quarantined int `json:"quarantined"`
	Reserved    int `json:"reserved"`
}

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
	return t.allRecords(func(r ipam.Record) error {
		switch r.State {
		case ipam.Held:
			info.Held++
		case ipam.Cooling:
			info.Cooling++
		case ipam.Quarantined:
			info.Quarantined++
		case ipam.Reserved:
			info.Reserved++
		}
		return nil
	})
}

// Dump is all that a ledger knows, the document that Export writes.
type Dump struct {
	// Version of this shape; 1.
	Version    int       `json:"version"`
	ExportedAt time.Time `json:"exportedAt"`

	Ledger      Info                    `json:"ledger"`
	Pools       []ipam.Pool             `json:"pools"`
	Attachments []ipam.AttachmentRecord `json:"attachments"`
	Addresses   []ipam.Record           `json:"addresses"`
}

// Dump returns all that the ledger knows at this moment.
func (l *Ledger) Dump() (Dump, error) {
	d := Dump{Version: 1, Pools: []ipam.Pool{}, Attachments: []ipam.AttachmentRecord{}, Addresses: []ipam.Record{}}
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
		err = t.attachments(func(r ipam.AttachmentRecord) error {
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

// WriteTo writes it as one JSON document.
func (d Dump) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	if err := e.Encode(d); err != nil {
		return 0, err
	}
	return b.WriteTo(w)
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

// Block is what the ledger has of a block of a cluster pool.
type Block struct {
	lease.Book
	// Keys of the sticky owners that hold addresses of it: lease.Goal.Tag.
	Keys map[netip.Addr]string
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
			out = append(out, b)
			return t.recordsOf(id, kept.CIDR, func(rec ipam.Record) {
				if p.Sticky != ipam.NotSticky && rec.State == ipam.Held && rec.Owner != "" {
					b.Keys[rec.Address.Addr()] = rec.Owner
				}
			})
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

// Spare is an address of a cluster pool that is the node's and not in use.
type Spare struct {
	Address netip.Addr
	// Owner is the sticky key that it rests for, "" if it does not or that is
	// over. Then it may go to nobody else if it is Strict.
	Owner  string
	Strict bool
	// Since and Until are of its rest.
	Since, Until time.Time
}

// Spares lists up to n addresses of a pool in the order in which they are to be
// given to other nodes: those that do not rest, then those whose rest ends
// first. pool is a UUID.
func (l *Ledger) Spares(pool string, n int) (out []Spare, err error) {
	id := ipam.Pool{UUID: pool}.ID()
	err = l.view(func(t *tx) error {
		p, _, err := t.pool(id)
		if err != nil || t.bucket(bucketFree) == nil {
			return err
		}
		for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			if err := t.freeFrom(p, a, func(a netip.Addr) bool {
				out = append(out, Spare{Address: a})
				return len(out) < n
			}); err != nil {
				return err
			}
		}
		var inner error
		err = t.resting(func(r resting) bool {
			var rec ipam.Record
			if rec, inner = t.record(r.addr); inner == nil && rec.PoolID() == id && t.status(rec) == lease.Free && len(out) < n {
				s := Spare{Address: r.addr, Since: rec.Since, Until: rec.Until}
				if !rec.Over(t.now) && p.Sticky != ipam.NotSticky {
					s.Owner, s.Strict = rec.Owner, rec.Strict
				}
				out = append(out, s)
			}
			return inner == nil && len(out) < n
		})
		return errors.Join(err, inner)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// freeFrom calls fn with the addresses from a on, of its family, that a cluster
// pool gives out and that nobody uses, until it returns false.
func (t *tx) freeFrom(p ipam.Pool, a netip.Addr, fn func(netip.Addr) bool) error {
	for a.IsValid() {
		r, ok, err := t.freeRuns(p.ID()).From(a)
		if err != nil || !ok {
			return corrupt(err)
		}
		if a.Less(r.First) {
			a = r.First
		}
		if _, usable := p.Find(a); usable && !fn(a) {
			return nil
		}
		a = a.Next()
	}
	return nil
}
