package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger/history"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
	"github.com/underlay-cni/underlay/ipam/ledger/rest"
	"github.com/underlay-cni/underlay/ipam/ledger/run"
)

// Runs of addresses, each a set that is kept as its longest unbroken runs: see
// package run. Those of bucketRun are all that have a record; those of
// bucketFree, one set for each cluster pool, are the node's that have none, less
// what is on its way out.

func (t *tx) takenRuns() run.Set { return run.Set{Bucket: t.runBucket(bucketRun)} }

func (t *tx) freeRuns(pool string) run.Set {
	return run.Set{Bucket: t.runBucket(bucketFree), Prefix: join(pool, "")}
}

// runBucket is a bucket that remembers what is changed in it.
type runBucket struct {
	*tx
	name []byte
}

func (t *tx) runBucket(name []byte) runBucket { return runBucket{t, name} }

func (b runBucket) Seek(key []byte) (k, v []byte) { return b.bucket(b.name).Cursor().Seek(key) }
func (b runBucket) Get(key []byte) []byte         { return b.get(b.name, key) }
func (b runBucket) Put(key, value []byte) error   { return b.put(b.name, key, value) }
func (b runBucket) Delete(key []byte) error       { return b.del(b.name, key) }

// history is the log of bucketHistory, which there has to be.
func (t *tx) history() history.Log { return history.Log{Bucket: logBucket{t.runBucket(bucketHistory)}} }

// logBucket is a bucket that grows at its end: pages that are left behind there
// are full.
type logBucket struct{ runBucket }

func (b logBucket) Last() (k, v []byte) { return b.bucket(b.name).Cursor().Last() }

func (b logBucket) Put(key, value []byte) error {
	b.bucket(b.name).FillPercent = 0.95
	return b.runBucket.Put(key, value)
}

// taken returns the last address of the run of addresses with a record that a
// lies in, if any.
func (t *tx) taken(a netip.Addr) (last netip.Addr, yes bool, err error) {
	r, yes, err := t.takenRuns().At(a)
	return r.Last, yes, corrupt(err)
}

func (t *tx) take(a netip.Addr) error   { return corrupt(t.takenRuns().Add(a)) }
func (t *tx) loosen(a netip.Addr) error { return corrupt(t.takenRuns().Remove(a)) }

// corrupt says of an index that does not fit what is done to it, and of entries
// that are none, that the ledger is damaged.
func corrupt(err error) error {
	if errors.Is(err, run.ErrBroken) || errors.Is(err, history.ErrBroken) || errors.Is(err, rest.ErrBroken) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// Rest queue: see package rest. Parked: the cooling ones by the owner who may
// have them back: pool, owner, address -> 1.

func decodeRest(k, v []byte) (rest.Entry, error) {
	r, err := rest.Decode(k, v)
	return r, corrupt(err)
}

// parkedPrefix is what the keys of an owner's parked addresses begin with.
// Without an owner's key the attachment counts as the owner, so that a
// container that is stopped and started again keeps its address.
func parkedPrefix(pool, owner string, a ipam.Attachment) []byte {
	if owner == "" {
		owner = "\x01" + a.ContainerID + "\x01" + a.IfName
	}
	return join(pool, owner, "")
}

func parkedKey(r ipam.Record) []byte {
	return append(parkedPrefix(r.PoolID(), r.Owner, r.Attachment), addrKey(r.Address.Addr())...)
}

func (t *tx) rest(r ipam.Record) error {
	key, value := rest.Of(r)
	if err := t.put(bucketRest, key, value); err != nil || r.State != ipam.Cooling {
		return err
	}
	return t.put(bucketParked, parkedKey(r), []byte{1})
}

func (t *tx) unrest(r ipam.Record) error {
	key, _ := rest.Of(r)
	if err := t.del(bucketRest, key); err != nil || r.State != ipam.Cooling {
		return err
	}
	return t.del(bucketParked, parkedKey(r))
}

// resting calls fn with the entries of the rest queue, first to end first,
// until it returns false.
func (t *tx) resting(fn func(rest.Entry) (more bool)) error {
	c := t.bucket(bucketRest).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		r, err := decodeRest(k, v)
		if err != nil || !fn(r) {
			return err
		}
	}
	return nil
}

