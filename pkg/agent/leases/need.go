package leases

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

const (
	// answerTime is how long an answer takes at most, from when the flag is taken
	// down until the address is seen here.
	answerTime = 3 * time.Second
	// lookEvery is how often a node looks whether its flag is up: where many start
	// at once the watch tells of that late.
	lookEvery = time.Second
	// crowded is after how many more refused swaps all records of the pool are
	// read again: what is known of them is old, and to find that out one by one
	// takes everybody longer.
	crowded = 2
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
	if r := t.refused[p.UUID]; r.swaps-r.reread >= crowded {
		if err := t.Registry.Refresh(ctx, v, p.UUID); err != nil {
			return false, err
		}
		t.refused[p.UUID] = refused{r.swaps, r.swaps}
	}
	full, err := noRoom(v, p, set)
	if err != nil {
		return false, err
	}
	search, err := v.Search(p, set, lease.Search{Node: me, Key: owner, Now: t.now(), Waiting: true, Full: full != nil, Attempt: t.refused[p.UUID].swaps})
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
	v.Learn(p.UUID, s)
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

// asked is the flag that this node has raised, when it looked whether that is up,
// and since when it is not.
type asked struct {
	lease.Want
	looked, taken time.Time
}

// ask raises the flag for this node, and again when the last one was answered,
// and what came of it is used up, or was for another range set. One that somebody
// took down is about to be answered.
func (t *Trader) ask(ctx context.Context, v *registry.View, p record.Pool, set int, me lease.Node) error {
	blocks := v.SeenOf(p, set)
	w, up := v.Wants[p.UUID][me]
	last, raised := t.asked[p.UUID]
	switch {
	case up && w.Set == set && !w.Answered(blocks):
		if !raised || t.now().Sub(last.looked).Abs() < lookEvery {
			return nil
		}
		up, err := t.Registry.Raised(ctx, p.UUID, w)
		if err != nil {
			return err
		}
		last.looked = t.now()
		t.asked[p.UUID] = last
		if up {
			return nil
		}
		delete(v.Wants[p.UUID], me)
		return t.Registry.Refresh(ctx, v, p.UUID)
	case up:
		if err := t.LetGo(ctx, v, p.UUID); err != nil {
			return err
		}
	case raised && last.Set == set && !last.Answered(blocks):
		if last.taken.IsZero() {
			last.taken = t.now()
			t.asked[p.UUID] = last
		}
		if t.now().Sub(last.taken).Abs() < answerTime {
			return nil
		}
		if err := t.Registry.Refresh(ctx, v, p.UUID); err != nil {
			return err
		}
		if blocks = v.SeenOf(p, set); last.Answered(blocks) {
			return nil
		}
	}
	have := 0
	for _, s := range blocks {
		have += s.Block.Nodes()[me]
	}
	// Refused or not, one is up then.
	a := t.Registry.Raise(ctx, t.Session, p.UUID, me, set, have)
	if a.Outcome == registry.Applied {
		if t.asked == nil {
			t.asked = map[string]asked{}
		}
		if v.Wants[p.UUID] == nil {
			v.Wants[p.UUID] = map[lease.Node]lease.Want{}
		}
		w = lease.Want{Node: me, Set: set, Have: have, Rev: a.Rev}
		v.Wants[p.UUID][me], t.asked[p.UUID] = w, asked{Want: w, looked: t.now()}
	}
	return a.Err
}

// LetGo takes down the flag that Need may have raised for a pool, by its UUID.
func (t *Trader) LetGo(ctx context.Context, v *registry.View, pool string) error {
	me, err := t.Ledger.Node()
	if err != nil {
		return err
	}
	delete(v.Wants[pool], me)
	delete(t.asked, pool)
	return t.Registry.Lower(ctx, pool, me)
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
