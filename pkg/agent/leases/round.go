package leases

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// maxSpares bounds how many unused addresses are looked at in one go.
const maxSpares = 4096

// flag is an answer to a raised flag that this node may have to give.
type flag struct {
	node lease.Node
	set  int
	rev  lease.Rev
}

// memory is what lasts from one round to the next.
type memory struct {
	remembered time.Time
	// first are the revisions of blocks at their first read, until the leases
	// are confirmed.
	first map[string]map[netip.Prefix]lease.Rev
	// flags have when they were seen first; used and attached, when the block or
	// the pool was in use last.
	flags    map[string]map[flag]time.Time // by pool
	used     map[netip.Prefix]time.Time
	attached map[string]time.Time
}

// Round does all that is to be done for a view of the registry: it brings to an
// end what was begun, confirms the leases after a boot, answers flags, parks what
// sticky owners have left, leases ahead of need and returns what has been idle.
// The first view has to come of a list. again is when to come back at the latest
// if nothing changes, 0 for no need. v is changed in place.
//
// What fails for one block does not keep others from their turn.
func (t *Trader) Round(ctx context.Context, v *registry.View) (again time.Duration, err error) {
	me, err := t.Ledger.Node()
	if err != nil {
		return 0, err
	}
	if err := t.stand(ctx, v, me); err != nil {
		return 0, err
	}
	var pools []record.Pool
	var known []ipam.Pool
	for _, name := range slices.Sorted(maps.Keys(v.Pools)) {
		if p := v.Pools[name].Value; p.State != record.Pending {
			pools, known = append(pools, p), append(known, p.IPAM())
		}
	}
	unread, err := t.unread(v)
	if err != nil {
		return 0, err
	}
	if err := t.Ledger.SetPools(append(unread, known...)); err != nil {
		return 0, err
	}
	var errs []error
	for _, p := range pools {
		errs = append(errs, t.tend(ctx, v, p, me))
	}
	if errors.Join(errs...) == nil {
		errs = append(errs, t.confirm(ctx, v, pools, me))
	}
	for _, p := range pools {
		if p.State == record.Deleting {
			errs = append(errs, t.vacate(ctx, v, p))
			continue
		}
		wait, err := t.answer(ctx, v, p, me)
		if wait > 0 && (again == 0 || wait < again) {
			again = wait
		}
		errs = append(errs, err, t.park(ctx, v, p), t.balance(ctx, v, p, me))
	}
	return again, errors.Join(errs...)
}

// unread are the pools of the ledger whose objects cannot be read now: what is
// leased of them goes on as they were.
func (t *Trader) unread(v *registry.View) ([]ipam.Pool, error) {
	pools, err := t.Ledger.Pools()
	return slices.DeleteFunc(pools, func(p ipam.Pool) bool {
		return p.UUID == "" || v.Unread[record.PoolFolder+p.Name] == nil
	}), err
}

// to takes all steps towards a goal for a block.
func (t *Trader) to(ctx context.Context, v *registry.View, p record.Pool, cidr netip.Prefix, g lease.Goal) error {
	s, err := t.drive(ctx, p, seen(v, p.UUID, cidr), g)
	put(v, p, s)
	return err
}

func put(v *registry.View, p record.Pool, s lease.Seen) {
	if s.Rev == 0 {
		return
	}
	if v.Blocks[p.UUID] == nil {
		v.Blocks[p.UUID] = map[netip.Prefix]lease.Seen{}
	}
	v.Blocks[p.UUID][s.Block.CIDR] = s
}

// tend brings to an end what was begun, and notes who uses what as a sticky
// owner.
func (t *Trader) tend(ctx context.Context, v *registry.View, p record.Pool, me lease.Node) error {
	blocks, err := t.Ledger.Blocks(p.UUID)
	if err != nil {
		return err
	}
	goals := map[netip.Prefix]lease.Goal{}
	for _, s := range v.Named(p.UUID, me) {
		goals[s.Block.CIDR] = lease.Goal{}
	}
	for _, b := range blocks {
		goals[b.CIDR] = lease.Goal{Tag: b.Keys}
	}
	var errs []error
	for _, cidr := range slices.SortedFunc(maps.Keys(goals), netip.Prefix.Compare) {
		errs = append(errs, t.to(ctx, v, p, cidr, goals[cidr]))
	}
	return errors.Join(errs...)
}

