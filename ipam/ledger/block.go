package ledger

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
	"github.com/underlay-cni/underlay/ipam/ledger/run"
	"github.com/underlay-cni/underlay/pkg/fault"
)

// What the ledger keeps of a cluster pool's blocks is written by the three
// changes of lease.Book alone; what is in use of them is in the records of the
// addresses, which plugins write. A lease.Book is both, at one moment.

func blockKey(pool string, a netip.Addr) []byte { return append(join(pool, ""), addrKey(a)...) }

// blockOf returns the block of a pool that an address lies in, if the ledger
// knows it. pool is an ID.
func (t *tx) blockOf(pool string, a netip.Addr) (b record.Block, found bool, err error) {
	bucket := t.bucket(bucketBlock)
	if bucket == nil {
		return b, false, nil // schema 1
	}
	key := blockKey(pool, a)
	c := bucket.Cursor()
	k, v := c.Seek(key)
	if k == nil {
		k, v = c.Last()
	} else if !bytes.Equal(k, key) {
		k, v = c.Prev()
	}
	if !bytes.HasPrefix(k, join(pool, "")) {
		return b, false, nil
	}
	if b, err = decodeBlock(k, v); err != nil || !b.CIDR.Contains(a) {
		return record.Block{}, false, err
	}
	return b, true, nil
}

func decodeBlock(k, v []byte) (record.Block, error) {
	b, err := record.DecodeBlock(v)
	if err == nil && !bytes.HasSuffix(k, append([]byte{0}, addrKey(b.CIDR.Addr())...)) {
		err = fmt.Errorf("it is that of %s", b.CIDR)
	}
	if err != nil {
		return record.Block{}, fmt.Errorf("%w: block %q: %w", ErrCorrupt, k, err)
	}
	return b, nil
}

// blocks calls fn with what is known of a pool's blocks, in order.
func (t *tx) blocks(pool string, fn func(record.Block) error) error {
	bucket := t.bucket(bucketBlock)
	if bucket == nil {
		return nil
	}
	c := bucket.Cursor()
	for k, v := c.Seek(join(pool, "")); bytes.HasPrefix(k, join(pool, "")); k, v = c.Next() {
		b, err := decodeBlock(k, v)
		if err != nil {
			return err
		}
		if err := fn(b); err != nil {
			return err
		}
	}
	return nil
}

// mine reports whether the node may give out an address of a pool. A local pool
// is the node's as a whole.
func (t *tx) mine(p ipam.Pool, a netip.Addr) (bool, error) {
	if p.UUID == "" {
		return true, nil
	}
	b, _, err := t.blockOf(p.ID(), a)
	return b.Has(a), err
}

// moveFree keeps bucketFree when the record of an address changes.
func (t *tx) moveFree(old, next ipam.Record) error {
	if old.PoolID() == next.PoolID() {
		return nil
	}
	if old.PoolUUID != "" {
		a := old.Address.Addr()
		if here, err := t.mine(ipam.Pool{UUID: old.PoolUUID}, a); err != nil {
			return err
		} else if here {
			if err := t.freeRuns(old.PoolID()).Add(a); err != nil {
				return corrupt(err)
			}
		}
	}
	if next.PoolUUID != "" {
		a := next.Address.Addr()
		if here, err := t.mine(ipam.Pool{UUID: next.PoolUUID}, a); err != nil {
			return err
		} else if here {
			return corrupt(t.freeRuns(next.PoolID()).Remove(a))
		}
	}
	return nil
}

// status is what a record of the pool says to lease.Book of an address.
func (t *tx) status(rec ipam.Record) lease.Status {
	if rec.State == "" || rec.State == ipam.Cooling || rec.Over(t.now) {
		return lease.Free
	}
	return lease.Held
}

// book makes a lease.Book of what is known of a block. What is in use without
// being the node's, as the registry has it, is held in the book too, so that
// nobody gets it, and so is what a local pool that overlaps has in use.
func (t *tx) book(pool string, cidr netip.Prefix) (lease.Book, record.Block, error) {
	b := lease.Book{Node: t.node(), CIDR: cidr, Marks: map[netip.Addr]lease.Mark{}}
	kept, found, err := t.blockOf(pool, cidr.Addr())
	switch {
	case err != nil:
		return b, kept, err
	case !found:
		kept.CIDR = cidr
	case kept.CIDR != cidr:
		return b, kept, fmt.Errorf("block %s: this ledger knows %s, and the size of blocks never changes", cidr, kept.CIDR)
	}
	b.Rev = kept.Rev
	kept.Each(func(a netip.Addr) { b.Marks[a] = lease.Mark{Status: lease.Free} })
	for a, to := range kept.Giving {
		b.Marks[a] = lease.Mark{Status: lease.Giving, To: to}
	}
	err = t.records(cidr.Addr(), func(rec ipam.Record) (bool, error) {
		a := rec.Address.Addr()
		if s := t.status(rec); s == lease.Held && cidr.Contains(a) && b.Marks[a].Status != lease.Giving {
			b.Marks[a] = lease.Mark{Status: s}
		}
		return cidr.Contains(a), nil
	})
	return b, kept, err
}

