package lease

import (
	"cmp"
	"iter"
	"math"
	"net/netip"
	"slices"
	"time"
)

const (
	// spareIdle is how long a second unused block stays.
	spareIdle = 10 * time.Minute
	// lastIdle is how long the last block stays on a node without attachments,
	// where the pool is scarce.
	lastIdle = time.Hour
	// scarce is the leased share of a pool from which on it is.
	scarce = 0.75
	// turn is the time between two nodes that answer a flag, and row the longest
	// that it may take all of them: who asks waits for little longer, and in a
	// large cluster most have nothing to give.
	turn = 50 * time.Millisecond
	row  = time.Second
	// ahead is the time for which free addresses have to last.
	ahead = 2 * time.Second
)

// Low reports whether a node has to lease one more block before it is needed.
// perSecond is how many addresses it has given out a second, of late.
func Low(free, blockSize int, perSecond float64) bool {
	return free < max(1, blockSize/2, int(math.Ceil(perSecond*ahead.Seconds())))
}

// Use of a block that the node leases.
type Use struct {
	CIDR netip.Prefix
	// Mine are its addresses that are this node's, Free those that are unused.
	Mine, Free int
	// Idle is how long it has been without use.
	Idle time.Duration
}

// Spare lists the blocks that a node gives back: unused ones but for one, when
// they have been so for a while, and the last where nothing has been attached
// for an hour and others are short. What is left has to be enough. leased, which
// takes longer than the rest, tells what share of the set nodes have.
func Spare(uses []Use, blockSize int, perSecond float64, leased func() float64, unattached time.Duration) []netip.Prefix {
	free := 0
	var unused []Use
	for _, u := range uses {
		free += u.Free
		if u.Free == u.Mine {
			unused = append(unused, u)
		}
	}
	slices.SortFunc(unused, func(a, b Use) int { return cmp.Or(cmp.Compare(b.Idle, a.Idle), a.CIDR.Compare(b.CIDR)) })
	var back []netip.Prefix
	for len(unused) > 1 && unused[0].Idle >= spareIdle && !Low(free-unused[0].Free, blockSize, perSecond) {
		back = append(back, unused[0].CIDR)
		free -= unused[0].Free
		unused = unused[1:]
	}
	if len(unused) == 1 && len(unused)+len(back) == len(uses) && unattached >= lastIdle && leased() > scarce {
		back = append(back, unused[0].CIDR)
	}
	return back
}

// Want is the flag of a node on which an ADD waits for an address.
type Want struct {
	Node Node
	// Set is the number of the range set in need.
	Set int
	// Have is how many addresses of the set's blocks the registry showed as the
	// node's when it raised the flag.
	Have int
	// Rev of the flag orders them.
	Rev Rev
}

// Oldest returns the flag to answer first.
func Oldest(wants []Want) (Want, bool) {
	if len(wants) == 0 {
		return Want{}, false
	}
	return slices.MinFunc(wants, Want.Compare), true
}

// Compare orders flags by age.
func (w Want) Compare(o Want) int {
	return cmp.Or(cmp.Compare(w.Rev, o.Rev), cmp.Compare(w.Node, o.Node))
}

// Answered reports whether the node that raised the flag was given something
// since. blocks are those of the range set in need.
func (w Want) Answered(blocks []Seen) bool { return Count(slices.Values(blocks)).Answered(w) }

// Turn is Tally.Turn of the records.
func (w Want) Turn(me Node, blocks []Seen) (wait time.Duration, ok bool) {
	return Count(slices.Values(blocks)).Turn(w, me)
}

// Tally is how many addresses of a pool each node has, by the records.
type Tally struct {
	have  map[Node]int
	order []Node // who has any
}

// Count makes a Tally; with many flags up it is asked many times.
func Count(blocks iter.Seq[Seen]) Tally {
	t := Tally{have: make(map[Node]int)}
	for s := range blocks {
		for n, count := range s.Block.Nodes() {
			t.have[n] += count
		}
	}
	for n, count := range t.have {
		if count > 0 {
			t.order = append(t.order, n)
		}
	}
	slices.Sort(t.order)
	return t
}

// Answered reports whether the node that raised a flag was given something
// since.
func (t Tally) Answered(w Want) bool { return t.have[w.Node] > w.Have }

// Turn is how long me waits before it answers a flag, so that the nodes that
// have something to give do so one after the other, each flag beginning with
// another; before it gives, it looks whether somebody has (Answered). ok is
// false for a node that is not to answer.
func (t Tally) Turn(w Want, me Node) (wait time.Duration, ok bool) {
	i, ok := slices.BinarySearch(t.order, me)
	if !ok || me == w.Node {
		return 0, false
	}
	n := len(t.order)
	// Who asks is not in the row.
	if at, has := slices.BinarySearch(t.order, w.Node); has {
		n--
		if at < i {
			i--
		}
	}
	first := int(Rotation(w.Node, "want", int(w.Rev)) % uint64(n))
	return time.Duration((i-first+n)%n) * min(turn, row/time.Duration(n)), true
}
