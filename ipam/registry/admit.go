package registry

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

var (
	// ErrNoPool is returned for a pool that does not exist, or cannot be read.
	ErrNoPool = errors.New("no such pool")
	// ErrClosed is returned for a pool of which nothing may be leased: it is
	// being made or deleted.
	ErrClosed = errors.New("the pool is not open")
)

// ErrDeleting is the ErrClosed of a pool that is being deleted.
var ErrDeleting = fmt.Errorf("it is being deleted: %w", ErrClosed)

// ErrOld is returned by a view that does not reach to the revision in question:
// get a newer one.
var ErrOld = errors.New("the view is older than the record")

// QuotaError is returned when a tenant has, or would have, more addresses
// leased than it may.
type QuotaError struct {
	Tenant string
	// Quota, what nodes lease of it now, and what was to come on top.
	Quota, Leased, More int64
}

func (e *QuotaError) Error() string {
	if e.More == 0 {
		return fmt.Sprintf("tenant %q leases %d addresses, and its quota is %d", e.Tenant, e.Leased, e.Quota)
	}
	return fmt.Sprintf("tenant %q leases %d addresses of its quota of %d: no room for %d more", e.Tenant, e.Leased, e.Quota, e.More)
}

// CNICode asks the runtime to try again later.
func (e *QuotaError) CNICode() uint { return 11 }

// Admit reports whether a node may use what a record of revision rev brought
// it; it is what lease.Book.Learn has to know. Nodes that found Room at the
// same moment, and one that has leased from a pool which is being deleted, find
// out here.
func (v *View) Admit(pool string, rev lease.Rev) error {
	if v.Rev < rev {
		return ErrOld
	}
	return v.Room(pool, 0)
}

// Admit is View.Admit on what the registry holds now, of which it reads no more
// than it takes: the pool, and for a tenant with a quota the blocks that count
// against it. name is the pool's, which keeps it for life. closed is why the node
// may not use what it got; err is why nobody can say.
//
// The reads are not of one moment, and need not be: each comes after the record
// of revision rev, so of the records that together are over a quota, whoever
// wrote the last one sees the others here.
func (r Registry) Admit(ctx context.Context, name, pool string, rev lease.Rev) (closed, err error) {
	v := NewView(List{})
	read := func(prefix string) error {
		l, err := r.Store.List(ctx, prefix)
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if l.Rev < rev {
			return ErrOld
		}
		v.Apply(Batch(l))
		return nil
	}
	// A pool's or a tenant's own key; what else begins like it does no harm.
	if err := read(record.PoolFolder + name); err != nil {
		return nil, err
	}
	tenant := v.Pools[name].Value.Tenant
	if tenant != "" {
		if err := read(record.TenantFolder + tenant); err != nil {
			return nil, err
		}
	}
	if v.Tenants[tenant].Value.Quota != 0 {
		if err := read(record.PoolFolder); err != nil {
			return nil, err
		}
		for _, p := range v.Pools {
			if p.Value.Tenant != tenant {
				continue
			}
			if err := read(record.BlockFolder + p.Value.UUID + "/"); err != nil {
				return nil, err
			}
		}
	}
	return v.Admit(pool, rev), nil
}

// Room reports whether a node may lease or claim n more addresses of the pool.
func (v *View) Room(pool string, n int64) error {
	p, ok := v.Pool(pool)
	if !ok {
		return fmt.Errorf("pool %s: %w", pool, ErrNoPool)
	}
	if p.Value.State == record.Deleting {
		return fmt.Errorf("pool %q: %w", p.Value.Name, ErrDeleting)
	}
	if p.Value.State != "" {
		return fmt.Errorf("pool %q is %s: %w", p.Value.Name, p.Value.State, ErrClosed)
	}
	t, ok := v.Tenants[p.Value.Tenant]
	if !ok || t.Value.Quota == 0 {
		if err := v.Unread[record.TenantFolder+p.Value.Tenant]; err != nil && p.Value.Tenant != "" {
			return fmt.Errorf("tenant %q: %w", p.Value.Tenant, err)
		}
		return nil
	}
	if leased := v.Leased(p.Value.Tenant); leased+n > t.Value.Quota {
		return &QuotaError{p.Value.Tenant, t.Value.Quota, leased, n}
	}
	return nil
}

// Leased counts the addresses that belong to nodes in all pools of a tenant, of
// those that a pool gives out. A block whose record cannot be read counts in full.
func (v *View) Leased(tenant string) int64 {
	pools := make(map[string]record.Pool)
	var n int64
	for _, p := range v.Pools {
		if p.Value.Tenant != tenant {
			continue
		}
		pools[p.Value.UUID] = p.Value
		for _, s := range v.Blocks[p.Value.UUID] {
			for _, count := range p.Value.Nodes(s.Block) {
				n += int64(count)
			}
		}
	}
	for key := range v.Unread {
		if uuid, cidr, ok := record.ParseBlockKey(key); ok {
			if pool, counts := pools[uuid]; counts {
				n += int64(pool.Usable(cidr))
			}
		}
	}
	return n
}

// Search fills in what the view knows for lease.Search.Find in a range set.
func (v *View) Search(pool record.Pool, set int, s lease.Search) (lease.Search, error) {
	grid, err := pool.Grid(set)
	if err != nil {
		return s, fmt.Errorf("pool %q: %w", pool.Name, err)
	}
	s.Grid = grid
	s.Usable = func(a netip.Addr) bool {
		_, ok := pool.Sets[set].Find(a)
		return ok
	}
	s.Blocks = v.Seen(pool.UUID)
	lost := v.lost()
	s.Skip = func(p netip.Prefix) bool {
		for _, blocks := range lost {
			if slices.ContainsFunc(blocks, func(s lease.Seen) bool { return s.Block.CIDR.Overlaps(p) }) {
				return true
			}
		}
		return v.Unreadable(pool.UUID, p)
	}
	s.Sticky, s.StickyFor = pool.Sticky, pool.StickyFor
	s.Whole = pool.Kind == record.Routed
	return s, nil
}

// lost are the blocks that nodes have of pools which are not in the registry: it
// was made anew, or restored, and nodes have said what they had.
func (v *View) lost() map[string][]lease.Seen {
	known := map[string]bool{}
	for _, p := range v.Pools {
		known[p.Value.UUID] = true
	}
	lost := map[string][]lease.Seen{}
	for uuid, blocks := range v.Blocks {
		for _, s := range blocks {
			if !known[uuid] && len(s.Block.Nodes()) > 0 {
				lost[uuid] = append(lost[uuid], s)
			}
		}
	}
	return lost
}

// touches reports whether a range set has addresses in a block.
func touches(set ipam.RangeSet, cidr netip.Prefix) bool {
	return slices.ContainsFunc(set, func(r ipam.Range) bool {
		return cidr.Contains(r.First) || cidr.Contains(r.Last) || r.Contains(cidr.Addr())
	})
}
