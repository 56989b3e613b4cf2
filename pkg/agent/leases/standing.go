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
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// rememberEvery is how often the revision of the registry is written down; each
// time costs a durable transaction.
const rememberEvery = 10 * time.Second

// StandingError is returned by Round when a node must not trade. What it leases
// stays its own, but where it was removed.
type StandingError struct{ Standing lease.Standing }

func (e *StandingError) Error() string {
	switch e.Standing {
	case lease.Frozen, lease.Freezing:
		return "the registry has gone back to before what nodes have seen of it; nothing is traded until an operator says: underlayctl registry recovered"
	case lease.Asserting, lease.Waiting:
		return "nothing is traded before every node has said, in a way that can be read, what it has since the registry was recovered; underlayctl registry status shows who has not"
	case lease.Removed:
		return "this node was removed from the cluster"
	}
	return fmt.Sprintf("nothing is traded: standing %d", e.Standing)
}

// CNICode asks the runtime to try again later.
func (e *StandingError) CNICode() uint { return ipam.CodeTryAgainLater }

// stand compares the registry with what the ledger remembers of it, and does
// what it takes to be Trading, as far as it is this node's to do.
func (t *Trader) stand(ctx context.Context, v *registry.View, me lease.Node) error {
	past, err := t.Ledger.Past()
	if err != nil {
		return err
	}
	now := v.Present(me)
	switch s := lease.Stand(past, now); s {
	case lease.Trading:
		if now.Rev <= past.Rev || t.now().Sub(t.remembered).Abs() < rememberEvery {
			return nil
		}
		return t.remember(now)
	case lease.Joining:
		return t.remember(now)
	case lease.Freezing:
		err := t.Registry.Freeze(ctx, *report(me, past, now, ""))
		return errors.Join(&StandingError{s}, err)
	case lease.Asserting:
		if err := t.assert(ctx, v, me); err != nil {
			return fmt.Errorf("say again what this node has: %w", err)
		}
		if err := t.remember(now); err != nil {
			return err
		}
		// Whoever runs this enrolls the node again with the new epoch.
		return &StandingError{s}
	default:
		return &StandingError{s}
	}
}

// trading returns a StandingError while this node must not trade, for an ADD that
// comes between two rounds: what is to be done about it is the round's.
func (t *Trader) trading(v *registry.View, me lease.Node) error {
	past, err := t.Ledger.Past()
	if err != nil {
		return err
	}
	if s := lease.Stand(past, v.Present(me)); s != lease.Trading {
		return &StandingError{s}
	}
	return nil
}

// Return compares a list of the registry with all that this node knows of it, for
// a node that has not written to it since it lost it: each write moves the
// registry on, and may hide that it went back. highest is the
// highest revision that the node has heard of. It reports what Freeze is to say, or nil.
func (t *Trader) Return(v *registry.View, highest lease.Rev) (*record.Frozen, error) {
	me, err := t.Ledger.Node()
	if err != nil {
		return nil, err
	}
	past, err := t.Ledger.Past()
	if err != nil {
		return nil, err
	}
	now := v.Present(me)
	if past.Cluster == "" || past.Cluster != now.Cluster || past.Epoch != now.Epoch {
		return nil, nil // stand knows about these
	}
	past.Rev = max(past.Rev, highest)
	older := ""
	for _, p := range v.Pools {
		blocks, err := t.Ledger.Blocks(p.Value.UUID)
		if err != nil {
			return nil, err
		}
		for _, b := range blocks {
			past.Rev = max(past.Rev, b.Rev)
			if s := seen(v, p.Value.UUID, b.CIDR); s.Rev < b.Rev && !v.Unreadable(p.Value.UUID, b.CIDR) {
				older = fmt.Sprintf("; block %s was at %d, and is at %d", b.CIDR, b.Rev, s.Rev)
			}
		}
	}
	if now.Rev >= past.Rev && older == "" {
		return nil, nil
	}
	return report(me, past, now, older), nil
}

func report(me lease.Node, past lease.Past, now lease.Present, more string) *record.Frozen {
	return &record.Frozen{
		Node: me, Cluster: past.Cluster, Epoch: past.Epoch.Number, Rev: past.Rev,
		Reason: fmt.Sprintf("it was at revision %d of epoch %d, and is at revision %d of epoch %d%s", past.Rev, past.Epoch.Number, now.Rev, now.Epoch.Number, more),
	}
}

func (t *Trader) remember(now lease.Present) error {
	t.remembered = t.now()
	return t.Ledger.Remember(lease.Past{Cluster: now.Cluster, Epoch: now.Epoch, Rev: now.Rev})
}

// assert brings the records of all blocks into line with the ledger.
func (t *Trader) assert(ctx context.Context, v *registry.View, me lease.Node) error {
	known, err := t.Ledger.Pools()
	if err != nil {
		return err
	}
	pools := map[string]bool{}
	for _, p := range known {
		if p.UUID != "" {
			pools[p.UUID] = true
		}
	}
	for uuid := range v.Blocks {
		pools[uuid] = true
	}
	var errs []error
	for _, uuid := range slices.Sorted(maps.Keys(pools)) {
		blocks, err := t.Ledger.Blocks(uuid)
		if err != nil {
			return err
		}
		mine := map[netip.Prefix]bool{}
		for _, b := range blocks {
			mine[b.CIDR] = true
		}
		for _, s := range v.Named(uuid, me) {
			mine[s.Block.CIDR] = true
		}
		for _, cidr := range slices.SortedFunc(maps.Keys(mine), netip.Prefix.Compare) {
			errs = append(errs, t.assertBlock(ctx, uuid, cidr))
		}
	}
	return errors.Join(errs...)
}

func (t *Trader) assertBlock(ctx context.Context, pool string, cidr netip.Prefix) error {
	for range maxSteps {
		// What a view has may be of before the recovery.
		s, err := t.Registry.Block(ctx, pool, cidr)
		if err != nil {
			return err
		}
		b, err := t.Ledger.Book(pool, cidr)
		if err != nil {
			return err
		}
		switch step := lease.NextAssert(b, s); step.Do {
		case lease.Rest:
			return nil
		case lease.Adopt:
			return t.Ledger.Adopt(pool, s)
		default:
			t.Registry.Send(ctx, pool, step) // whatever came of it, it is read again
		}
	}
	return fmt.Errorf("block %s: %w", cidr, errBusy)
}