func (t *tx) node() lease.Node { return lease.Node(t.get(bucketMeta, keyID)) }

// recordsOf calls fn with the records of a pool's addresses in a block.
func (t *tx) recordsOf(pool string, cidr netip.Prefix, fn func(ipam.Record)) error {
	return t.records(cidr.Addr(), func(rec ipam.Record) (bool, error) {
		if !cidr.Contains(rec.Address.Addr()) {
			return false, nil
		}
		if rec.PoolID() == pool {
			fn(rec)
		}
		return true, nil
	})
}

// keepBook stores a book in the place of kept. mine tells whether what is held
// is the node's.
func (t *tx) keepBook(pool string, kept record.Block, b lease.Book, mine func(netip.Addr) bool) error {
	next := record.Block{CIDR: b.CIDR, Rev: b.Rev}
	for a, m := range b.Marks {
		switch {
		case m.Status == lease.Giving:
			if next.Giving == nil {
				next.Giving = map[netip.Addr]lease.Entry{}
			}
			m.To.Since = m.To.Since.UTC().Truncate(precision)
			next.Giving[a] = m.To
		case m.Status == lease.Free || mine(a):
			next.Set(a)
		}
	}
	value := record.EncodeBlock(next)
	key := blockKey(pool, b.CIDR.Addr())
	if bytes.Equal(value, t.get(bucketBlock, key)) {
		return nil
	}
	// What rests or is lent, and is not the node's any more, is so elsewhere.
	var rests []ipam.Record
	used := map[netip.Addr]bool{}
	err := t.recordsOf(pool, b.CIDR, func(rec ipam.Record) {
		if !next.Has(rec.Address.Addr()) && (t.status(rec) == lease.Free || rec.State == ipam.Lent) {
			rests = append(rests, rec)
		} else {
			used[rec.Address.Addr()] = true
		}
	})
	if err != nil {
		return err
	}
	for _, rec := range rests {
		if err := t.setRecord(rec, ipam.Record{}); err != nil {
			return err
		}
	}
	free := t.freeRuns(pool)
	lease.Block{CIDR: b.CIDR}.Addrs(func(a netip.Addr) bool {
		switch was, is := kept.Has(a), next.Has(a); {
		case used[a] || was == is:
		case is:
			err = free.Add(a)
		default:
			err = free.Remove(a)
		}
		return err == nil
	})
	if err != nil {
		return corrupt(err)
	}
	return t.put(bucketBlock, key, value)
}

// Learn takes a record of the registry into the ledger: lease.Book.Learn. pool
// is a UUID. An address that the registry keeps for a sticky owner is parked for
// it. Errors of package lease are returned as they are.
func (l *Ledger) Learn(pool string, s lease.Seen, open bool) (lost []netip.Addr, err error) {
	err = l.turn(pool, s.Block.CIDR, func(t *tx, id string, b lease.Book, kept record.Block) (err, refusal error) {
		next, gone, refusal := b.Learn(s, open)
		if refusal != nil {
			return nil, refusal
		}
		lost = gone
		if err := t.keepBook(id, kept, next, func(a netip.Addr) bool { return s.Block.Has(b.Node, a) }); err != nil {
			return err, nil
		}
		for a, m := range next.Marks {
			_, known := b.Marks[a]
			switch {
			case m.Status == lease.Held && s.Block.Has(b.Node, a):
				err = t.claim(id, a)
			case m.Status == lease.Free && !known:
				err = t.park(id, a, s.Block.At(a).Key)
			}
			if err != nil {
				return err, nil
			}
		}
		return nil, nil
	})
	return lost, err
}

// Intend turns free addresses into giving: lease.Book.Intend. From then on
// nobody on this node gets them, whatever becomes of the swap.
func (l *Ledger) Intend(pool string, s lease.Seen, to map[netip.Addr]lease.Entry) error {
	err := l.turn(pool, s.Block.CIDR, func(t *tx, id string, b lease.Book, kept record.Block) (err, refusal error) {
		next, refusal := b.Intend(s, to)
		if refusal != nil {
			return nil, refusal
		}
		return t.keepBook(id, kept, next, kept.Has), nil
	})
	if err == nil {
		fault.Point("ledger.intent.kept")
	}
	return err
}

// Adopt takes in a record of a registry that went back, after it was brought
// into line with the ledger: lease.Book.Adopt.
func (l *Ledger) Adopt(pool string, s lease.Seen) error {
	return l.turn(pool, s.Block.CIDR, func(t *tx, id string, b lease.Book, kept record.Block) (err, refusal error) {
		return t.keepBook(id, kept, b.Adopt(s), func(a netip.Addr) bool { return s.Block.Has(b.Node, a) }), nil
	})
}