// confirm confirms the leases when none of their records is as it was read first.
func (t *Trader) confirm(ctx context.Context, v *registry.View, pools []record.Pool, me lease.Node) error {
	if err := t.Ledger.Unconfirmed(); !errors.Is(err, ledger.ErrUnconfirmed) {
		t.first = nil
		return err
	}
	if t.first == nil {
		t.first = map[string]map[netip.Prefix]lease.Rev{}
		for _, p := range pools {
			t.first[p.UUID] = map[netip.Prefix]lease.Rev{}
			for _, s := range v.Named(p.UUID, me) {
				t.first[p.UUID][s.Block.CIDR] = s.Rev
			}
		}
	}
	for _, p := range pools {
		for cidr, rev := range t.first[p.UUID] {
			s := seen(v, p.UUID, cidr)
			for range maxSteps {
				var err error
				more := s.Block.Names(me) && s.Rev == rev
				if !more {
					break
				}
				if s, more, err = t.act(ctx, p, s, lease.Goal{Fence: true}); err != nil {
					return err
				} else if !more {
					break
				}
			}
			put(v, p, s)
			if s.Block.Names(me) && s.Rev == rev {
				return fmt.Errorf("block %s: %w", cidr, errBusy)
			}
			if err := t.to(ctx, v, p, cidr, lease.Goal{}); err != nil {
				return err
			}
		}
	}
	return t.Ledger.Confirm()
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

// park keeps in the registry what rests for a sticky owner, so that it finds it
// on whichever node it comes to next, however soon.
func (t *Trader) park(ctx context.Context, v *registry.View, p record.Pool) error {
	if p.Sticky == ipam.NotSticky || p.Kind == record.Routed {
		return nil
	}
	spares, err := t.Ledger.Spares(p.UUID, maxSpares)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range spares {
		if cidr, ok := blockOf(v, p, s.Address); ok && s.Owner != "" {
			to := lease.Entry{Key: s.Owner, Since: s.Since.Truncate(time.Second)}
			errs = append(errs, t.to(ctx, v, p, cidr, lease.Goal{Give: map[netip.Addr]lease.Entry{s.Address: to}}))
		}
	}
	return errors.Join(errs...)
}

// vacate returns what nobody uses of a pool that is to be deleted.
func (t *Trader) vacate(ctx context.Context, v *registry.View, p record.Pool) error {
	blocks, err := t.Ledger.Blocks(p.UUID)
	if err != nil {
		return err
	}
	var errs []error
	for _, b := range blocks {
		errs = append(errs, t.to(ctx, v, p, b.CIDR, lease.Goal{Return: true, Now: t.now().Truncate(time.Second)}))
	}
	return errors.Join(errs...)
}

// balance leases ahead of need, and returns what has been idle, for each range
// set: an attachment needs an address of each.
func (t *Trader) balance(ctx context.Context, v *registry.View, p record.Pool, me lease.Node) error {
	blocks, err := t.Ledger.Blocks(p.UUID)
	if err != nil {
		return err
	}
	uses, any := make([][]lease.Use, len(p.Sets)), false
	for set := range p.Sets {
		uses[set] = t.uses(p, set, blocks)
		any = any || len(uses[set]) > 0
	}
	if !any {
		return nil // nobody here has asked for an address yet
	}
	var errs []error
	for set := range p.Sets {
		errs = append(errs, t.balanceOf(ctx, v, p, set, me, uses[set]))
	}
	return errors.Join(errs...)
}

func (t *Trader) balanceOf(ctx context.Context, v *registry.View, p record.Pool, set int, me lease.Node, uses []lease.Use) error {
	free, size := 0, 1
	for _, u := range uses {
		free, size = free+u.Free, lease.Block{CIDR: u.CIDR}.Size()
	}
	perSecond := float64(t.Ledger.Demand(p.UUID)) / 2
	if lease.Low(free, size, perSecond) {
		return t.more(ctx, v, p, set, me)
	}
	var errs []error
	leased := lease.Leased(slices.Values(v.SeenOf(p, set)), p.Sets[set].Size())
	for _, cidr := range lease.Spare(uses, size, perSecond, leased, t.now().Sub(t.attached[p.UUID])) {
		errs = append(errs, t.to(ctx, v, p, cidr, lease.Goal{Return: true, Now: t.now().Truncate(time.Second)}))
	}
	return errors.Join(errs...)
}

// more leases ahead: nobody waits, so nobody is asked.
func (t *Trader) more(ctx context.Context, v *registry.View, p record.Pool, set int, me lease.Node) error {
	search, err := v.Search(p, set, lease.Search{Node: me, Now: t.now(), Attempt: t.refused[p.UUID]})
	if err != nil {
		return err
	}
	found := search.Find()
	if !found.CIDR.IsValid() || v.Room(p.UUID, int64(lease.Block{CIDR: found.CIDR}.Size())) != nil {
		return nil
	}
	err = t.to(ctx, v, p, found.CIDR, found.Goal)
	if errors.As(err, new(*registry.QuotaError)) {
		return nil // another node of the tenant was faster
	}
	return err
}

// uses looks at what this node leases of a range set.
func (t *Trader) uses(p record.Pool, set int, blocks []ledger.Block) (uses []lease.Use) {
	if t.used == nil {
		t.used, t.attached = map[netip.Prefix]time.Time{}, map[string]time.Time{}
	}
	now := t.now()
	for _, b := range blocks {
		u := lease.Use{CIDR: b.CIDR}
		for a, m := range b.Marks {
			if _, usable := p.Sets[set].Find(a); !usable || m.Status == lease.Giving {
				continue
			}
			u.Mine++
			if m.Status == lease.Free {
				u.Free++
			}
		}
		if u.Mine == 0 {
			continue
		}
		if _, known := t.used[b.CIDR]; !known || u.Free < u.Mine {
			t.used[b.CIDR] = now
		}
		if _, known := t.attached[p.UUID]; !known || u.Free < u.Mine {
			t.attached[p.UUID] = now
		}
		u.Idle = now.Sub(t.used[b.CIDR])
		uses = append(uses, u)
	}
	return uses
}
