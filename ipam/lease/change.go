package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

var (
	// ErrMoved is returned for a change that the record does not allow: it has
	// moved on since the change was decided. Read it again.
	ErrMoved = errors.New("the record has moved on")
	// ErrNothing is returned for the lease of a block whose addresses all
	// belong to others.
	ErrNothing = errors.New("no address of the block comes with its lease")
)

func moved(b Block, format string, args ...any) error {
	return fmt.Errorf("block %s: %s: %w", b.CIDR, fmt.Sprintf(format, args...), ErrMoved)
}

// Lease makes n the owner of a block that has none. What was given away
// before stays with whom it was given to.
func (b Block) Lease(n Node) (Block, error) {
	if b.Owner != "" {
		return b, moved(b, "%s leases it", b.Owner)
	}
	next := b.clone()
	next.Owner = n
	if next = next.normal(); next.Owner != n {
		return b, fmt.Errorf("block %s: %w", b.CIDR, ErrNothing)
	}
	return next, nil
}

// Give takes addresses from n and gives each to the node of its entry, offers
// it to anybody (the zero Entry) or parks it for a key. Giving all that an
// owner has returns the block.
func (b Block) Give(n Node, to map[netip.Addr]Entry) (Block, error) {
	next := b.clone()
	for a, e := range to {
		if !b.Has(n, a) {
			return b, moved(b, "%s is not %s's to give", a, n)
		}
		next.Given[a] = e
	}
	return next.normal(), nil
}

// Claim takes addresses that nobody has: offered or parked ones. The value is
// the sticky key to keep each for, "" for none.
func (b Block) Claim(n Node, keys map[netip.Addr]string) (Block, error) {
	next := b.clone()
	for a, key := range keys {
		if e, ok := b.Given[a]; !ok || e.Node != "" {
			return b, moved(b, "%s is not on offer", a)
		}
		next.Given[a] = Entry{Node: n, Key: key}
	}
	return next.normal(), nil
}

// Tag notes for which sticky owners n uses addresses that it has; "" takes
// the note away. It changes nothing about whose they are.
func (b Block) Tag(n Node, keys map[netip.Addr]string) (Block, error) {
	next := b.clone()
	for a, key := range keys {
		if !b.Has(n, a) {
			return b, moved(b, "%s is not %s's to tag", a, n)
		}
		next.Given[a] = Entry{Node: n, Key: key}
	}
	return next.normal(), nil
}

// Strip takes the block and its addresses from nodes that were removed for
// good. What they used for a sticky owner is parked for it from now on.
// changed is false when the record names none of them.
func (b Block) Strip(removed func(Node) bool, now time.Time) (next Block, changed bool) {
	next = b.clone()
	for a, e := range b.Given {
		if e.Node == "" || !removed(e.Node) {
			continue
		}
		changed = true
		next.Given[a] = Entry{}
		if e.Key != "" {
			next.Given[a] = Entry{Key: e.Key, Since: now}
		}
	}
	if b.Owner != "" && removed(b.Owner) {
		next.Owner, changed = "", true
	}
	return next.normal(), changed
}

// Assert makes a record of a registry that went back in time agree with what
// n really has: that is given to n, and what the record says is n's but n does
// not have is offered. changed is false when the record agrees already.
func (b Block) Assert(n Node, has func(netip.Addr) bool) (next Block, changed bool) {
	next = b.clone()
	b.Addrs(func(a netip.Addr) bool {
		switch mine := b.Has(n, a); {
		case has(a) && !mine:
			next.Given[a], changed = Entry{Node: n}, true
		case !has(a) && mine:
			next.Given[a], changed = Entry{}, true
		}
		return true
	})
	return next.normal(), changed
}
