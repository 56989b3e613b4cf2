package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

var (
	// ErrExists is returned for an object that is to be made and is there.
	ErrExists = errors.New("it exists already")
	// ErrFrozen is returned while a registry that went back waits for an operator.
	ErrFrozen = errors.New("the registry is frozen; see: underlayctl registry status")
	// ErrUnread is returned when a value that cannot be understood stands in
	// the way of a decision.
	ErrUnread = errors.New("the registry has values that this version cannot read")
	// ErrFixed is returned for a change of what a pool is for its whole life.
	ErrFixed = errors.New("that cannot change")
	// ErrTenant is returned for a network whose pool is another tenant's.
	ErrTenant = errors.New("a network and its pool are of one tenant")
)

// OverlapError is returned for a pool that has something in common with
// another one of its tenant.
type OverlapError struct {
	Pool, Other, Tenant, At string
}

func (e *OverlapError) Error() string {
	return fmt.Sprintf("pool %q overlaps pool %q of the same tenant %q at %s", e.Pool, e.Other, e.Tenant, e.At)
}

// InUseError is returned for what cannot go while others use it.
type InUseError struct {
	What string
	// By counts the addresses that each node has of it.
	By map[lease.Node]int
	// Names are the labels of these nodes, as far as they are known.
	Names map[lease.Node]string
	// Others names objects that refer to it.
	Others []string
}

func (e *InUseError) Error() string {
	var parts []string
	for _, n := range slices.Sorted(maps.Keys(e.By)) {
		who := string(n)
		if name := e.Names[n]; name != "" {
			who = fmt.Sprintf("%s (%s)", name, n)
		}
		parts = append(parts, fmt.Sprintf("node %s leases %d addresses", who, e.By[n]))
	}
	return fmt.Sprintf("%s is in use: %s", e.What, strings.Join(append(parts, e.Others...), ", "))
}

// CreatePool makes a pool and returns it with its UUID. One that has a UUID takes
// back the blocks of a pool that the registry has lost. Two that overlap
// cannot both come to be, although they are two records: each is written as
// pending, and then compared with what is there. Of two that see each other so,
// the later one gives way.
func (r Registry) CreatePool(ctx context.Context, p record.Pool) (record.Pool, error) {
	v, err := r.View(ctx)
	if err != nil {
		return p, err
	}
	old, there := v.Pools[p.Name]
	if there && old.Value.State != record.Pending {
		return p, fmt.Errorf("pool %q: %w", p.Name, ErrExists)
	}
	if err := v.fits(p, 0); err != nil {
		return p, err
	}
	// What is pending here was left by a command that died; it was never used.
	p.State = record.Pending
	if p.UUID == "" {
		p.UUID = record.NewUUID()
	}
	key := record.PoolFolder + p.Name
	a := r.Store.Swap(ctx, key, old.Rev, record.EncodePool(p))
	if err := a.err(); err != nil {
		return p, fmt.Errorf("create pool %q: %w", p.Name, err)
	}
	return r.settle(ctx, p, a.Rev, nil)
}

// UpdatePool changes ranges, routes and times of a pool. Its tenant, kind and
// block size stay, and so does what is leased.
func (r Registry) UpdatePool(ctx context.Context, p record.Pool) (record.Pool, error) {
	v, err := r.View(ctx)
	if err != nil {
		return p, err
	}
	old, there := v.Pools[p.Name]
	switch {
	case !there:
		return p, fmt.Errorf("pool %q: %w", p.Name, ErrNoPool)
	case old.Value.State != "" && old.Value.State != record.Updating:
		return p, fmt.Errorf("pool %q is %s: %w", p.Name, old.Value.State, ErrClosed)
	case p.Kind != old.Value.Kind || p.Tenant != old.Value.Tenant:
		return p, fmt.Errorf("pool %q is of kind %q and tenant %q: %w", p.Name, old.Value.Kind, old.Value.Tenant, ErrFixed)
	case p.UUID != "" && p.UUID != old.Value.UUID:
		// The document is that of a pool which had the name before.
		return p, fmt.Errorf("pool %q has the UUID %s, not %s: %w", p.Name, old.Value.UUID, p.UUID, ErrFixed)
	}
	p.UUID, p.State = old.Value.UUID, record.Updating
	if old.Value.Bits4 != 0 {
		p.Bits4 = old.Value.Bits4
	}
	if old.Value.Bits6 != 0 {
		p.Bits6 = old.Value.Bits6
	}
	if p, err = record.DecodePool(record.EncodePool(p)); err != nil {
		// The new ranges do not go with it.
		return p, fmt.Errorf("pool %q: the size of its blocks: %w: %w", p.Name, ErrFixed, err)
	}
	a := r.Store.Swap(ctx, record.PoolFolder+p.Name, old.Rev, record.EncodePool(p))
	if err := a.err(); err != nil {
		return p, fmt.Errorf("update pool %q: %w", p.Name, err)
	}
	before := old.Value
	before.State = ""
	return r.settle(ctx, p, a.Rev, record.EncodePool(before))
}

