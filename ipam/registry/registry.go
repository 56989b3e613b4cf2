package registry

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// Registry is what nodes and operators do, on a store.
type Registry struct {
	Store Store
	// Now is the wall clock, for what people read and for parked addresses;
	// default time.Now.
	Now func() time.Time
}

var (
	// ErrUnknown is returned when nobody can say whether a change was made.
	ErrUnknown = errors.New("the outcome is unknown; look again before you repeat it")
	// ErrMoved is returned when somebody else changed the same record at the
	// same moment.
	ErrMoved = errors.New("somebody else has changed it meanwhile")
	// ErrUnbound is why a flag is not read that somebody put there who is no
	// agent.
	ErrUnbound = errors.New("goes with no agent's session, so that nobody waits for an answer to it")
)

func (r Registry) now() time.Time {
	if r.Now != nil {
		return r.Now().UTC().Truncate(time.Second)
	}
	return time.Now().UTC().Truncate(time.Second)
}

// err turns an answer into what a person is told.
func (a Answer) err() error {
	switch a.Outcome {
	case Applied:
		return nil
	case Refused:
		return ErrMoved
	}
	if a.Err != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, a.Err)
	}
	return ErrUnknown
}

// View reads all of the registry.
func (r Registry) View(ctx context.Context) (*View, error) {
	l, err := r.Store.List(ctx, record.Prefix)
	if err != nil {
		return nil, fmt.Errorf("list the registry: %w", err)
	}
	return NewView(l), nil
}

// Refresh reads the blocks of a pool into a view, where they are newer than what
// it has: for decisions that cannot wait for the watch.
func (r Registry) Refresh(ctx context.Context, v *View, pool string) error {
	l, err := r.Store.List(ctx, record.BlockFolder+pool+"/")
	if err != nil {
		return fmt.Errorf("list the blocks of pool %s: %w", pool, err)
	}
	p, known := v.Pool(pool)
	for _, i := range l.Items {
		_, cidr, ok := record.ParseBlockKey(i.Key)
		if known && cidr.Bits() != p.Value.Bits(cidr.Addr()) {
			continue // View.sift says so
		}
		if !ok || i.Rev <= v.Blocks[pool][cidr].Rev || v.Unread[i.Key] != nil {
			continue // the watch tells when that can be read
		}
		if b, err := record.DecodeBlock(i.Value); err == nil && b.CIDR == cidr {
			v.Learn(pool, lease.Seen{Block: b, Rev: i.Rev})
		} else {
			v.Apply(Batch{Items: []Item{i}}) // says why it is skipped
		}
	}
	return nil
}

// Block reads the record of a block; one that was never written is of
// revision 0.
func (r Registry) Block(ctx context.Context, pool string, cidr netip.Prefix) (lease.Seen, error) {
	item, err := r.Store.Get(ctx, record.BlockKey(pool, cidr))
	if err != nil {
		return lease.Seen{}, fmt.Errorf("read block %s: %w", cidr, err)
	}
	if item.Rev == 0 {
		return lease.Seen{Block: lease.Block{CIDR: cidr}}, nil
	}
	b, err := record.DecodeBlock(item.Value)
	if err != nil {
		return lease.Seen{}, fmt.Errorf("block %s: %w", cidr, err)
	}
	return lease.Seen{Block: b, Rev: item.Rev}, nil
}

// Send does what a lease.Step of that name says. seen is the record from then
// on if the answer is Applied; else it has to be read again.
func (r Registry) Send(ctx context.Context, pool string, step lease.Step) (seen lease.Seen, a Answer) {
	value, err := record.EncodeBlock(step.Block)
	if err != nil {
		return lease.Seen{}, Answer{Outcome: Refused, Err: err}
	}
	a = r.Store.Swap(ctx, record.BlockKey(pool, step.Block.CIDR), step.Rev, value)
	if a.Outcome != Applied {
		return lease.Seen{}, a
	}
	return lease.Seen{Block: step.Block, Rev: a.Rev}, a
}

// Alive lists the nodes whose agent runs, or did so a moment ago.
func (r Registry) Alive(ctx context.Context) (map[lease.Node]bool, error) {
	l, err := r.Store.List(ctx, record.LiveFolder)
	if err != nil {
		return nil, fmt.Errorf("list who is alive: %w", err)
	}
	alive := make(map[lease.Node]bool, len(l.Items))
	for _, i := range l.Items {
		// One that cannot be read is a sign of life all the same; one that goes
		// with no session is none.
		if !i.Bound {
			continue
		}
		alive[lease.Node(strings.TrimPrefix(i.Key, record.LiveFolder))] = true
	}
	return alive, nil
}

