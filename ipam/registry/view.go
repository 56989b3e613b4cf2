package registry

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// Kept is a record with its revision.
type Kept[T any] struct {
	Value T
	Rev   lease.Rev
}

// View is all of the registry at one moment, but for who is alive.
type View struct {
	// Rev of the moment.
	Rev lease.Rev
	// Cluster is of revision 0 in a registry that nobody has opened yet.
	Cluster Kept[record.Cluster]
	// Pools, Networks and Tenants by name.
	Pools    map[string]Kept[record.Pool]
	Networks map[string]Kept[record.Network]
	Tenants  map[string]Kept[record.Tenant]
	Nodes    map[lease.Node]Kept[record.Node]
	Gone     map[lease.Node]Kept[record.Gone]
	// Blocks and Wants by the UUID of their pool.
	Blocks map[string]map[netip.Prefix]lease.Seen
	Wants  map[string]map[lease.Node]lease.Want
	// Unread has, by key, why a value was skipped. What it stands for is
	// unknown, which is not the same as absent.
	Unread map[string]error
	// Untold is of records that came by another way than the watch, and before
	// it: it is told with the next batch, which brings them again.
	Untold News
}

// NewView makes a view of a full list.
func NewView(l List) *View {
	v := &View{
		Pools:    make(map[string]Kept[record.Pool]),
		Networks: make(map[string]Kept[record.Network]),
		Tenants:  make(map[string]Kept[record.Tenant]),
		Nodes:    make(map[lease.Node]Kept[record.Node]),
		Gone:     make(map[lease.Node]Kept[record.Gone]),
		Blocks:   make(map[string]map[netip.Prefix]lease.Seen),
		Wants:    make(map[string]map[lease.Node]lease.Want),
		Unread:   make(map[string]error),
	}
	v.Apply(Batch(l))
	return v
}

// Apply takes in what has changed since.
func (v *View) Apply(b Batch) {
	for _, i := range b.Items {
		delete(v.Unread, i.Key)
		if err := v.apply(i); err != nil {
			v.Unread[i.Key] = err
		}
	}
	v.sift(b)
	v.Rev = max(v.Rev, b.Rev)
}

// sift skips, of what a batch has brought, blocks of another size than those of
// their pool: they overlap others, and so would whoever they name.
func (v *View) sift(b Batch) {
	var sizes map[string]record.Pool
	for _, i := range b.Items {
		pool, cidr, isBlock := record.ParseBlockKey(i.Key)
		name, isPool := strings.CutPrefix(i.Key, record.PoolFolder)
		switch {
		case isBlock && sizes == nil:
			sizes = make(map[string]record.Pool, len(v.Pools))
			for _, p := range v.Pools {
				sizes[p.Value.UUID] = p.Value
			}
			fallthrough
		case isBlock:
			if p, known := sizes[pool]; known {
				v.skip(p, cidr)
			}
		case isPool:
			p := v.Pools[name].Value
			for cidr := range v.Blocks[p.UUID] {
				v.skip(p, cidr)
			}
		}
	}
}

func (v *View) skip(p record.Pool, cidr netip.Prefix) {
	if bits := p.Bits(cidr.Addr()); cidr.Bits() == bits {
		return
	} else if _, there := v.Blocks[p.UUID][cidr]; there {
		delete(v.Blocks[p.UUID], cidr)
		v.Unread[record.BlockKey(p.UUID, cidr)] = fmt.Errorf("is none of the blocks of pool %q, which are of /%d", p.Name, bits)
	}
}