// settle opens a pending pool, or puts before in its place if it does not fit.
func (r Registry) settle(ctx context.Context, p record.Pool, rev lease.Rev, before []byte) (record.Pool, error) {
	key := record.PoolFolder + p.Name
	v, err := r.View(ctx)
	if err != nil {
		return p, err
	}
	if err := v.fits(p, rev); err != nil {
		var a Answer
		if before == nil {
			a = r.Store.Delete(ctx, key, rev)
		} else {
			a = r.Store.Swap(ctx, key, rev, before)
		}
		return p, errors.Join(err, a.err())
	}
	p.State = ""
	return p, r.Store.Swap(ctx, key, rev, record.EncodePool(p)).err()
}

// fits compares a pool with the others and with its own leases. rev is that of
// its pending record, 0 before there is one.
func (v *View) fits(p record.Pool, rev lease.Rev) error {
	if v.Cluster.Value.Frozen != nil {
		return ErrFrozen
	}
	for key, err := range v.Unread {
		if strings.HasPrefix(key, record.PoolFolder) || strings.HasPrefix(key, record.BlockFolder+p.UUID+"/") {
			return fmt.Errorf("%w: %s: %w", ErrUnread, key, err)
		}
	}
	for _, o := range v.Pools {
		if o.Value.Name != p.Name && o.Value.UUID == p.UUID {
			return fmt.Errorf("pool %q: %w: its UUID is that of pool %q", p.Name, ErrExists, o.Value.Name)
		}
		if o.Value.Name == p.Name || o.Value.Tenant != p.Tenant || rev != 0 && o.Rev > rev && (o.Value.State == record.Pending || o.Value.State == record.Updating) {
			continue
		}
		if at, ok := p.Overlap(o.Value); ok {
			return &OverlapError{p.Name, o.Value.Name, p.Tenant, at.Addr().String()}
		}
	}
	var grids []lease.Grid
	for i := range p.Sets {
		g, err := p.Grid(i)
		if err != nil {
			return err
		}
		grids = append(grids, g)
	}
	for uuid, lost := range v.lost() {
		if uuid == p.UUID {
			continue
		}
		for _, s := range lost {
			if slices.ContainsFunc(p.Sets, func(set ipam.RangeSet) bool { return touches(set, s.Block.CIDR) }) {
				return &InUseError{What: fmt.Sprintf("block %s of a pool that the registry has lost (create it again with \"uuid\": %q)", s.Block.CIDR, uuid),
					By: s.Block.Nodes(), Names: v.names()}
			}
		}
	}
	for cidr, s := range v.Blocks[p.UUID] {
		inside := slices.ContainsFunc(grids, func(g lease.Grid) bool { return g.Contains(cidr) })
		if by := s.Block.Nodes(); !inside && len(by) > 0 {
			return &InUseError{What: fmt.Sprintf("block %s, which the new ranges leave out,", cidr), By: by, Names: v.names()}
		}
	}
	return nil
}

// leave is how long agents have to return what nobody uses of a pool that is to
// be deleted, and look how often it is counted.
const (
	leave = 5 * time.Second
	look  = 200 * time.Millisecond
)

// DeletePool removes a pool of which nothing is in use and which no network
// refers to. It is marked first and counted then: a node that leases a block at the
// same moment sees the mark before it uses it (View.Admit). Agents that see the
// mark return what nobody uses; a node without its agent keeps what it leases.
func (r Registry) DeletePool(ctx context.Context, name string) error {
	key := record.PoolFolder + name
	var p record.Pool
	var was string
	err := r.edit(ctx, key, func(i Item) (_ []byte, err error) {
		if i.Rev == 0 {
			return nil, fmt.Errorf("pool %q: %w", name, ErrNoPool)
		}
		if p, err = record.DecodePool(i.Value); err != nil {
			return nil, err
		}
		was, p.State = p.State, record.Deleting
		return record.EncodePool(p), nil
	})
	if err != nil {
		return fmt.Errorf("delete pool %q: %w", name, err)
	}
	v, used, err := r.vacated(ctx, p)
	if err != nil {
		return fmt.Errorf("delete pool %q: %w", name, err)
	}
	marked, there := v.Pools[name]
	if !there || marked.Value.UUID != p.UUID {
		return nil // somebody else has deleted it
	}
	if used != nil {
		// Whoever asked may have given up.
		ctx = context.WithoutCancel(ctx)
		// A command that died may have left the mark; it goes too.
		if p.State = was; was == record.Deleting {
			p.State = ""
		}
		back := r.Store.Swap(ctx, key, marked.Rev, record.EncodePool(p))
		return errors.Join(used, back.err())
	}
	for cidr := range v.Blocks[p.UUID] {
		if err := r.remove(ctx, record.BlockKey(p.UUID, cidr)); err != nil {
			return fmt.Errorf("delete block %s: %w", cidr, err)
		}
	}
	return r.remove(ctx, key)
}

