package leases

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// flag is an answer to a raised flag that this node may have to give.
type flag struct {
	node lease.Node
	set  int
	rev  lease.Rev
}

// answer gives an address to each node whose flag it is this node's turn for, to
// those that have waited longest first; wait is how long it is until the next
// turn. Many flags are answered at once, each by another node: one after the
// other would take longer than the ADDs behind them wait.
func (t *Trader) answer(ctx context.Context, v *registry.View, p record.Pool, me lease.Node) (wait time.Duration, err error) {
	wants := slices.SortedFunc(maps.Values(v.Wants[p.UUID]), lease.Want.Compare)
	if p.Kind == record.Routed || len(wants) == 0 {
		return 0, nil
	}
	tallies := tally(v, p)
	before := t.flags[p.UUID]
	flags := map[flag]time.Time{}
	var due []lease.Want
	for _, w := range wants {
		if w.Set >= len(p.Sets) {
			continue
		}
		turn, mine := tallies[w.Set].Turn(w, me)
		if !mine || tallies[w.Set].Answered(w) {
			continue
		}
		f := flag{w.Node, w.Set, w.Rev}
		first, known := before[f]
		if !known {
			first = t.now()
		}
		flags[f] = first
		switch left := turn - t.now().Sub(first); {
		case left <= 0:
			due = append(due, w)
		case wait == 0 || left < wait:
			wait = left
		}
	}
	if t.flags == nil {
		t.flags = map[string]map[flag]time.Time{}
	}
	t.flags[p.UUID] = flags
	return wait, t.giveTo(ctx, v, p, due)
}

// tally counts who has what of each range set.
func tally(v *registry.View, p record.Pool) []lease.Tally {
	out := make([]lease.Tally, len(p.Sets))
	for set := range p.Sets {
		out[set] = lease.Count(slices.Values(v.SeenOf(p, set)))
	}
	return out
}

// giveTo gives an unused address to each of some nodes, as long as there are any.
func (t *Trader) giveTo(ctx context.Context, v *registry.View, p record.Pool, due []lease.Want) error {
	if len(due) == 0 {
		return nil
	}
	all, err := t.Ledger.Spares(p.UUID, maxSpares)
	if err != nil {
		return err
	}
	spares := make([][]netip.Addr, len(p.Sets))
	for _, s := range all {
		if _, ok := blockOf(v, p, s.Address); !ok || s.Strict {
			continue
		}
		for set := range p.Sets {
			if _, in := p.Sets[set].Find(s.Address); in {
				spares[set] = append(spares[set], s.Address)
			}
		}
	}
	due = slices.DeleteFunc(due, func(w lease.Want) bool { return len(spares[w.Set]) == 0 })
	if len(due) == 0 {
		return nil
	}
	// Others may have answered since the view was told.
	if err := t.Registry.Refresh(ctx, v, p.UUID); err != nil {
		return err
	}
	tallies := tally(v, p)
	for _, w := range due {
		left := spares[w.Set]
		if len(left) == 0 || tallies[w.Set].Answered(w) {
			continue
		}
		if up, err := t.Registry.Raised(ctx, p.UUID, w); err != nil {
			return err
		} else if !up {
			continue
		}
		spares[w.Set] = left[1:]
		cidr, _ := blockOf(v, p, left[0])
		if err := t.to(ctx, v, p, cidr, lease.Goal{Give: map[netip.Addr]lease.Entry{left[0]: {Node: w.Node}}}); err != nil {
			return err
		}
	}
	return nil
}

func blockOf(v *registry.View, p record.Pool, a netip.Addr) (netip.Prefix, bool) {
	cidr := netip.PrefixFrom(a, p.Bits(a)).Masked()
	_, ok := v.Blocks[p.UUID][cidr]
	return cidr, ok
}
