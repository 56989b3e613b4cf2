package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
	"github.com/underlay-cni/underlay/ipam/ledger/rest"
)

// choice is an address to be given out, with the range that it is in and the
// record that it has, if any.
type choice struct {
	addr   netip.Addr
	from   ipam.Range
	record ipam.Record
}

// chooser finds an address for each range set of one request.
type chooser struct {
	*tx
	req ipam.AllocateRequest
	// used are the addresses of the host, and those chosen so far.
	used map[netip.Addr]bool
	out  []choice // one for each range set
}

// choose finds the addresses for a request; it writes nothing but cursors.
func (t *tx) choose(req ipam.AllocateRequest) ([]choice, error) {
	c := &chooser{tx: t, req: req, used: map[netip.Addr]bool{}, out: make([]choice, len(req.Pool.Sets))}
	for _, a := range req.Avoid {
		c.used[plain(a)] = true
	}
	for i, a := range req.Addresses {
		if err := c.requested(i, plain(a)); err != nil {
			return nil, err
		}
	}
	for i := range c.out {
		if c.out[i].addr.IsValid() {
			continue
		}
		if err := c.anyOf(i); err != nil {
			return nil, err
		}
	}
	return c.out, nil
}

// plain is the form in which records have an address.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func (c *chooser) set(i int, a netip.Addr, from ipam.Range, rec ipam.Record) {
	c.used[a] = true
	c.out[i] = choice{addr: a, from: from, record: rec}
}

// requested chooses a, the n-th address that was asked for, for the range set
// that it belongs to.
func (c *chooser) requested(n int, a netip.Addr) error {
	for i, set := range c.req.Pool.Sets {
		from, ok := set.Find(a)
		if !ok || c.out[i].addr.IsValid() {
			continue
		}
		rec, err := c.record(a)
		if err != nil {
			return err
		}
		if err := c.leased(a); err != nil {
			return err
		}
		if err := c.mayHave(a, rec); err != nil {
			return err
		}
		c.set(i, a, from, rec)
		return nil
	}
	place := fmt.Sprintf("ips[%d]", n)
	if n < len(c.req.Places) {
		place = c.req.Places[n]
	}
	return &ipam.FieldError{Place: place, Msg: c.unusable(a)}
}

// mayHave says who keeps a requested address from being given out.
func (c *chooser) mayHave(a netip.Addr, rec ipam.Record) error {
	taken := &ipam.TakenError{Addr: a, State: rec.State}
	switch {
	case c.used[a]:
		taken.State, taken.Holder = ipam.Reserved, "an address of this host"
	case rec.State == "" || rec.Over(c.now):
		return nil
	case rec.State == ipam.Held:
		taken.Holder = rec.Attachment.String()
	case rec.State != ipam.Cooling:
		taken.Holder = rec.Reason
	case rec.Strict && rec.Owner != c.req.Owner:
		taken.Holder = fmt.Sprintf("kept for %q until %s", rec.Owner, rec.Until.Format("2006-01-02T15:04:05Z"))
	default:
		return nil
	}
	return taken
}

// unusable says why no range set gives out a.
func (c *chooser) unusable(a netip.Addr) string {
	for _, set := range c.req.Pool.Sets {
		if _, ok := set.Find(a); ok {
			return fmt.Sprintf("%s is a second address from %s; each range set gives one", a, set)
		}
	}
	return fmt.Sprintf("%s is %s", a, c.req.Pool.Refusal(a))
}

// anyOf chooses an address from range set i.
func (c *chooser) anyOf(i int) error {
	for _, from := range []func(int) (bool, error){c.parked, c.next, c.oldest} {
		if ok, err := from(i); ok || err != nil {
			return err
		}
	}
	set := c.req.Pool.Sets[i]
	counts, err := c.counts(c.req.Pool, set, c.used)
	if err != nil {
		return err
	}
	return &ipam.ExhaustedError{Pool: c.req.Pool.Name, Ranges: set.String(), Counts: counts, Cluster: c.req.Pool.UUID != ""}
}