// Bind opens the session of an agent. ErrTaken is returned while another agent
// has a session on the same UUID: one with a copy of the ledger, or with this
// very ledger before a reboot. Then wait until its time is over.
func (r Registry) Bind(ctx context.Context, live record.Live, ttl time.Duration) (Session, error) {
	s, err := r.Store.Bind(ctx, record.LiveFolder+string(live.Node), record.EncodeLive(live), ttl, func(value []byte) bool {
		other, err := record.DecodeLive(value)
		return err == nil && other.Same(live)
	})
	if errors.Is(err, ErrTaken) {
		err = fmt.Errorf("%w: an agent with a copy of this ledger, or this node's own before it booted, which is over in %s", err, ttl)
	}
	if err != nil {
		return nil, fmt.Errorf("open the session of node %s: %w", live.Node, err)
	}
	return s, nil
}

// Raise raises a node's flag for a range set of a pool, in its session; have is
// what the registry shows as the node's in it at the moment. The flag is lowered with Lower
// or by the end of the session. One that is up already stays as it is.
func (r Registry) Raise(ctx context.Context, s Session, pool string, n lease.Node, set, have int) Answer {
	key, w := record.WantKey(pool, n), record.Want{Node: n, Pool: pool, Set: set, Have: have}
	a := s.Swap(ctx, key, 0, record.EncodeWant(w))
	if a.Outcome != Refused {
		return a
	}
	// It may be in the place of one that goes with no session, and is nobody's.
	item, err := r.Store.Get(ctx, key)
	if err != nil {
		return Answer{Err: err}
	}
	if item.Rev == 0 || item.Bound {
		return a
	}
	return s.Swap(ctx, key, item.Rev, record.EncodeWant(w))
}

// Raised reports whether a flag is still up.
func (r Registry) Raised(ctx context.Context, pool string, w lease.Want) (bool, error) {
	item, err := r.Store.Get(ctx, record.WantKey(pool, w.Node))
	return item.Rev == w.Rev, err
}

// Wants reads which flags are up for a pool.
func (r Registry) Wants(ctx context.Context, pool string) (map[lease.Node]lease.Want, error) {
	l, err := r.Store.List(ctx, record.WantFolder+pool+"/")
	if err != nil {
		return nil, fmt.Errorf("list the flags of pool %s: %w", pool, err)
	}
	return NewView(l).Wants[pool], nil
}

// Take takes a flag down for the node that is going to answer it: of all that
// would, mine is true for one.
func (r Registry) Take(ctx context.Context, pool string, w lease.Want) (mine bool, err error) {
	switch a := r.Store.Delete(ctx, record.WantKey(pool, w.Node), w.Rev); a.Outcome {
	case Applied:
		return true, nil
	case Refused:
		return false, nil
	default:
		return false, fmt.Errorf("take the flag of node %s: %w", w.Node, a.err())
	}
}

// Lower takes a flag down.
func (r Registry) Lower(ctx context.Context, pool string, n lease.Node) error {
	key := record.WantKey(pool, n)
	item, err := r.Store.Get(ctx, key)
	if err != nil || item.Rev == 0 {
		return err
	}
	return r.Store.Delete(ctx, key, item.Rev).err()
}

// Drop removes a key that goes with no session, of a folder whose keys all do.
func (r Registry) Drop(ctx context.Context, key string) error {
	item, err := r.Store.Get(ctx, key)
	if err != nil || item.Rev == 0 || item.Bound {
		return err
	}
	if a := r.Store.Delete(ctx, key, item.Rev); a.Outcome == Unknown {
		return a.err()
	}
	return nil
}

// edit changes one record, again as long as others get in between. f gets
// what is there, Rev 0 if nothing is, and returns what is to be there: nil for
// no change.
func (r Registry) edit(ctx context.Context, key string, f func(Item) ([]byte, error)) error {
	for {
		item, err := r.Store.Get(ctx, key)
		if err != nil {
			return err
		}
		value, err := f(item)
		if err != nil || value == nil {
			return err
		}
		if a := r.Store.Swap(ctx, key, item.Rev, value); a.Outcome != Refused {
			return a.err()
		}
	}
}

// remove deletes one record; that it is not there is no error.
func (r Registry) remove(ctx context.Context, key string) error {
	for {
		item, err := r.Store.Get(ctx, key)
		if err != nil || item.Rev == 0 {
			return err
		}
		if a := r.Store.Delete(ctx, key, item.Rev); a.Outcome != Refused {
			return a.err()
		}
	}
}
