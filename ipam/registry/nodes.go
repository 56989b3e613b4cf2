package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

var (
	// ErrNoNode is returned for a node that the registry does not know.
	ErrNoNode = errors.New("no such node")
	// ErrRemoved is returned for a node that an operator has removed.
	ErrRemoved = errors.New("the node was removed")
	// ErrCopied is returned to a node whose ledger is that of another machine, or
	// of another folder in the same boot.
	ErrCopied = errors.New("this ledger is a copy; remove the node that it belongs to, or start with a new ledger")
	// ErrLive is returned when a node is to be removed whose agent runs.
	ErrLive = errors.New("the node's agent is running; stop the node first")
	// ErrNoCluster is returned for a registry that nobody has opened yet.
	ErrNoCluster = errors.New("the registry says of no cluster that it is its own; restore it, or let a new node open it")
	// ErrNotEmpty is returned for a registry that has values, but does not say
	// which cluster it is.
	ErrNotEmpty = errors.New("the registry is not empty, and its cluster record is missing")
)

// Open reads the cluster's record, or makes it in an empty registry.
func (r Registry) Open(ctx context.Context) (c record.Cluster, err error) {
	err = r.edit(ctx, record.ClusterKey, func(i Item) ([]byte, error) {
		if i.Rev != 0 {
			c, err = record.DecodeCluster(i.Value)
			return nil, err
		}
		l, err := r.Store.List(ctx, record.Prefix)
		if err != nil {
			return nil, err
		}
		for _, item := range l.Items {
			if item.Key != record.ClusterKey {
				return nil, ErrNotEmpty
			}
		}
		c = record.Cluster{ID: record.NewUUID(), Epoch: lease.Epoch{Number: 1, ID: record.NewUUID()}}
		return record.EncodeCluster(c), nil
	})
	if err != nil {
		return record.Cluster{}, fmt.Errorf("open the registry: %w", err)
	}
	return c, nil
}

// Enroll writes what a node says of itself; an agent does so before anything
// else. Asserted only ever grows, and a node that knows none of its addresses
// keeps those that it had. ErrCopied is returned on another machine than
// the first, or in another folder within a boot: the agent of the ledger that it
// was copied from may only be dead, or cut off for longer than its session lasts,
// with its containers running.
func (r Registry) Enroll(ctx context.Context, n record.Node) error {
	gone, err := r.Store.Get(ctx, record.GoneFolder+string(n.Node))
	if err != nil {
		return err
	}
	if gone.Rev != 0 {
		return fmt.Errorf("node %s: %w", n.Node, ErrRemoved)
	}
	// One that nobody can read would keep all nodes from trading.
	if _, err := record.DecodeNode(record.EncodeNode(n)); err != nil {
		return err
	}
	return r.edit(ctx, record.NodeFolder+string(n.Node), func(i Item) ([]byte, error) {
		if i.Rev != 0 {
			old, err := record.DecodeNode(i.Value)
			if err != nil {
				return nil, err
			}
			if old.Machine != "" && old.Machine != n.Machine {
				return nil, fmt.Errorf("node %s is of machine %q: %w", n.Node, old.Machine, ErrCopied)
			}
			// Within a boot the containers of the one ledger are alive, whoever has
			// a session.
			if old.Boot != "" && old.Boot == n.Boot && old.Folder != n.Folder {
				return nil, fmt.Errorf("node %s has its ledger in another folder: %w", n.Node, ErrCopied)
			}
			n.Asserted = max(n.Asserted, old.Asserted)
			if len(n.Addresses) == 0 {
				n.Addresses = old.Addresses
			}
		}
		value := record.EncodeNode(n)
		if string(value) == string(i.Value) {
			return nil, nil
		}
		return value, nil
	})
}

// Remove leaves a tombstone for a node that is off: its UUID is never used
// again, and its addresses are freed by Sweep after they have rested.
func (r Registry) Remove(ctx context.Context, n lease.Node, rest time.Duration) error {
	v, err := r.View(ctx)
	if err != nil {
		return err
	}
	live, err := r.Store.Get(ctx, record.LiveFolder+string(n))
	if err != nil {
		return err
	}
	if live.Bound {
		if _, why := record.DecodeLive(live.Value); why != nil {
			// A sign of life that cannot be read is one all the same.
			return fmt.Errorf("node %s: %w: %w", n, ErrUnread, why)
		}
		return fmt.Errorf("node %s: %w", n, ErrLive)
	}
	node, known := v.Nodes[n]
	if !known && len(v.named(n)) == 0 && !slices.Contains(v.UnreadNodes(), n) {
		return fmt.Errorf("node %s: %w", n, ErrNoNode)
	}
	return r.edit(ctx, record.GoneFolder+string(n), func(i Item) ([]byte, error) {
		if i.Rev != 0 {
			return nil, nil
		}
		return record.EncodeGone(record.Gone{Node: n, Name: node.Value.Name, Rest: rest, At: r.now()}), nil
	})
}

