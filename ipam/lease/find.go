package lease

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam"
)

// Search is what a node that needs addresses of a pool knows.
type Search struct {
	Node Node
	// Grid and Usable are of the range set in need: its blocks, and whether an
	// address may be given out at all.
	Grid   Grid
	Usable func(netip.Addr) bool
	// Blocks are all records of the pool.
	Blocks []Seen
	// Skip is true of blocks whose record cannot be understood; nil for none.
	Skip func(netip.Prefix) bool
	// Whole: the pool is routed; blocks are leased whole, and nothing traded.
	Whole bool
	// Sticky and StickyFor are the pool's; Now is the time to compare with.
	Sticky    ipam.Sticky
	StickyFor time.Duration
	Now       time.Time
	// Key of the sticky owner that waits, "" for none.
	Key string
	// Waiting: an ADD waits for the address. What goes to somebody only when
	// nothing else is free is for those.
	Waiting bool
	// Full: no further block may be leased, as of a tenant whose quota has no room
	// for one.
	Full bool
	// Attempt counts the times that the swap found was refused.
	Attempt int
}

// Found is where a node gets addresses from. The zero Found is nowhere.
type Found struct {
	// CIDR of the block to go to, with what to want of it.
	CIDR netip.Prefix
	Goal Goal
	// Addr is the address that the owner had last, if it had one. Holder has it
	// in use for this very owner, and has not let go of it: the owner has to
	// wait.
	Addr   netip.Addr
	Holder Node
	// Ask: nobody's addresses are used up, so others have to give. Raise a
	// flag.
	Ask bool
}

// Find looks for an address: one that is kept for the owner, else a block
// that nobody leases, else one that nobody has, else, for an ADD that waits,
// one that is kept for another owner, those kept longest first; else others
// are to be asked.
func (s Search) Find() Found {
	if s.Whole {
		f, _ := s.block()
		return f
	}
	if s.Key != "" && s.Sticky != ipam.NotSticky {
		if f, ok := s.own(); ok {
			return f
		}
	}
	if f, ok := s.block(); ok {
		return f
	}
	offered, parked := s.unused()
	for _, c := range [][]candidate{offered, parked} {
		if len(c) > 0 {
			return s.claim(c)
		}
	}
	return Found{Ask: s.Waiting}
}

type candidate struct {
	cidr netip.Prefix
	addr netip.Addr
	Entry
}

// own finds the address that the owner had last: one that is parked for it, or
// one that it is still said to use elsewhere.
func (s Search) own() (found Found, ok bool) {
	for _, r := range s.Blocks {
		for a, e := range r.Block.Given {
			if e.Key != s.Key || e.Node == s.Node || !s.Usable(a) {
				continue
			}
			here := Found{Holder: e.Node, Addr: a}
			if e.Node == "" {
				here = Found{CIDR: r.Block.CIDR, Addr: a, Goal: Goal{Claim: map[netip.Addr]string{a: s.Key}}}
			}
			// What can be had goes before what cannot, then by address.
			better := cmp.Compare(len(here.Holder), len(found.Holder))
			if better == 0 {
				better = a.Compare(found.Addr)
			}
			if !ok || better < 0 {
				found, ok = here, true
			}
		}
	}
	return found, ok
}

// block finds a block to lease. Those that were leased before go first, so
// that the records of a large pool do not grow without end, but only at the
// first attempt: where many look for few, the next one goes elsewhere.
func (s Search) block() (Found, bool) {
	if s.Full {
		return Found{}, false
	}
	known := make(map[netip.Prefix]bool, len(s.Blocks))
	var returned []netip.Prefix
	for _, r := range s.Blocks {
		known[r.Block.CIDR] = true
		if r.Block.Owner == "" && s.Grid.Contains(r.Block.CIDR) && s.leaves(r.Block) && (!s.Whole || r.Block.Sole(s.Node)) {
			returned = append(returned, r.Block.CIDR)
		}
	}
	slices.SortFunc(returned, netip.Prefix.Compare)
	turn := Rotation(s.Node, "lease", s.Attempt)
	again := func() (netip.Prefix, bool) {
		if len(returned) == 0 {
			return netip.Prefix{}, false
		}
		return returned[turn%uint64(len(returned))], true
	}
	fresh := func() (netip.Prefix, bool) {
		return s.Grid.Choose(turn, func(p netip.Prefix) bool {
			return known[p] || s.Skip != nil && s.Skip(p)
		})
	}
	ways := []func() (netip.Prefix, bool){again, fresh}
	if s.Attempt > 0 {
		ways = []func() (netip.Prefix, bool){fresh, again}
	}
	for _, way := range ways {
		if p, ok := way(); ok {
			return Found{CIDR: p, Goal: Goal{Lease: true}}, true
		}
	}
	return Found{}, false
}

// leaves reports whether a usable address would come with the lease.
func (s Search) leaves(b Block) (some bool) {
	b.Addrs(func(a netip.Addr) bool {
		_, given := b.Given[a]
		some = !given && s.Usable(a)
		return !some
	})
	return some
}

// unused lists the addresses that nobody has: those that anybody may claim,
// and those kept for another owner, if it is time for them.
func (s Search) unused() (offered, parked []candidate) {
	for _, r := range s.Blocks {
		for a, e := range r.Block.Given {
			c := candidate{r.Block.CIDR, a, e}
			switch {
			case e.Node != "" || !s.Usable(a):
			case !e.Parked() || s.Sticky == ipam.NotSticky || e.Over(s.Now, s.StickyFor):
				offered = append(offered, c)
			case s.Waiting && s.Sticky != ipam.StickyStrict:
				parked = append(parked, c)
			}
		}
	}
	slices.SortFunc(offered, func(a, b candidate) int { return a.addr.Compare(b.addr) })
	slices.SortFunc(parked, func(a, b candidate) int {
		return cmp.Or(a.Since.Compare(b.Since), a.addr.Compare(b.addr))
	})
	return offered, parked
}

// claim chooses among what nobody has: the oldest of what is parked, any of
// what is offered.
func (s Search) claim(c []candidate) Found {
	i := 0
	if !c[0].Parked() {
		i = int(Rotation(s.Node, "claim", s.Attempt) % uint64(len(c)))
	} else if s.Attempt > 0 {
		i = min(s.Attempt, len(c)-1)
	}
	return Found{CIDR: c[i].cidr, Goal: Goal{Claim: map[netip.Addr]string{c[i].addr: s.Key}}}
}

// Over reports whether a parked address has been kept long enough. A clock
// that was far ahead when it was parked does not keep it for longer.
func (e Entry) Over(now time.Time, keep time.Duration) bool {
	age := now.Sub(e.Since)
	return age >= keep || age < -keep
}
