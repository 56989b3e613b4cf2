package ipam

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Pool is a named set of addresses. Every range set gives an attachment one
// address; the ranges of a set are alternatives.
type Pool struct {
	// Name; of a local pool, the network's.
	Name string `json:"name"`
	// UUID of a cluster pool; empty for a local one, which the node owns whole.
	UUID string     `json:"uuid,omitempty"`
	Sets []RangeSet `json:"sets,omitempty"`
	// Routes of a cluster pool; those of a local one are its configuration's.
	Routes []Route `json:"routes,omitempty"`
	// CoolDown is how long a released address rests.
	CoolDown time.Duration `json:"coolDown"`
	// Quarantine is how long an address rests after a conflict.
	Quarantine time.Duration `json:"quarantine"`
	// Sticky parks a released address for its owner for StickyFor.
	Sticky Sticky `json:"sticky,omitempty"`
	// StickyFor is in force only for owners that have a key.
	StickyFor time.Duration `json:"stickyFor,omitempty"`
}

// Sticky says whether an owner gets its last address back.
type Sticky string

const (
	// NotSticky: only as far as the address is still cooling.
	NotSticky Sticky = ""
	// StickySoft: others get it only when nothing else is free.
	StickySoft Sticky = "soft"
	// StickyStrict: others never get it while it is parked.
	StickyStrict Sticky = "strict"
)

// ID tells the pool from all others of the node.
func (p Pool) ID() string { return poolID(p.Name, p.UUID) }

// poolID begins with a byte that no network's name has for cluster pools, so
// that a network and a pool may have the same name.
func poolID(name, uuid string) string {
	if uuid != "" {
		return "\x01" + uuid
	}
	return name
}

// Find returns the range that may give out a, of whichever set.
func (p Pool) Find(a netip.Addr) (Range, bool) {
	for _, s := range p.Sets {
		if r, ok := s.Find(a); ok {
			return r, true
		}
	}
	return Range{}, false
}

// Refusal says what an address is that no range set gives out: "the gateway of
// 10.5.0.0/24".
func (p Pool) Refusal(a netip.Addr) string {
	for _, s := range p.Sets {
		for _, r := range s {
			if why := r.refusal(a); why != "" {
				return why
			}
		}
	}
	return fmt.Sprintf("outside of the ranges of pool %q", p.Name)
}

// Rest is how long an address of the pool cools after its owner released it.
func (p Pool) Rest(owner string) time.Duration {
	if p.Sticky != NotSticky && owner != "" {
		return max(p.StickyFor, p.CoolDown)
	}
	return p.CoolDown
}

// Interval is all addresses from First to Last, both included.
type Interval struct {
	First netip.Addr `json:"first"`
	Last  netip.Addr `json:"last"`
}

// Contains reports whether a lies in the interval.
func (i Interval) Contains(a netip.Addr) bool {
	return a.Is4() == i.First.Is4() && i.First.Compare(a) <= 0 && a.Compare(i.Last) <= 0
}

func (i Interval) overlaps(o Interval) bool {
	return i.First.Is4() == o.First.Is4() && i.First.Compare(o.Last) <= 0 && o.First.Compare(i.Last) <= 0
}

func (i Interval) String() string {
	if i.First == i.Last {
		return i.First.String()
	}
	return i.First.String() + "-" + i.Last.String()
}

// size counts the addresses, saturating at 1<<63-1.
func (i Interval) size() uint64 {
	f, l := i.First.As16(), i.Last.As16()
	var diff [16]byte
	borrow := 0
	for k := 15; k >= 0; k-- {
		d := int(l[k]) - int(f[k]) - borrow
		borrow = 0
		if d < 0 {
			d, borrow = d+256, 1
		}
		diff[k] = byte(d)
	}
	var n uint64
	for k, b := range diff {
		if k < 8 && b != 0 {
			return math.MaxInt64
		}
		n = n<<8 | uint64(b)
	}
	if n >= math.MaxInt64 {
		return math.MaxInt64
	}
	return n + 1
}

