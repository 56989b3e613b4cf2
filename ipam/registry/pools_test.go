package registry_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

const (
	n1 = lease.Node("10000000-0000-4000-8000-000000000000")
	n2 = lease.Node("20000000-0000-4000-8000-000000000000")
)

func pool(t *testing.T, name, tenant, kind, ranges string) record.Pool {
	t.Helper()
	p, err := record.LoadPool(fmt.Appendf(nil, `{"version":1,"name":%q,"tenant":%q,"kind":%q,"ranges":[[%s]],"blockPrefix":{"ipv4":30}}`, name, tenant, kind, ranges))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// create makes a pool of four blocks.
func create(t *testing.T, r registry.Registry, tenant string) record.Pool {
	t.Helper()
	p, err := r.CreatePool(t.Context(), pool(t, "pods", tenant, record.Shared, `{"subnet":"10.0.0.0/28"}`))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// leased leases a block for a node.
func leased(t *testing.T, r registry.Registry, p record.Pool, n lease.Node, cidr string) lease.Seen {
	t.Helper()
	seen, err := r.Block(t.Context(), p.UUID, netip.MustParsePrefix(cidr))
	if err != nil {
		t.Fatal(err)
	}
	step := lease.Next(lease.Book{Node: n, CIDR: seen.Block.CIDR}, seen, lease.Goal{Lease: true})
	seen, a := r.Send(t.Context(), p.UUID, step)
	if a.Outcome != registry.Applied {
		t.Fatalf("lease %s: %s %v", cidr, a.Outcome, a.Err)
	}
	return seen
}

func view(t *testing.T, r registry.Registry) *registry.View {
	t.Helper()
	v, err := r.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestCreatePool(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := registry.Registry{Store: memstore.New()}
	made := create(t, r, "red")
	if p := view(t, r).Pools["pods"].Value; p.UUID != made.UUID || p.State != "" {
		t.Errorf("%+v", p)
	}
	if _, err := r.CreatePool(ctx, pool(t, "pods", "red", record.Shared, `{"subnet":"10.9.0.0/24"}`)); !errors.Is(err, registry.ErrExists) {
		t.Errorf("the same name: %v", err)
	}
	var overlap *registry.OverlapError
	if _, err := r.CreatePool(ctx, pool(t, "more", "red", record.Shared, `{"subnet":"10.0.0.0/24"}`)); !errors.As(err, &overlap) || overlap.Other != "pods" {
		t.Errorf("an overlap: %v", err)
	}
	if _, err := r.CreatePool(ctx, pool(t, "blue", "blue", record.Shared, `{"subnet":"10.0.0.0/24"}`)); err != nil {
		t.Errorf("the same subnet, another tenant: %v", err)
	}
	if v := view(t, r); len(v.Pools) != 2 {
		t.Errorf("%d pools", len(v.Pools))
	}
}

// TestOneOfTwoOverlappingPools: whoever is first, and however their requests
// mix, one comes to be, or none and then both commands say so.
func TestOneOfTwoOverlappingPools(t *testing.T) {
	t.Parallel()
	for range 200 {
		r := registry.Registry{Store: memstore.New()}
		var wg sync.WaitGroup
		errs := make([]error, 3)
		for i := range errs {
			p := pool(t, fmt.Sprintf("p%d", i), "red", record.Shared, `{"subnet":"10.0.0.0/24"}`)
			wg.Go(func() { _, errs[i] = r.CreatePool(t.Context(), p) })
		}
		wg.Wait()
		made := 0
		for _, err := range errs {
			if err == nil {
				made++
			}
		}
		if got := len(view(t, r).Pools); made > 1 || got != made {
			t.Fatalf("%d were made, %d are there: %v", made, got, errs)
		}
	}
}

func TestPendingPoolOfADeadCommand(t *testing.T) {
	t.Parallel()
	s := memstore.New()
	r := registry.Registry{Store: s}
	left := pool(t, "pods", "", record.Shared, `{"subnet":"10.0.0.0/24"}`)
	left.UUID, left.State = record.NewUUID(), record.Pending
	s.Put(record.PoolFolder+"pods", record.EncodePool(left))
	if err := view(t, r).Room(left.UUID, 1); !errors.Is(err, registry.ErrClosed) {
		t.Errorf("a lease of a pending pool: %v", err)
	}
	if p := create(t, r, ""); p.UUID == left.UUID {
		t.Error("it has the UUID of the pool that never was")
	}
}

func TestUpdatePool(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := registry.Registry{Store: memstore.New()}
	made := create(t, r, "")
	leased(t, r, made, n1, "10.0.0.12/30")
	change := func(kind, ranges string) error {
		_, err := r.UpdatePool(ctx, pool(t, "pods", "", kind, ranges))
		return err
	}
	if err := change(record.Shared, `{"subnet":"10.0.0.0/24"}`); err != nil {
		t.Errorf("grow: %v", err)
	}
	var used *registry.InUseError
	if err := change(record.Shared, `{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.9"}`); !errors.As(err, &used) || used.By[n1] != 4 {
		t.Errorf("shrink below what is leased: %v", err)
	}
	if err := change(record.Routed, `{"subnet":"10.0.0.0/24"}`); !errors.Is(err, registry.ErrFixed) {
		t.Errorf("another kind: %v", err)
	}
	small, err := record.LoadPool([]byte(`{"version":1,"name":"pods","kind":"shared","ranges":[[{"subnet":"10.0.0.0/28"},{"subnet":"10.9.0.0/31"}]]}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.UpdatePool(ctx, small); !errors.Is(err, registry.ErrFixed) {
		t.Errorf("a range smaller than a block: %v", err)
	}
	other := pool(t, "pods", "", record.Shared, `{"subnet":"10.0.0.0/24"}`)
	other.UUID = string(n2)
	if _, err := r.UpdatePool(ctx, other); !errors.Is(err, registry.ErrFixed) {
		t.Errorf("the document of a pool that had the name before: %v", err)
	}
	if _, err := r.UpdatePool(ctx, pool(t, "none", "", record.Shared, `{"subnet":"10.0.0.0/24"}`)); !errors.Is(err, registry.ErrNoPool) {
		t.Errorf("no such pool: %v", err)
	}
	p := view(t, r).Pools["pods"].Value
	if p.UUID != made.UUID || p.State != "" || p.Sets[0][0].Subnet.String() != "10.0.0.0/24" || p.Sets[0][0].Last.String() != "10.0.0.254" {
		t.Errorf("%+v", p)
	}
}

func TestDeletePool(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := registry.Registry{Store: memstore.New()}
	p := create(t, r, "")
	if err := r.PutNetwork(ctx, record.Network{Name: "net", Pool: "pods", Backend: record.HostGW}); err != nil {
		t.Fatal(err)
	}
	if err := r.Enroll(ctx, record.Node{Node: n1, Name: "one"}); err != nil {
		t.Fatal(err)
	}
	seen := leased(t, r, p, n1, "10.0.0.4/30")
	var used *registry.InUseError
	if err := r.DeletePool(ctx, "pods"); !errors.As(err, &used) || used.By[n1] != 4 || len(used.Others) != 1 || !strings.Contains(err.Error(), "one ("+string(n1)+") leases 4 ") {
		t.Errorf("in use: %v", err)
	}
	if err := view(t, r).Room(p.UUID, 1); err != nil {
		t.Errorf("after a refusal the pool is not open: %v", err)
	}
	// The node returns the block, and the network goes.
	book, _, err := lease.Book{Node: n1, CIDR: seen.Block.CIDR}.Learn(seen, true)
	if err != nil {
		t.Fatal(err)
	}
	if book, err = book.Intend(seen, lease.Next(book, seen, lease.Goal{Return: true}).To); err != nil {
		t.Fatal(err)
	}
	if _, a := r.Send(ctx, p.UUID, lease.Next(book, seen, lease.Goal{})); a.Outcome != registry.Applied {
		t.Fatal(a)
	}
	if err := errors.Join(r.DeleteNetwork(ctx, "net"), r.DeletePool(ctx, "pods")); err != nil {
		t.Fatal(err)
	}
	l, err := r.Store.List(ctx, "")
	if err != nil || len(l.Items) != 1 { // the node
		t.Errorf("left: %+v, %v", l.Items, err)
	}
	if err := r.DeletePool(ctx, "pods"); !errors.Is(err, registry.ErrNoPool) {
		t.Errorf("again: %v", err)
	}
}

// TestDeletedPoolIsNotUsed: a lease that lands between the mark and the count,
// or after the end, goes back before anybody has used it.
func TestDeletedPoolIsNotUsed(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := memstore.New()
	r := registry.Registry{Store: s}
	p := create(t, r, "")
	s.Rig(func(q memstore.Request) memstore.Fault {
		if q.Kind == "swap" && strings.HasPrefix(q.Key, record.BlockFolder) {
			return memstore.Delay
		}
		return memstore.Deliver
	})
	cidr := netip.MustParsePrefix("10.0.0.4/30")
	book := lease.Book{Node: n1, CIDR: cidr}
	_, a := r.Send(ctx, p.UUID, lease.Next(book, lease.Seen{Block: lease.Block{CIDR: cidr}}, lease.Goal{Lease: true}))
	if a.Outcome != registry.Unknown {
		t.Fatal(a)
	}
	s.Rig(nil)
	if err := r.DeletePool(ctx, "pods"); err != nil {
		t.Fatal(err)
	}
	if got := s.Land(0); got != registry.Applied {
		t.Fatalf("the late lease is %s", got)
	}
	seen, err := r.Block(ctx, p.UUID, cidr)
	if err != nil || seen.Block.Owner != n1 {
		t.Fatalf("%+v, %v", seen, err)
	}
	room := view(t, r).Admit(p.UUID, seen.Rev)
	if !errors.Is(room, registry.ErrNoPool) {
		t.Errorf("room in a deleted pool: %v", room)
	}
	if closed, err := r.Admit(ctx, p.Name, p.UUID, seen.Rev); !errors.Is(closed, registry.ErrNoPool) || err != nil {
		t.Errorf("admitted to a deleted pool: %v, %v", closed, err)
	}
	book, _, err = book.Learn(seen, room == nil)
	if err != nil || len(book.Free()) != 0 {
		t.Fatalf("free: %v, %v", book.Free(), err)
	}
	step := lease.Next(book, seen, lease.Goal{})
	if step.Do != lease.Send || step.Block.Owner != "" {
		t.Errorf("what next: %+v", step)
	}
}

func TestQuota(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := registry.Registry{Store: memstore.New()}
	p := create(t, r, "red")
	if err := r.PutTenant(ctx, record.Tenant{Name: "red", Quota: 8}); err != nil {
		t.Fatal(err)
	}
	old := view(t, r)
	room := func(n int64) error { return view(t, r).Room(p.UUID, n) }
	leased(t, r, p, n1, "10.0.0.0/30") // of which two are network and gateway
	if err := room(6); err != nil {
		t.Errorf("a second block: %v", err)
	}
	if err := room(7); err == nil {
		t.Error("room for more than the quota")
	}
	// Two nodes see room for one block at the same moment.
	leased(t, r, p, n1, "10.0.0.4/30")
	last := leased(t, r, p, n2, "10.0.0.8/30")
	if err := old.Admit(p.UUID, last.Rev); !errors.Is(err, registry.ErrOld) {
		t.Errorf("by a view from before: %v", err)
	}
	var over *registry.QuotaError
	if err := view(t, r).Admit(p.UUID, last.Rev); !errors.As(err, &over) || over.Leased != 10 || over.Quota != 8 {
		t.Errorf("both have leased: %v", err)
	}
	over = nil
	if closed, err := r.Admit(ctx, p.Name, p.UUID, last.Rev); !errors.As(closed, &over) || over.Leased != 10 || err != nil {
		t.Errorf("both have leased, by reads of what it takes: %v, %v", closed, err)
	}
	if closed, err := r.Admit(ctx, p.Name, p.UUID, last.Rev+100); closed != nil || !errors.Is(err, registry.ErrOld) {
		t.Errorf("a record that the store does not reach to: %v, %v", closed, err)
	}
	if err := r.DeleteTenant(ctx, "red"); err != nil || room(1000) != nil {
		t.Errorf("without a quota: %v, %v", err, room(1000))
	}
	if closed, err := r.Admit(ctx, p.Name, p.UUID, last.Rev); closed != nil || err != nil {
		t.Errorf("admitted without a quota: %v, %v", closed, err)
	}
}

// TestQuotaAtOnce: however nodes that lease at the same moment get in between
// each other's reads, what is admitted in the end is within the quota.
func TestQuotaAtOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := registry.Registry{Store: memstore.New()}
	p := create(t, r, "red")
	if err := r.PutTenant(ctx, record.Tenant{Name: "red", Quota: 8}); err != nil {
		t.Fatal(err)
	}
	var admitted atomic.Int64
	var all sync.WaitGroup
	for i := range 16 {
		cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(4 * i)}), 30)
		all.Go(func() {
			seen, a := r.Send(ctx, p.UUID, lease.Next(lease.Book{Node: n1, CIDR: cidr}, lease.Seen{Block: lease.Block{CIDR: cidr}}, lease.Goal{Lease: true}))
			if a.Outcome != registry.Applied {
				t.Errorf("%s: %+v", cidr, a)
				return
			}
			closed, err := r.Admit(ctx, p.Name, p.UUID, seen.Rev)
			if err != nil {
				t.Error(err)
			}
			if closed == nil {
				admitted.Add(int64(p.Usable(cidr)))
			}
		})
	}
	all.Wait()
	if n := admitted.Load(); n > 8 {
		t.Errorf("%d addresses of a quota of 8", n)
	}
}

func TestNetworks(t *testing.T) {
	t.Parallel()
	r := registry.Registry{Store: memstore.New()}
	create(t, r, "red")
	vxlan := func(name, tenant, pool string, vni int) error {
		return r.PutNetwork(t.Context(), record.Network{Name: name, Tenant: tenant, Pool: pool, Backend: record.VXLAN, VNI: vni})
	}
	if err := errors.Join(vxlan("a", "red", "pods", 1), vxlan("a", "red", "pods", 2), vxlan("b", "red", "pods", 1)); err != nil {
		t.Error(err)
	}
	if err := r.CreateNetwork(t.Context(), record.Network{Name: "a", Tenant: "red", Pool: "pods", Backend: record.HostGW}); !errors.Is(err, registry.ErrExists) {
		t.Errorf("create what is there: %v", err)
	}
	for name, err := range map[string]error{
		"no such pool":     vxlan("c", "red", "none", 3),
		"another tenant's": vxlan("c", "blue", "pods", 3),
		"a VNI taken":      vxlan("c", "red", "pods", 1),
		"no VNI":           vxlan("c", "red", "pods", 0),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if n := view(t, r).Networks["a"].Value; n.VNI != 2 || n.Port != record.DefaultPort {
		t.Errorf("%+v", n)
	}
}

// TestUnknownOutcome: a command that cannot know says so.
func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	s := memstore.New()
	r := registry.Registry{Store: s}
	s.Rig(func(q memstore.Request) memstore.Fault {
		if q.Kind == "swap" {
			return memstore.Lose
		}
		return memstore.Deliver
	})
	_, err := r.CreatePool(context.Background(), pool(t, "pods", "", record.Shared, `{"subnet":"10.0.0.0/28"}`))
	if !errors.Is(err, registry.ErrUnknown) || !errors.Is(err, memstore.ErrTimeout) {
		t.Errorf("%v", err)
	}
}
