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

// memory is what lasts from one round to the next.
type memory struct {
	remembered time.Time
	// first are the revisions of blocks at their first read, until the leases
	// are confirmed.
	first map[string]map[netip.Prefix]lease.Rev
	// flags have when they were seen first; used and attached, when the block or
	// the pool was in use last.
	flags    map[string]map[flag]time.Time // by pool
	asked    map[string]asked              // by pool
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
	errs = append(errs, t.lendAgain(pools))
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
	if t.Ledger.Unconfirmed() == nil {
		errs = append(errs, t.lend(ctx, v, pools, me))
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
	v.Learn(p.UUID, s)
	return err
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
			v.Learn(p.UUID, s)
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
	parked := map[netip.Prefix]map[netip.Addr]lease.Entry{}
	for _, s := range spares {
		cidr, ok := blockOf(v, p, s.Address)
		if !ok || s.Owner == "" {
			continue
		}
		if parked[cidr] == nil {
			parked[cidr] = map[netip.Addr]lease.Entry{}
		}
		parked[cidr][s.Address] = lease.Entry{Key: s.Owner, Since: s.Since.Truncate(time.Second)}
	}
	var errs []error
	for cidr, to := range parked {
		errs = append(errs, t.to(ctx, v, p, cidr, lease.Goal{Give: to}))
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
		errs = append(errs, t.to(ctx, v, p, b.CIDR, lease.Goal{Return: true, Now: t.stamp()}))
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
		free += u.Free
		if size = max(size, lease.Block{CIDR: u.CIDR}.Size()); p.Kind == record.Routed {
			size = max(1, p.Usable(u.CIDR))
		}
	}
	perSecond := float64(t.Ledger.Demand(p.UUID)) / 2
	if lease.Low(free, size, perSecond) {
		return t.more(ctx, v, p, set, me)
	}
	var errs []error
	leased := func() float64 { return share(v, p, set) }
	for _, cidr := range lease.Spare(uses, size, perSecond, leased, t.now().Sub(t.attached[p.UUID])) {
		errs = append(errs, t.to(ctx, v, p, cidr, lease.Goal{Return: true, Now: t.stamp()}))
	}
	return errors.Join(errs...)
}

// share is that of a range set's addresses which nodes have.
func share(v *registry.View, p record.Pool, set int) float64 {
	n := 0
	for s := range v.Each(p, set) {
		for _, count := range p.Nodes(s.Block) {
			n += count
		}
	}
	return float64(n) / float64(max(1, p.Sets[set].Size()))
}

// more leases ahead: nobody waits, so nobody is asked.
func (t *Trader) more(ctx context.Context, v *registry.View, p record.Pool, set int, me lease.Node) error {
	search, err := v.Search(p, set, lease.Search{Node: me, Now: t.now(), Attempt: t.refused[p.UUID].swaps})
	if err != nil {
		return err
	}
	found := search.Find()
	if !found.CIDR.IsValid() || v.Room(p.UUID, int64(p.Usable(found.CIDR))) != nil {
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
		if b.Lent != "" {
			continue // it is neither here for an ADD, nor does it say that there are any
		}
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
		// A time to come is of a clock that was put back since.
		if at, known := t.used[b.CIDR]; !known || u.Free < u.Mine || at.After(now) {
			t.used[b.CIDR] = now
		}
		if at, known := t.attached[p.UUID]; !known || u.Free < u.Mine || at.After(now) {
			t.attached[p.UUID] = now
		}
		u.Idle = now.Sub(t.used[b.CIDR])
		uses = append(uses, u)
	}
	return uses
}