// Range is a part of a subnet that addresses are taken from.
type Range struct {
	Subnet netip.Prefix `json:"subnet"`
	Interval
	// Gateway of the subnet, never given out; the zero value means none.
	Gateway netip.Addr `json:"gateway,omitzero"`
	// Exclude is sorted, without overlaps, and lists the gateway too.
	Exclude []Interval `json:"exclude,omitempty"`
	// BlockBits is the prefix length of a routed pool's blocks, each of which is a
	// subnet of its own: see RangeSet.Cut. 0: the subnet is that of one link.
	BlockBits int `json:"blockPrefix,omitempty"`
}

// excluded returns the exclusion that a lies in.
func (r Range) excluded(a netip.Addr) (Interval, bool) {
	i, found := slices.BinarySearchFunc(r.Exclude, a, func(x Interval, a netip.Addr) int {
		switch {
		case x.Last.Less(a):
			return -1
		case a.Less(x.First):
			return 1
		}
		return 0
	})
	if !found {
		return Interval{}, false
	}
	return r.Exclude[i], true
}

// Usable reports whether a may be given out from this range.
func (r Range) Usable(a netip.Addr) bool {
	if !r.Contains(a) {
		return false
	}
	_, ex := r.excluded(a)
	return !ex && !r.keeps(a)
}

// RangeSet is a list of ranges of one address family that do not overlap.
type RangeSet []Range

// Find returns the range that may give out a.
func (s RangeSet) Find(a netip.Addr) (Range, bool) {
	for _, r := range s {
		if r.Usable(a) {
			return r, true
		}
	}
	return Range{}, false
}

// Is4 reports the address family.
func (s RangeSet) Is4() bool { return len(s) > 0 && s[0].First.Is4() }

// Size counts the usable addresses, saturating at 1<<63-1.
func (s RangeSet) Size() uint64 {
	return s.count(func(r Range) Interval { return r.Interval })
}

// Within counts the usable addresses of a prefix, in the same way.
func (s RangeSet) Within(p netip.Prefix) uint64 {
	all := Interval{p.Addr(), lastOf(p)}
	return s.count(func(Range) Interval { return all })
}

func (s RangeSet) count(of func(Range) Interval) uint64 {
	var n uint64
	for _, r := range s {
		if n += r.count(of(r)); n >= math.MaxInt64 {
			return math.MaxInt64
		}
	}
	return n
}

func (s RangeSet) String() string {
	parts := make([]string, len(s))
	for i, r := range s {
		parts[i] = fmt.Sprintf("%s of %s", r.Interval, r.Subnet)
	}
	return strings.Join(parts, ", ")
}

// Next is the choice of the next address: the first one after `after` (in
// the order of the set, going round once; the zero value starts at the
// beginning) that is not taken. taken reports whether an address is taken
// and, if so, the last address of the unbroken run of taken ones that it
// lies in, so that a full stretch costs one step. ok is false when nothing
// is free.
func (s RangeSet) Next(after netip.Addr, taken func(netip.Addr) (last netip.Addr, yes bool)) (a netip.Addr, r Range, ok bool) {
	start := 0
	for i, r := range s {
		if r.Contains(after) && after.Less(r.Last) {
			if a, ok := r.next(after.Next(), r.Last, taken); ok {
				return a, r, true
			}
			start = i + 1
			break
		}
		if r.Contains(after) {
			start = i + 1
			break
		}
	}
	// The range that held `after` comes round last, from its own beginning.
	for k := range s {
		r := s[(start+k)%len(s)]
		if a, ok := r.next(r.First, r.Last, taken); ok {
			return a, r, true
		}
	}
	return netip.Addr{}, Range{}, false
}

// next finds the first free address from a to last.
func (r Range) next(a, last netip.Addr, taken func(netip.Addr) (netip.Addr, bool)) (netip.Addr, bool) {
	for a.IsValid() {
		at, ok := r.From(a)
		if !ok || last.Less(at) {
			break
		}
		end, yes := taken(at)
		if !yes {
			return at, true
		}
		a = end.Next()
	}
	return netip.Addr{}, false
}

// From returns the first usable address from a on.
func (r Range) From(a netip.Addr) (_ netip.Addr, ok bool) {
	if a.Less(r.First) {
		a = r.First
	}
	for a.IsValid() && a.Compare(r.Last) <= 0 {
		x, ex := r.excluded(a)
		switch {
		case ex:
			a = x.Last.Next()
		case r.keeps(a):
			a = a.Next()
		default:
			return a, true
		}
	}
	return netip.Addr{}, false
}
