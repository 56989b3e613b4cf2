package leases

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// maxGifts is how many flags are answered in a round: the first are not to wait
// for the last, nor an ADD of this node for all.
const maxGifts = 64

// flag is an answer to a raised flag that this node may have to give.
type flag struct {
	node lease.Node
	set  int
	rev  lease.Rev
}

// due is a flag that it is this node's turn to answer, since at.
type due struct {
	lease.Want
	at time.Time
}

// answer gives an address to each node whose flag it is this node's turn for, to
// those that have waited longest first; wait is how long it is until the next
// turn. Many flags are answered at once, each by another node: one after the
// other would take longer than the ADDs behind them wait.
func (t *Trader) answer(ctx context.Context, v *registry.View, p record.Pool, me lease.Node) (wait time.Duration, err error) {
	if p.Kind == record.Routed || len(v.Wants[p.UUID]) == 0 {
		return 0, nil
	}
	spares, err := t.spares(v, p)
	if err != nil {
		return 0, err
	}
	var tallies []lease.Tally // of no use to who has nothing
	if slices.ContainsFunc(spares, func(s []netip.Addr) bool { return len(s) > 0 }) {
		tallies = tally(v, p)
	}
	before := t.flags[p.UUID]
	flags := map[flag]time.Time{}
	var dues []due
	for _, w := range v.Wants[p.UUID] {
		if w.Set >= len(p.Sets) {
			continue
		}
		f := flag{w.Node, w.Set, w.Rev}
		first, known := before[f]
		if !known || first.After(t.now()) { // the clock was put back
			first = t.now()
		}
		flags[f] = first
		if len(spares[w.Set]) == 0 || tallies[w.Set].Answered(w) {
			continue
		}
		turn, mine := tallies[w.Set].Turn(w, me)
		if !mine {
			continue
		}
		switch left := turn - t.now().Sub(first); {
		case left <= 0:
			dues = append(dues, due{w, first.Add(turn)})
		case wait == 0 || left < wait:
			wait = left
		}
	}
	if t.flags == nil {
		t.flags = map[string]map[flag]time.Time{}
	}
	t.flags[p.UUID] = flags
	slices.SortFunc(dues, func(a, b due) int { return cmp.Or(a.at.Compare(b.at), a.Compare(b.Want)) })
	return wait, t.giveTo(ctx, v, p, dues, spares)
}

// tally counts who has what of each range set.
func tally(v *registry.View, p record.Pool) []lease.Tally {
	out := make([]lease.Tally, len(p.Sets))
	for set := range p.Sets {
		out[set] = lease.Count(v.Each(p, set))
	}
	return out
}

// giveTo gives an unused address to each of some nodes, as long as there are any,
// those of one block at once. Who answers a flag takes it down first, so that
// nobody else does. Where nothing comes of it then, the node that waits raises it
// again.
func (t *Trader) giveTo(ctx context.Context, v *registry.View, p record.Pool, dues []due, spares [][]netip.Addr) error {
	if len(dues) == 0 {
		return nil
	}
	// Others may have answered since the view was told.
	if err := t.Registry.Refresh(ctx, v, p.UUID); err != nil {
		return err
	}
	up, err := t.Registry.Wants(ctx, p.UUID)
	if err != nil {
		return err
	}
	tallies, free := tally(v, p), make([]int, len(spares))
	for set := range spares {
		free[set] = len(spares[set])
	}
	var wants []lease.Want
	for _, d := range dues {
		if len(wants) < maxGifts && free[d.Set] > 0 && up[d.Node] == d.Want && !tallies[d.Set].Answered(d.Want) {
			free[d.Set]--
			wants = append(wants, d.Want)
		}
	}
	mine, err := t.take(ctx, v, p, wants)
	errs := []error{err}
	gifts := map[netip.Prefix]map[netip.Addr]lease.Entry{}
	for _, w := range mine {
		a := spares[w.Set][0]
		spares[w.Set] = spares[w.Set][1:]
		cidr, _ := blockOf(v, p, a)
		if gifts[cidr] == nil {
			gifts[cidr] = map[netip.Addr]lease.Entry{}
		}
		gifts[cidr][a] = lease.Entry{Node: w.Node}
	}
	for cidr, to := range gifts {
		errs = append(errs, t.to(ctx, v, p, cidr, lease.Goal{Give: to}))
	}
	return errors.Join(errs...)
}

// take takes flags down, all at once: who asks waits for as long as it takes.
func (t *Trader) take(ctx context.Context, v *registry.View, p record.Pool, wants []lease.Want) (mine []lease.Want, err error) {
	got, errs := make([]bool, len(wants)), make([]error, len(wants))
	var all sync.WaitGroup
	for i, w := range wants {
		all.Go(func() { got[i], errs[i] = t.Registry.Take(ctx, p.UUID, w) })
	}
	all.Wait()
	for i, w := range wants {
		if errs[i] == nil {
			delete(v.Wants[p.UUID], w.Node)
		}
		if got[i] {
			mine = append(mine, w)
		}
	}
	return mine, errors.Join(errs...)
}

// spares lists what this node has to give, for each range set.
func (t *Trader) spares(v *registry.View, p record.Pool) ([][]netip.Addr, error) {
	all, err := t.Ledger.Spares(p.UUID, maxSpares)
	if err != nil {
		return nil, err
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
	return spares, nil
}

func blockOf(v *registry.View, p record.Pool, a netip.Addr) (netip.Prefix, bool) {
	cidr := netip.PrefixFrom(a, p.Bits(a)).Masked()
	_, ok := v.Blocks[p.UUID][cidr]
	return cidr, ok
}