// vacated waits until nobody has anything of a pool, or who has will keep it.
func (r Registry) vacated(ctx context.Context, p record.Pool) (v *View, used, err error) {
	for end := time.Now().Add(leave); ; {
		if v, err = r.View(ctx); err != nil {
			return nil, nil, err
		}
		var by *InUseError
		used = v.users(p)
		if !errors.As(used, &by) || len(by.Others) > 0 || time.Now().After(end) {
			return v, used, nil
		}
		alive, err := r.Alive(ctx)
		if err != nil {
			return nil, nil, err
		}
		for n := range by.By {
			if !alive[n] {
				return v, used, nil
			}
		}
		select {
		case <-time.After(look):
		case <-ctx.Done():
			return v, used, nil
		}
	}
}

// users tells who is in the way of deleting a pool.
func (v *View) users(p record.Pool) error {
	e := &InUseError{What: fmt.Sprintf("pool %q", p.Name), By: make(map[lease.Node]int), Names: v.names()}
	for _, s := range v.Blocks[p.UUID] {
		for n, count := range p.Nodes(s.Block) {
			e.By[n] += count
		}
	}
	for _, n := range v.Networks {
		if n.Value.Pool == p.Name {
			e.Others = append(e.Others, fmt.Sprintf("network %q refers to it", n.Value.Name))
		}
	}
	for key, err := range v.Unread {
		if strings.HasPrefix(key, record.BlockFolder+p.UUID+"/") || strings.HasPrefix(key, record.NetworkFolder) {
			return fmt.Errorf("%w: %s: %w", ErrUnread, key, err)
		}
	}
	if len(e.By)+len(e.Others) == 0 {
		return nil
	}
	slices.Sort(e.Others)
	return e
}

// names are the labels of all nodes that the view knows.
func (v *View) names() map[lease.Node]string {
	names := make(map[lease.Node]string)
	for n, g := range v.Gone {
		names[n] = g.Value.Name
	}
	for n, node := range v.Nodes {
		names[n] = node.Value.Name
	}
	return names
}

// CreateNetwork makes a network that is not there yet.
func (r Registry) CreateNetwork(ctx context.Context, n record.Network) error {
	return r.putNetwork(ctx, n, true)
}

// PutNetwork makes or changes a network. Its pool must be there, of the same
// tenant, and its VNI nobody else's, and no segment.
func (r Registry) PutNetwork(ctx context.Context, n record.Network) error {
	return r.putNetwork(ctx, n, false)
}

func (r Registry) putNetwork(ctx context.Context, n record.Network, create bool) error {
	n, err := record.DecodeNetwork(record.EncodeNetwork(n))
	if err != nil {
		return err
	}
	return r.edit(ctx, record.NetworkFolder+n.Name, func(i Item) ([]byte, error) {
		if create && i.Rev != 0 {
			return nil, fmt.Errorf("network %q: %w", n.Name, ErrExists)
		}
		v, err := r.View(ctx)
		if err != nil {
			return nil, err
		}
		p, ok := v.Pools[n.Pool]
		switch {
		case !ok:
			return nil, fmt.Errorf("network %q: pool %q: %w", n.Name, n.Pool, ErrNoPool)
		case p.Value.Tenant != n.Tenant:
			return nil, fmt.Errorf("network %q is of tenant %q, and pool %q of tenant %q: %w", n.Name, n.Tenant, n.Pool, p.Value.Tenant, ErrTenant)
		}
		for _, o := range v.Networks {
			if o.Value.Name != n.Name && n.Backend == record.VXLAN && o.Value.VNI == n.VNI && o.Value.Port == n.Port {
				return nil, &InUseError{What: fmt.Sprintf("VNI %d on port %d", n.VNI, n.Port), Others: []string{fmt.Sprintf("network %q has it", o.Value.Name)}}
			}
		}
		if err := cmp.Or(r.noSegment(ctx, v, n), r.noName(ctx, n)); err != nil {
			return nil, err
		}
		return record.EncodeNetwork(n), nil
	})
}

// DeleteNetwork removes a network; that it is not there is no error.
func (r Registry) DeleteNetwork(ctx context.Context, name string) error {
	return r.remove(ctx, record.NetworkFolder+name)
}

// PutTenant sets the quota of a tenant, and its range of VNIs. A quota below what
// is leased takes nothing away; it stops what is to come. So does a range that
// leaves VNIs out which segments have.
func (r Registry) PutTenant(ctx context.Context, t record.Tenant) error {
	t, err := record.DecodeTenant(record.EncodeTenant(t))
	if err != nil {
		return err
	}
	return r.edit(ctx, record.TenantFolder+t.Name, func(Item) ([]byte, error) { return record.EncodeTenant(t), nil })
}

// DeleteTenant removes a tenant's limit and range.
func (r Registry) DeleteTenant(ctx context.Context, name string) error {
	return r.remove(ctx, record.TenantFolder+name)
}