func (v *View) apply(i Item) error {
	rest := func(folder string) string { return strings.TrimPrefix(i.Key, folder) }
	in := func(folder string) bool { return strings.HasPrefix(i.Key, folder) }
	switch {
	case i.Key == record.ClusterKey:
		return one(&v.Cluster, i, record.DecodeCluster)
	case in(record.PoolFolder):
		return keep(v.Pools, rest(record.PoolFolder), i, record.DecodePool, func(p record.Pool) string { return p.Name })
	case in(record.NetworkFolder):
		return keep(v.Networks, rest(record.NetworkFolder), i, record.DecodeNetwork, func(n record.Network) string { return n.Name })
	case in(record.TenantFolder):
		return keep(v.Tenants, rest(record.TenantFolder), i, record.DecodeTenant, func(t record.Tenant) string { return t.Name })
	case in(record.NodeFolder):
		return keep(v.Nodes, lease.Node(rest(record.NodeFolder)), i, record.DecodeNode, func(n record.Node) lease.Node { return n.Node })
	case in(record.GoneFolder):
		// A tombstone that cannot be read is one all the same: the node of its
		// key was removed.
		n := lease.Node(rest(record.GoneFolder))
		err := keep(v.Gone, n, i, record.DecodeGone, func(g record.Gone) lease.Node { return g.Node })
		if err != nil {
			v.Gone[n] = Kept[record.Gone]{record.Gone{Node: n}, i.Rev}
		}
		return err
	case in(record.BlockFolder):
		return v.applyBlock(i)
	case in(record.WantFolder):
		return v.applyWant(i)
	}
	if i.Value == nil {
		return nil
	}
	return errors.New("nothing is known of such keys")
}

// one keeps the record of a key that is alone of its kind.
func one[T any](to *Kept[T], i Item, decode func([]byte) (T, error)) error {
	*to = Kept[T]{}
	if i.Value == nil {
		return nil
	}
	value, err := decode(i.Value)
	if err == nil {
		*to = Kept[T]{value, i.Rev}
	}
	return err
}

// keep keeps a record in a map. Its name must be that of its key.
func keep[K ~string, T any](m map[K]Kept[T], key K, i Item, decode func([]byte) (T, error), name func(T) K) error {
	delete(m, key)
	if i.Value == nil {
		return nil
	}
	value, err := decode(i.Value)
	if err != nil {
		return err
	}
	if name(value) != key {
		return fmt.Errorf("is the record of %q", name(value))
	}
	m[key] = Kept[T]{value, i.Rev}
	return nil
}

func (v *View) applyBlock(i Item) error {
	pool, cidr, ok := record.ParseBlockKey(i.Key)
	if !ok {
		return errors.New("the key names no block")
	}
	if v.Blocks[pool][cidr].Rev > i.Rev {
		return nil // it was read in a later state already
	}
	delete(v.Blocks[pool], cidr)
	if i.Value == nil {
		return nil
	}
	b, err := record.DecodeBlock(i.Value)
	if err != nil {
		return err
	}
	if b.CIDR != cidr {
		return fmt.Errorf("is the record of %s", b.CIDR)
	}
	if v.Blocks[pool] == nil {
		v.Blocks[pool] = make(map[netip.Prefix]lease.Seen)
	}
	v.Blocks[pool][cidr] = lease.Seen{Block: b, Rev: i.Rev}
	return nil
}

func (v *View) applyWant(i Item) error {
	pool, node, _ := strings.Cut(strings.TrimPrefix(i.Key, record.WantFolder), "/")
	delete(v.Wants[pool], lease.Node(node))
	if i.Value == nil {
		return nil
	}
	if !i.Bound {
		return ErrUnbound
	}
	w, err := record.DecodeWant(i.Value)
	if err != nil {
		return err
	}
	if record.WantKey(w.Pool, w.Node) != i.Key {
		return fmt.Errorf("is the flag of %s for %s", w.Node, w.Pool)
	}
	if v.Wants[pool] == nil {
		v.Wants[pool] = make(map[lease.Node]lease.Want)
	}
	v.Wants[pool][w.Node] = lease.Want{Node: w.Node, Set: w.Set, Have: w.Have, Rev: i.Rev}
	return nil
}

// Pool returns the pool with a UUID.
func (v *View) Pool(uuid string) (Kept[record.Pool], bool) {
	for _, p := range v.Pools {
		if p.Value.UUID == uuid {
			return p, true
		}
	}
	return Kept[record.Pool]{}, false
}