// parked chooses what the owner had before: first what it had on this
// interface, then what it released last.
func (c *chooser) parked(i int) (ok bool, err error) {
	recs, err := c.tx.parked(c.req.Pool.ID(), c.req.Owner, c.req.Attachment)
	var best ipam.Record
	for _, rec := range recs {
		a := rec.Address.Addr()
		if _, usable := c.req.Pool.Sets[i].Find(a); !usable || c.used[a] {
			continue
		}
		mine, best1 := rec.Attachment.IfName == c.req.Attachment.IfName, best.Attachment.IfName == c.req.Attachment.IfName
		if best.State == "" || mine && !best1 || mine == best1 && rec.Since.After(best.Since) {
			best = rec
		}
	}
	if best.State == "" {
		return false, err
	}
	a := best.Address.Addr()
	from, _ := c.req.Pool.Sets[i].Find(a)
	c.set(i, a, from, best)
	return true, err
}

// next chooses the next address without a record, going round from the one
// that was given out last, so that a released one is not the next to be used.
func (c *chooser) next(i int) (ok bool, err error) {
	key := cursorKey(c.req.Pool, i)
	last, _ := parseAddr(c.get(bucketCursor, key))
	a, from, ok, err := c.after(i, last)
	if err != nil || !ok {
		return false, err
	}
	rec, err := c.record(a)
	if err != nil {
		return false, err
	}
	if rec.State != "" {
		return false, fmt.Errorf("%w: address %s has a record, and is in no run", ErrCorrupt, a)
	}
	c.set(i, a, from, rec)
	return true, c.put(bucketCursor, key, addrKey(a))
}

func cursorKey(p ipam.Pool, set int) []byte { return join(p.ID(), strconv.Itoa(set)) }

// after finds the address without a record that comes after another one.
func (c *chooser) after(i int, last netip.Addr) (a netip.Addr, from ipam.Range, ok bool, err error) {
	a, from, ok = c.req.Pool.Sets[i].Next(last, func(a netip.Addr) (netip.Addr, bool) {
		if c.used[a] {
			return a, true
		}
		end, yes, runErr := c.notFree(a)
		if runErr != nil {
			err = runErr
			return a, false // ends the search
		}
		return end, yes
	})
	return a, from, ok && err == nil, err
}

// Candidates lists the addresses that a pool, which is given by its ID, gives out
// next if nobody asks for one by name and nothing is released: n of each range
// set at most. Those that rest, which come when nothing else is free, are not
// among them: they were this node's a moment ago.
func (l *Ledger) Candidates(id string, n int) (out []netip.Addr, err error) {
	err = l.view(func(t *tx) error {
		p, known, err := t.pool(id)
		if err != nil || !known {
			return err
		}
		c := &chooser{tx: t, req: ipam.AllocateRequest{Pool: p}, used: map[netip.Addr]bool{}}
		for i := range p.Sets {
			last, _ := parseAddr(t.get(bucketCursor, cursorKey(p, i)))
			for range n {
				a, _, ok, err := c.after(i, last)
				if err != nil {
					return err
				}
				if !ok {
					break
				}
				c.used[a], last = true, a
				out = append(out, a)
			}
		}
		return nil
	})
	return out, err
}

// oldest chooses the address whose rest ends first, over or not, of those
// that anybody may have. It stops at the first one; the queue is read to its
// end only when the range set has none.
func (c *chooser) oldest(i int) (ok bool, err error) {
	var found netip.Addr
	var from ipam.Range
	var blockErr error
	err = c.resting(func(r rest.Entry) bool {
		if r.Kind != rest.Anybody && !r.Over(c.now) || c.used[r.Addr] {
			return true
		}
		var usable bool
		if from, usable = c.req.Pool.Sets[i].Find(r.Addr); usable {
			usable, blockErr = c.mine(c.req.Pool, r.Addr)
		}
		if usable {
			found = r.Addr
		}
		return !usable && blockErr == nil
	})
	if err = errors.Join(err, blockErr); err != nil || !found.IsValid() {
		return false, err
	}
	rec, err := c.record(found)
	if err != nil {
		return false, err
	}
	if !rest.Rests(rec) {
		return false, fmt.Errorf("%w: address %s rests, and its record says %q", ErrCorrupt, found, rec.State)
	}
	c.set(i, found, from, rec)
	return true, nil
}

