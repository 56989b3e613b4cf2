package leases

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// HolderError is returned when a sticky owner waits for an address that it still
// uses on another node.
type HolderError struct {
	Owner  string
	Addr   netip.Addr
	Holder lease.Node
	// Name of the node, "" where it is not known.
	Name string
}

func (e *HolderError) Error() string {
	return fmt.Sprintf("%q still has %s on node %q (%s); it can have it here when it is released there", e.Owner, e.Addr, e.Name, e.Holder)
}

// CNICode asks the runtime to try again later.
func (e *HolderError) CNICode() uint { return ipam.CodeTryAgainLater }

// Need takes one step to where an ADD finds an address of a range set: it leases
// or claims, or asks the other nodes. It is for an ADD that got none, and comes
// before the ledger's choice where a sticky owner may have its address elsewhere:
// the ledger knows this node alone. got is true when it is worth while to
// allocate. Without it, and without an error, look again soon, and LetGo when the
// ADD waits no more.
func (t *Trader) Need(ctx context.Context, v *registry.View, p record.Pool, set int, owner string) (got bool, err error) {
	me, err := t.Ledger.Node()
	if err != nil {
		return false, err
	}
	if err := t.trading(v, me); err != nil {
		return false, err
	}
	if err := t.tend(ctx, v, p, me); err != nil {
		return false, err
	}
	own, free, err := t.freeIn(p, set, owner)
	if own || err != nil {
		return own, err
	}
	full, err := noRoom(v, p, set)
	if err != nil {
		return false, err
	}
	search, err := v.Search(p, set, lease.Search{Node: me, Key: owner, Now: t.now(), Waiting: true, Full: full != nil, Attempt: t.refused[p.UUID]})
	if err != nil {
		return false, err
	}
	found := search.Find()
	switch {
	case free && !found.Addr.IsValid():
		return true, nil // the owner has nothing anywhere
	case found.Holder != "":
		return false, &HolderError{owner, found.Addr, found.Holder, v.Nodes[found.Holder].Value.Name}
	case found.CIDR.IsValid():
		if err := v.Room(p.UUID, 1); err != nil {
			return false, err
		}
		if err := t.to(ctx, v, p, found.CIDR, found.Goal); err != nil {
			return false, err
		}
		own, free, err := t.freeIn(p, set, owner)
		return own || free, err
	case found.Ask:
		if err := t.ask(ctx, v, p, set, me); err != nil || full == nil {
			return false, err
		}
		return false, full
	}
	return false, full // of a routed pool nobody gives anything
}

// noRoom says why no whole block of a range set may be leased, if it is for the
// quota: addresses that other nodes have are none that it limits.
func noRoom(v *registry.View, p record.Pool, set int) (full, err error) {
	first := p.Sets[set][0].First
	size := lease.Block{CIDR: netip.PrefixFrom(first, p.Bits(first))}.Size()
	if p.Kind == record.Routed {
		size = p.Usable(netip.PrefixFrom(first, p.Bits(first)).Masked())
	}
	err = v.Room(p.UUID, int64(size))
	if errors.As(err, new(*registry.QuotaError)) {
		return err, nil
	}
	return nil, err
}

// Fetch takes one step to where this node has the address that an ADD asks for by
// name. The error is an *ipam.TakenError while it is another node's, or kept for
// another owner.
func (t *Trader) Fetch(ctx context.Context, v *registry.View, p record.Pool, a netip.Addr, owner string) (got bool, err error) {
	me, err := t.Ledger.Node()
	if err != nil {
		return false, err
	}
	if err := t.trading(v, me); err != nil {
		return false, err
	}
	cidr := netip.PrefixFrom(a, p.Bits(a)).Masked()
	s, err := t.Registry.Block(ctx, p.UUID, cidr)
	if err != nil {
		return false, err
	}
	put(v, p, s)
	goal, more := lease.Goal{}, 1
	e, given := s.Block.Given[a]
	switch {
	case s.Block.Has(me, a):
	case p.Kind == record.Routed && s.Block.Owner == "" && s.Block.Sole(me):
		goal, more = lease.Goal{Lease: true}, p.Usable(cidr)
	case p.Kind == record.Routed:
		return false, &ipam.TakenError{Addr: a, State: ipam.Elsewhere, Holder: holder(v, s.Block, e)}
	case !given && s.Block.Owner == "":
		goal.Lease = true
	case given && e.Node == "" && (e.Key == "" || e.Key == owner || p.Sticky == ipam.NotSticky || e.Over(t.now(), p.StickyFor)):
		goal.Claim = map[netip.Addr]string{a: owner}
	default:
		return false, &ipam.TakenError{Addr: a, State: ipam.Elsewhere, Holder: holder(v, s.Block, e)}
	}
	if goal.Lease || goal.Claim != nil {
		if err := v.Room(p.UUID, int64(more)); err != nil {
			return false, err
		}
	}
	if err := t.to(ctx, v, p, cidr, goal); err != nil {
		return false, err
	}
	return v.Blocks[p.UUID][cidr].Block.Has(me, a), nil
}

func holder(v *registry.View, b lease.Block, e lease.Entry) string {
	n := e.Node
	switch {
	case n == "" && e.Key != "":
		return fmt.Sprintf("it is kept for %q", e.Key)
	case n == "":
		n = b.Owner
	}
	return fmt.Sprintf("node %q (%s) has it", v.Nodes[n].Value.Name, n)
}

// Settle brings to an end what was begun in a pool, and writes into the registry
// which sticky owners have an address here.
func (t *Trader) Settle(ctx context.Context, v *registry.View, p record.Pool) error {
	me, err := t.Ledger.Node()
	if err != nil {
		return err
	}
	if err := t.trading(v, me); err != nil {
		return err
	}
	return t.tend(ctx, v, p, me)
}

// ask raises the flag for this node, and again when the last one was answered,
// and what came of it is used up, or was for another range set.
func (t *Trader) ask(ctx context.Context, v *registry.View, p record.Pool, set int, me lease.Node) error {
	blocks := v.SeenOf(p, set)
	w, up := v.Wants[p.UUID][me]
	if up && w.Set == set && !w.Answered(blocks) {
		return nil
	}
	if up {
		if err := t.LetGo(ctx, v, p); err != nil {
			return err
		}
	}
	have := 0
	for _, s := range blocks {
		have += s.Block.Nodes()[me]
	}
	// Refused or not, one is up then.
	a := t.Registry.Raise(ctx, t.Session, p.UUID, me, set, have)
	if a.Outcome == registry.Applied {
		if v.Wants[p.UUID] == nil {
			v.Wants[p.UUID] = map[lease.Node]lease.Want{}
		}
		v.Wants[p.UUID][me] = lease.Want{Node: me, Set: set, Have: have, Rev: a.Rev}
	}
	return a.Err
}

// LetGo takes down the flag that Need may have raised.
func (t *Trader) LetGo(ctx context.Context, v *registry.View, p record.Pool) error {
	me, err := t.Ledger.Node()
	if err != nil {
		return err
	}
	delete(v.Wants[p.UUID], me)
	return t.Registry.Lower(ctx, p.UUID, me)
}

// freeIn reports whether an owner can be given something of a range set on this
// node at once: what it had last, or anything.
func (t *Trader) freeIn(p record.Pool, set int, owner string) (own, free bool, err error) {
	spares, err := t.Ledger.Spares(p.UUID, maxSpares)
	for _, s := range spares {
		if _, usable := p.Sets[set].Find(s.Address); usable {
			own = own || owner != "" && s.Owner == owner
			free = free || !s.Strict || s.Owner == owner
		}
	}
	return own, free, err
}