// Seen lists the records of a pool's blocks.
func (v *View) Seen(pool string) []lease.Seen {
	return slices.SortedFunc(maps.Values(v.Blocks[pool]), func(a, b lease.Seen) int { return a.Block.CIDR.Compare(b.Block.CIDR) })
}

// Named lists the blocks of a pool that name a node.
func (v *View) Named(pool string, n lease.Node) (named []lease.Seen) {
	for _, s := range v.Blocks[pool] {
		if s.Block.Names(n) {
			named = append(named, s)
		}
	}
	return named
}

// SeenOf lists the records of the blocks that have addresses of a range set.
func (v *View) SeenOf(p record.Pool, set int) []lease.Seen {
	return slices.SortedFunc(v.Each(p, set), func(a, b lease.Seen) int { return a.Block.CIDR.Compare(b.Block.CIDR) })
}

// Each is SeenOf in no order.
func (v *View) Each(p record.Pool, set int) iter.Seq[lease.Seen] {
	grid, err := p.Grid(set)
	return func(yield func(lease.Seen) bool) {
		for _, s := range v.Blocks[p.UUID] {
			if err == nil && grid.Contains(s.Block.CIDR) && !yield(s) {
				return
			}
		}
	}
}

// Unreadable reports whether there is a record of the block that was skipped.
func (v *View) Unreadable(pool string, cidr netip.Prefix) bool {
	return v.Unread[record.BlockKey(pool, cidr)] != nil
}

// Present is what the view says to a node about the registry as a whole.
func (v *View) Present(n lease.Node) lease.Present {
	c := v.Cluster.Value
	_, removed := v.Gone[n]
	p := lease.Present{Cluster: c.ID, Epoch: c.Epoch, Rev: v.Rev, Removed: removed}
	// Without a record that can be read nobody can say that all is well.
	p.Frozen = c.Frozen != nil || v.Unread[record.ClusterKey] != nil
	for n, node := range v.Nodes {
		if _, gone := v.Gone[n]; !gone && node.Value.Asserted < c.Epoch.Number {
			p.Waits = true
		}
	}
	p.Waits = p.Waits || len(v.UnreadNodes()) > 0
	return p
}

// UnreadNodes are the nodes, not removed, whose record cannot be read: what they
// have asserted is unknown. A key that names no ledger is no node's.
func (v *View) UnreadNodes() (nodes []lease.Node) {
	for key := range v.Unread {
		n, ok := strings.CutPrefix(key, record.NodeFolder)
		if _, gone := v.Gone[lease.Node(n)]; ok && !gone && record.ValidUUID(n) {
			nodes = append(nodes, lease.Node(n))
		}
	}
	return nodes
}

// Follow calls f with a view of the registry and again after each change, with
// whom that is about, until ctx ends or f returns an error. It begins with the
// view of a list that the caller has read, or reads one if that is nil. A watch
// that breaks, or cannot go on from where it was, leads to a full new list, which
// is about everybody. pause is called after each failure, with how many there
// were in a row; an error of it ends Follow too.
// The view is changed in place, under mu, as f is called under it: who has mu
// may read and change the last one.
func Follow(ctx context.Context, s Store, v *View, mu sync.Locker, pause func(ctx context.Context, err error, failures int) error, f func(*View, News) error) error {
	failures := 0
	var last lease.Rev
	for {
		var err error
		if v == nil {
			v, err = Registry{Store: s}.View(ctx)
		}
		if err == nil && v.Rev < last {
			last, v, err = v.Rev, nil, ErrWentBack
		}
		if err == nil {
			failures = 0
			rev := v.Rev
			if err := locked(mu, func() error { return f(v, News{All: true, Peers: true}) }); err != nil {
				return err
			}
			var own error
			err = s.Watch(ctx, record.Prefix, rev, func(b Batch) error {
				own = locked(mu, func() error { return f(v, v.news(b)) })
				return own
			})
			if own != nil {
				return own
			}
			last, v = v.Rev, nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		failures++
		if err := pause(ctx, err, failures); err != nil {
			return err
		}
	}
}

func locked(mu sync.Locker, f func() error) error {
	mu.Lock()
	defer mu.Unlock()
	return f()
}
