// Package leases is the agent's part in cluster pools: it brings the ledger of
// this node and the registry together, block by block, as package lease says.
//
//   - What was begun goes before what is wanted, also what another process of
//     this node has begun.
//   - Work on one block is serial. A swap that was refused, or of which nobody
//     knows what became, is followed by a linearizable read of the record.
//   - Nothing here decides what is whose: that is the registry's record, and what
//     a node may give out is the ledger's.
//
// Left out: the protocol (ipam/lease), what operators do (ipam/registry).
package leases

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// maxSteps bounds the way to one goal; a refused swap is a step, too.
const maxSteps = 32

// errBusy is returned when a goal was not reached in maxSteps: others change the
// same record all the time, and it is somebody else's turn.
var errBusy = errors.New("others change the block all the time")

// Trader takes the steps of one node. Its methods must not be called at the same
// time.
type Trader struct {
	// Ledger of the node; required.
	Ledger *ledger.Ledger
	// Registry; required.
	Registry registry.Registry
	// Session that flags are raised in; required for Need.
	Session registry.Session
	// Now is the wall clock; default time.Now.
	Now func() time.Time
	// Lost, unless nil, hears of addresses that are in use here, and another
	// node's by the registry.
	Lost func(pool record.Pool, addrs []netip.Addr)
	// Learned, unless nil, hears of each record that the ledger has taken in,
	// and what it had of the block before.
	Learned func(pool record.Pool, before lease.Book, s lease.Seen)

	// Loan is what this node lends; nil where nobody asks for anything to be.
	Loan *Loan

	refused map[string]refused // by pool
	// closed is why what was learned last is not to be used.
	closed error
	note   note
	memory
}

// refused counts swaps refused in a row, and how many it were when the records of
// the pool were read again.
type refused struct{ swaps, reread int }

// now keeps what the clock tells beside the time of day, so that a time which has
// passed is not another one after the clock was set.
func (t *Trader) now() time.Time {
	if t.Now != nil {
		return t.Now()
	}
	return time.Now()
}

// stamp is now for others to read.
func (t *Trader) stamp() time.Time { return t.now().UTC().Truncate(time.Second) }

// seen returns the record of a block as a view has it.
func seen(v *registry.View, pool string, cidr netip.Prefix) lease.Seen {
	if s, ok := v.Blocks[pool][cidr]; ok {
		return s
	}
	return lease.Seen{Block: lease.Block{CIDR: cidr}}
}

// act takes one step towards a goal for a block that was seen as s. It returns
// the block as it is known then, and whether there was a step to take.
func (t *Trader) act(ctx context.Context, p record.Pool, s lease.Seen, g lease.Goal) (next lease.Seen, more bool, err error) {
	b, err := t.Ledger.Book(p.UUID, s.Block.CIDR)
	if err != nil {
		return s, false, err
	}
	step := lease.Next(b, s, g)
	switch step.Do {
	case lease.Rest:
		return s, false, nil
	case lease.Learn:
		err = t.learn(ctx, p, b, s)
	case lease.Intend:
		err = t.Ledger.Intend(p.UUID, s, step.To)
		if errors.Is(err, lease.ErrInUse) {
			return s, true, nil // a plugin was faster
		}
	case lease.Send:
		sent, a := t.Registry.Send(ctx, p.UUID, step)
		if a.Outcome == registry.Applied {
			delete(t.refused, p.UUID)
			return sent, true, nil
		}
		if t.refused == nil {
			t.refused = map[string]refused{}
		}
		r := t.refused[p.UUID]
		t.refused[p.UUID] = refused{r.swaps + 1, r.reread}
		err = lease.ErrMoved
	case lease.Reread:
		err = lease.ErrMoved
	default:
		return s, false, fmt.Errorf("block %s: step %d is none of a trade", s.Block.CIDR, step.Do)
	}
	if errors.Is(err, lease.ErrMoved) || errors.Is(err, lease.ErrStale) || errors.Is(err, lease.ErrBehind) {
		s, err = t.Registry.Block(ctx, p.UUID, s.Block.CIDR)
	}
	return s, err == nil, err
}

// learn takes a record into the ledger. Whether the pool is open is judged by
// what the registry held at the record's revision or later.
func (t *Trader) learn(ctx context.Context, p record.Pool, before lease.Book, s lease.Seen) error {
	open := gains(before, s)
	if open {
		closed, err := t.Registry.Admit(ctx, p.Name, p.UUID, s.Rev)
		if err != nil {
			return err
		}
		if closed != nil {
			t.closed, open = closed, false
		}
	}
	lost, err := t.Ledger.Learn(p.UUID, s, open)
	if err == nil && len(lost) > 0 && t.Lost != nil {
		t.Lost(p, lost)
	}
	if err == nil && t.Learned != nil {
		t.Learned(p, before, s)
	}
	return err
}

// gains reports whether a record brings the node an address.
func gains(b lease.Book, s lease.Seen) (some bool) {
	if !s.Block.Names(b.Node) {
		return false
	}
	s.Block.Addrs(func(a netip.Addr) bool {
		_, known := b.Marks[a]
		some = !known && s.Block.Has(b.Node, a)
		return !some
	})
	return some
}

// drive takes all steps towards a goal. What it was to get and may not have, since
// the pool is closed or the quota used up, goes back, and the error says why.
func (t *Trader) drive(ctx context.Context, p record.Pool, s lease.Seen, g lease.Goal) (lease.Seen, error) {
	var refused error
	for range maxSteps {
		t.closed = nil
		next, more, err := t.act(ctx, p, s, g)
		if t.closed != nil && (g.Lease || g.Claim != nil) {
			refused, g = t.closed, lease.Goal{}
		}
		switch {
		case err != nil:
			return next, err
		case !more:
			return next, refused
		}
		s = next
	}
	return s, fmt.Errorf("block %s: %w", s.Block.CIDR, errBusy)
}