// notFree returns the last address of the stretch from a on that is not free, if
// a is not: addresses with a record, or, of a cluster pool, in use or not here.
func (c *chooser) notFree(a netip.Addr) (last netip.Addr, yes bool, err error) {
	if c.req.Pool.UUID != "" {
		next, ok, err := c.freeRuns(c.req.Pool.ID()).From(a)
		switch {
		case err != nil:
			return last, false, corrupt(err)
		case !ok:
			return ultimate(a), true, nil
		case a.Less(next.First):
			return next.First.Prev(), true, nil
		}
	}
	return c.taken(a)
}

// ultimate is the last address that there is of the family of a.
func ultimate(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return netip.AddrFrom16([16]byte(bytes.Repeat([]byte{255}, 16)))
}

// leased says who has a requested address of a cluster pool, if not this node.
func (c *chooser) leased(a netip.Addr) error {
	if c.req.Pool.UUID == "" {
		return nil
	}
	b, found, err := c.blockOf(c.req.Pool.ID(), a)
	if err != nil || found && b.Has(a) {
		return err
	}
	if to, giving := b.Giving[a]; giving {
		return &ipam.TakenError{Addr: a, State: ipam.Giving, Holder: fmt.Sprintf("on its way to node %q", to.Node)}
	}
	return &ipam.TakenError{Addr: a, State: ipam.Elsewhere, Holder: "this node does not lease it"}
}

// counts what the addresses of a range set are used for. used are addresses
// in use without a record.
func (t *tx) counts(p ipam.Pool, set ipam.RangeSet, used map[netip.Addr]bool) (ipam.Counts, error) {
	n := ipam.Counts{Usable: set.Size()}
	for a := range used {
		if _, usable := set.Find(a); !usable {
			continue
		}
		rec, err := t.record(a)
		if err != nil {
			return n, err
		}
		mine, err := t.mine(p, a)
		if err != nil {
			return n, err
		}
		if rec.State == "" && mine {
			n.Other++
		}
	}
	strays := uint64(0) // in use, and not here
	for _, r := range set {
		err := t.records(r.First, func(rec ipam.Record) (bool, error) {
			a := rec.Address.Addr()
			if !r.Contains(a) {
				return false, nil
			}
			mine, err := t.mine(p, a)
			if r.Usable(a) && (mine || rec.PoolID() == p.ID()) {
				count(&n, p.ID(), rec)
				if !mine {
					strays++
				}
			}
			return true, err
		})
		if err != nil {
			return n, err
		}
	}
	if p.UUID == "" {
		return n, nil
	}
	here := uint64(0)
	err := t.blocks(p.ID(), func(b record.Block) error {
		b.Each(func(a netip.Addr) {
			if _, usable := set.Find(a); usable {
				here++
			}
		})
		for a := range b.Giving {
			if _, usable := set.Find(a); usable {
				n.Giving++
			}
		}
		return nil
	})
	n.Elsewhere = n.Usable - here - n.Giving - strays
	return n, err
}

func count(n *ipam.Counts, pool string, rec ipam.Record) {
	switch {
	case rec.PoolID() != pool:
		n.Other++
	case rec.State == ipam.Held:
		n.Held++
	case rec.State == ipam.Cooling:
		n.Cooling++
	case rec.State == ipam.Quarantined:
		n.Quarantined++
	case rec.State == ipam.Reserved, rec.State == ipam.Lent:
		n.Reserved++
	}
}

// claim makes what a rebuild could not tell the pool of one of the block's.
func (t *tx) claim(pool string, a netip.Addr) error {
	rec, err := t.record(a)
	if err != nil || rec.State != ipam.Held || rec.PoolUUID != "" {
		return err
	}
	_, local, err := t.pool(rec.PoolID())
	p, known, perr := t.pool(pool)
	if _, usable := p.Find(a); err != nil || perr != nil || local || !known || !usable {
		return errors.Join(err, perr)
	}
	next := rec
	next.Pool, next.PoolUUID = p.Name, p.UUID
	return t.setRecord(rec, next)
}