// expire frees a few of the addresses whose rest is over. Since it frees more
// than one transaction can put to rest on average, the queue never grows for
// want of it. It looks at both ends of the queue, for a clock that was set
// back leaves at its far end what began in the future.
func (t *tx) expire() error {
	const few = 4
	c := t.bucket(bucketRest).Cursor()
	for _, end := range []func() (k, v []byte){c.First, c.Last} {
		for range few {
			k, v := end()
			if k == nil {
				return nil
			}
			r, err := decodeRest(k, v)
			if err != nil {
				return err
			}
			if !r.Over(t.now) {
				break
			}
			rec, err := t.record(r.Addr)
			if err != nil {
				return err
			}
			if key, _ := rest.Of(rec); !bytes.Equal(key, k) {
				return fmt.Errorf("%w: address %s rests, and its record says %q", ErrCorrupt, r.Addr, rec.State)
			}
			if err := t.setRecord(rec, ipam.Record{}); err != nil {
				return err
			}
		}
	}
	return nil
}

// parked returns the cooling addresses that an owner may have back in a pool.
func (t *tx) parked(pool, owner string, a ipam.Attachment) (recs []ipam.Record, err error) {
	prefix := parkedPrefix(pool, owner, a)
	c := t.bucket(bucketParked).Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		addr, ok := parseAddr(k[len(prefix):])
		if !ok {
			return nil, fmt.Errorf("%w: parked address %q", ErrCorrupt, k)
		}
		rec, err := t.record(addr)
		if err != nil {
			return nil, err
		}
		if rec.State != ipam.Cooling || !bytes.Equal(parkedKey(rec), k) {
			return nil, fmt.Errorf("%w: address %s is parked, and its record says %q", ErrCorrupt, addr, rec.State)
		}
		recs = append(recs, rec)
	}
	return recs, nil
}

// Users: parent, VLAN, attachment -> what the attachment shares there; and,
// before these, parent, VLAN, "", port, attachment -> nothing. A segment is a VLAN
// of no parent: no host has two of one VNI, whatever they are on.

const usesVLAN, usesHostAccess = 1, 2

func userPrefix(u ipam.Uses) []byte { return join(u.Parent, strconv.Itoa(u.VLAN), "") }
func segmentUses(vni int) ipam.Uses { return ipam.Uses{VLAN: vni} }

// user is an entry of the index.
type user struct{ key, value []byte }

// usersOf are the entries of an attachment.
func usersOf(a ipam.AttachmentRecord) (out []user) {
	u := a.Uses
	add := func(prefix, value []byte) {
		out = append(out, user{append(prefix, attachmentKey(a.Attachment)...), value})
	}
	switch {
	case u.VLAN != 0 && u.HostAccess:
		add(userPrefix(u), []byte{usesVLAN | usesHostAccess})
	case u.VLAN != 0:
		add(userPrefix(u), []byte{usesVLAN})
	case u.HostAccess:
		add(userPrefix(u), []byte{usesHostAccess})
	}
	if u.Port != "" {
		add(join(string(portPrefix(u))+u.Port, ""), []byte{})
	}
	if u.Segment.Port != 0 {
		add(userPrefix(segmentUses(u.Segment.VNI)), []byte{usesVLAN})
	}
	return out
}

// users calls fn with the key of each attachment that shares something on the
// parent and VLAN of u.
func (t *tx) users(u ipam.Uses, fn func(attachment []byte, vlan, hostAccess bool) error) error {
	prefix := userPrefix(u)
	c := t.bucket(bucketUser).Cursor()
	// No attachment begins with a zero byte, so this is behind all ports.
	for k, v := c.Seek(after(prefix)); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if len(v) != 1 {
			return fmt.Errorf("%w: user %q", ErrCorrupt, k)
		}
		if err := fn(k[len(prefix):], v[0]&usesVLAN != 0, v[0]&usesHostAccess != 0); err != nil {
			return err
		}
	}
	return nil
}

func portPrefix(u ipam.Uses) []byte { return append(userPrefix(u), 0) }

// after is past all keys that go on from prefix with a zero byte.
func after(prefix []byte) []byte { return append(slices.Clip(prefix), 1) }