// named lists the pools and blocks that name a node.
func (v *View) named(n lease.Node) map[string][]lease.Seen {
	out := make(map[string][]lease.Seen)
	for pool, blocks := range v.Blocks {
		for _, s := range blocks {
			if s.Block.Names(n) {
				out[pool] = append(out[pool], s)
			}
		}
	}
	return out
}

// Sweep takes blocks and addresses from a removed node, each by a swap of its
// own, and its parts in segments, and forgets the node when nothing is left. Anybody may call it, and
// again: a late request of the node may bring something back. left counts the
// blocks that still name it, because others changed them or they cannot be
// read.
func (r Registry) Sweep(ctx context.Context, n lease.Node) (left int, err error) {
	v, err := r.View(ctx)
	if err != nil {
		return 0, err
	}
	if _, gone := v.Gone[n]; !gone {
		return 0, fmt.Errorf("node %s was not removed, so nothing is taken from it", n)
	}
	for key := range v.Unread {
		if strings.HasPrefix(key, record.BlockFolder) {
			left++
		}
	}
	var errs []error
	for pool, blocks := range v.named(n) {
		for _, s := range blocks {
			next, _ := s.Block.Strip(func(x lease.Node) bool { return x == n }, r.now())
			_, a := r.Send(ctx, pool, lease.Step{Do: lease.Send, Block: next, Rev: s.Rev})
			if a.Outcome != Applied {
				left++
				errs = append(errs, fmt.Errorf("block %s: %w", s.Block.CIDR, a.err()))
			}
		}
	}
	if err = r.leaveSegments(ctx, n); left == 0 && err == nil {
		err = r.remove(ctx, record.NodeFolder+string(n))
	}
	return left, errors.Join(append(errs, err)...)
}

// Freeze reports that the registry was further than it is. Nobody changes
// what is whose from then on, until Recover. The node has to Enroll before, or
// nobody would wait for it then.
func (r Registry) Freeze(ctx context.Context, f record.Frozen) error {
	return r.edit(ctx, record.ClusterKey, func(i Item) ([]byte, error) {
		if i.Rev == 0 {
			return nil, ErrNoCluster
		}
		c, err := record.DecodeCluster(i.Value)
		if err != nil {
			return nil, err
		}
		if old := c.Frozen; old != nil {
			if f.Epoch <= old.Epoch && f.Rev <= old.Rev {
				return nil, nil
			}
			f = record.Frozen{Node: old.Node, Reason: old.Reason, Cluster: old.Cluster, Epoch: max(f.Epoch, old.Epoch), Rev: max(f.Rev, old.Rev)}
		}
		c.Frozen = &f
		return record.EncodeCluster(c), nil
	})
}

// Recover begins a new epoch, on the word of an operator, for the cluster that
// the first report names: a registry made anew takes its place. Revisions go on
// above all that were reported, so that nothing compares equal that is not;
// then each known node asserts what it has, or is removed, and only then is
// anything traded again.
func (r Registry) Recover(ctx context.Context) (epoch lease.Epoch, err error) {
	err = r.edit(ctx, record.ClusterKey, func(i Item) ([]byte, error) {
		if i.Rev == 0 {
			return nil, ErrNoCluster
		}
		c, err := record.DecodeCluster(i.Value)
		if err != nil {
			return nil, err
		}
		epoch = lease.Epoch{Number: c.Epoch.Number + 1, ID: record.NewUUID()}
		if f := c.Frozen; f != nil {
			epoch.Number = max(epoch.Number, f.Epoch+1)
			if f.Cluster != "" {
				c.ID = f.Cluster
			}
			// Each write moves the store on by one. Our own record is as good
			// as any, and is not changed by it.
			for i.Rev <= f.Rev {
				a := r.Store.Swap(ctx, record.ClusterKey, i.Rev, i.Value)
				if a.Outcome != Applied {
					return nil, a.err()
				}
				i.Rev = a.Rev
			}
		}
		c.Epoch, c.Frozen = epoch, nil
		return record.EncodeCluster(c), nil
	})
	if err != nil {
		return lease.Epoch{}, fmt.Errorf("recover the registry: %w", err)
	}
	return epoch, nil
}