// turn runs fn on the book of a block, in a transaction. What fn refuses is
// returned as it is, since the ledger is sound. A ledger that gives out nothing
// gives nothing away either: it does not know what is in use.
func (l *Ledger) turn(pool string, cidr netip.Prefix, fn func(t *tx, id string, b lease.Book, kept record.Block) (err, refusal error)) error {
	if err := lease.ValidCIDR(cidr); err != nil {
		return err
	}
	if err := l.Refused(); err != nil {
		return err
	}
	id := ipam.Pool{UUID: pool}.ID()
	var refusal error
	err := l.update(func(t *tx) (err error) {
		refusal = nil
		if t.bucket(bucketBlock) == nil {
			return errOldSchema
		}
		b, kept, err := t.book(id, cidr)
		if err != nil {
			return err
		}
		err, refusal = fn(t, id, b, kept)
		return err
	})
	if err != nil {
		return err
	}
	return refusal
}

// park has an address rest for a sticky owner that had it on another node.
func (t *tx) park(pool string, a netip.Addr, key string) error {
	p, _, err := t.pool(pool)
	from, usable := p.Find(a)
	if err != nil || key == "" || p.Sticky == ipam.NotSticky || !usable {
		return err
	}
	old, err := t.record(a)
	if err != nil || old.State != "" {
		return err
	}
	at := from.Address(a)
	return t.setRecord(ipam.Record{}, ipam.Record{
		Version: record.Version, Pool: p.Name, PoolUUID: p.UUID, Address: at.Prefix, Gateway: at.Gateway,
		State: ipam.Cooling, BootID: t.boot, Owner: key, Since: t.now, Until: t.after(p.Rest(key)), Strict: p.Sticky == ipam.StickyStrict,
	})
}

// Prune forgets blocks of which nothing is left, once the registry was listed at
// a revision: no older record of them can come any more.
func (l *Ledger) Prune(pool string, listed lease.Rev) error {
	id := ipam.Pool{UUID: pool}.ID()
	return l.update(func(t *tx) error {
		var empty [][]byte
		err := t.blocks(id, func(b record.Block) error {
			if len(b.Mine)+len(b.Giving) == 0 && b.Rev <= listed {
				empty = append(empty, blockKey(id, b.CIDR.Addr()))
			}
			return nil
		})
		for _, key := range empty {
			if err == nil {
				err = t.del(bucketBlock, key)
			}
		}
		return err
	})
}

// blocksAndFree checks the blocks, and that bucketFree is what is free of them.
func (c *checker) blocksAndFree() {
	want := map[string][]byte{}
	var pool []byte
	var before netip.Prefix
	var last netip.Addr // of the run that was found last
	c.each(bucketBlock, func(k, v []byte) error {
		b, err := decodeBlock(k, v)
		if err != nil {
			return err
		}
		prefix := k[:len(k)-len(addrKey(b.CIDR.Addr()))]
		id := string(bytes.TrimSuffix(prefix, []byte{0}))
		if !bytes.Equal(pool, prefix) {
			pool, before, last = bytes.Clone(prefix), netip.Prefix{}, netip.Addr{}
		}
		if before.IsValid() && before.Overlaps(b.CIDR) {
			c.say("blocks %s and %s overlap", before, b.CIDR)
		}
		before = b.CIDR
		used := map[netip.Addr]bool{}
		err = c.recordsOf(id, b.CIDR, func(rec ipam.Record) {
			a := rec.Address.Addr()
			used[a] = true
			if _, giving := b.Giving[a]; giving || rec.State == ipam.Cooling && !b.Has(a) {
				c.say("address %s is %s, and not this node's", a, rec.State)
			}
		})
		b.Each(func(a netip.Addr) {
			if used[a] {
				return
			}
			first := addrKey(a)
			if key := blockKey(id, last); last.IsValid() && last.Next() == a {
				first = want[string(key)]
				delete(want, string(key))
			}
			want[string(blockKey(id, a))], last = first, a
		})
		return err
	})
	c.each(bucketFree, func(k, v []byte) error {
		if first, ok := want[string(k)]; !ok || !bytes.Equal(first, v) {
			return fmt.Errorf("free addresses %x-%x are not those of the blocks", v, k)
		}
		delete(want, string(k))
		return nil
	})
	missing := make([]string, 0, len(want))
	for k, first := range want {
		a, _ := run.ParseKey(first)
		missing = append(missing, fmt.Sprintf("free addresses from %s to %x are missing", a, k))
	}
	slices.Sort(missing)
	for _, m := range missing {
		c.say("%s", m)
	}
}