// company returns some of the others that have a port on the parent and VLAN of
// req: with the same one, and with another. Many have the same, as a rule, so
// it skips from port to port.
func (t *tx) company(req ipam.AllocateRequest) (peers, rivals []ipam.AttachmentRecord, err error) {
	const some = 4 // of each port: more of them say no more
	prefix, own := portPrefix(req.Uses), attachmentKey(req.Attachment)
	c := t.bucket(bucketUser).Cursor()
	k, _ := c.Seek(prefix)
	for last, n := "", 0; bytes.HasPrefix(k, prefix); {
		port, key, ok := bytes.Cut(k[len(prefix):], []byte{0})
		if !ok {
			return nil, nil, fmt.Errorf("%w: user %q", ErrCorrupt, k)
		}
		if string(port) != last {
			last, n = string(port), 0
		}
		if n == some {
			k, _ = c.Seek(after(k[:len(prefix)+len(port)]))
			continue
		}
		if !bytes.Equal(key, own) {
			att, err := decodeAttachment(key, t.get(bucketAttachment, key))
			if err != nil {
				return nil, nil, err
			}
			if n++; last == req.Uses.Port {
				peers = append(peers, att)
			} else {
				rivals = append(rivals, att)
			}
		}
		k, _ = c.Next()
	}
	return peers, rivals, nil
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
		err = t.resting(func(r rest.Entry) bool {
			var rec ipam.Record
			if rec, inner = t.record(r.Addr); inner == nil && rec.PoolID() == id && t.status(rec) == lease.Free && len(out) < n {
				s := Spare{Address: r.Addr, Since: rec.Since, Until: rec.Until}
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
		// An overlapping local pool may use it.
		last, used, err := t.taken(a)
		if err != nil {
			return err
		}
		if used {
			a = last.Next()
			continue
		}
		if _, usable := p.Find(a); usable && !fn(a) {
			return nil
		}
		a = a.Next()
	}
	return nil
}

// Lend takes a block of a cluster pool, which is a UUID, out of use, for somebody
// else on this node to give out its addresses: until Reclaim none of them is given
// out here, and the block does not go back. All of it has to be the node's, and
// unused, or the error is lease.ErrInUse. One that is lent again, to a ledger that
// does not know of it, may be in use; what holds an address of it keeps that.
func (l *Ledger) Lend(pool string, cidr netip.Prefix, to string, again bool) error {
	return l.turn(pool, cidr, func(t *tx, id string, b lease.Book, kept record.Block) (err, refusal error) {
		p, _, err := t.pool(id)
		olds := map[netip.Addr]ipam.Record{}
		lease.Block{CIDR: cidr}.Addrs(func(a netip.Addr) bool {
			mark, known := b.Marks[a]
			old, rerr := t.record(a)
			switch err = errors.Join(err, rerr); {
			case p.UUID == "", !known, !kept.Has(a), mark.Status == lease.Giving, mark.Status == lease.Held && old.State != ipam.Lent && !again:
				refusal = fmt.Errorf("block %s: %s: %w", cidr, a, lease.ErrInUse)
			case mark.Status == lease.Free:
				olds[a] = old
			}
			return err == nil && refusal == nil
		})
		if refusal = errors.Join(refusal, t.short); err != nil || refusal != nil {
			return err, refusal
		}
		for a, old := range olds {
			err = errors.Join(err, t.setRecord(old, ipam.Record{Version: record.Version, Pool: p.Name, PoolUUID: p.UUID,
				Address: netip.PrefixFrom(a, cidr.Bits()), State: ipam.Lent, BootID: t.boot, Since: t.now, Reason: to}))
		}
		return err, nil
	})
}

// Reclaim brings a block back into use that was lent.
func (l *Ledger) Reclaim(pool string, cidr netip.Prefix) error {
	return l.turn(pool, cidr, func(t *tx, id string, _ lease.Book, _ record.Block) (err, refusal error) {
		var lent []ipam.Record
		err = t.recordsOf(id, cidr, func(rec ipam.Record) {
			if rec.State == ipam.Lent {
				lent = append(lent, rec)
			}
		})
		for _, rec := range lent {
			err = errors.Join(err, t.setRecord(rec, ipam.Record{}))
		}
		return err, nil
	})
}
