package registry_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// TestLostPool: blocks of a pool that the registry has lost are in nobody's way
// but of a pool that would give them out again.
func TestLostPool(t *testing.T) {
	t.Parallel()
	s := memstore.New()
	r := registry.Registry{Store: s}
	p := create(t, r, "")
	leased(t, r, p, n1, "10.0.0.4/30")
	key := record.PoolFolder + p.Name
	item, err := s.Get(t.Context(), key)
	if err != nil || s.Delete(t.Context(), key, item.Rev).Outcome != registry.Applied {
		t.Fatal(err)
	}
	again := pool(t, "pods", "", record.Shared, `{"subnet":"10.0.0.0/28"}`)
	var used *registry.InUseError
	if _, err := r.CreatePool(t.Context(), again); !errors.As(err, &used) || !strings.Contains(err.Error(), p.UUID) {
		t.Errorf("as another pool: %v", err)
	}
	if _, err := r.CreatePool(t.Context(), pool(t, "other", "", record.Shared, `{"subnet":"10.0.1.0/28"}`)); err != nil {
		t.Errorf("a pool elsewhere: %v", err)
	}
	v := view(t, r)
	search, err := v.Search(again, 0, lease.Search{Node: n2})
	if err != nil {
		t.Fatal(err)
	}
	for search.Attempt = range 50 {
		if f := search.Find(); !f.CIDR.IsValid() || f.CIDR == netip.MustParsePrefix("10.0.0.4/30") {
			t.Errorf("a search finds %s", f.CIDR)
		}
	}
	again.UUID = p.UUID
	if _, err := r.CreatePool(t.Context(), again); err != nil {
		t.Errorf("the same pool again: %v", err)
	}
	if v := view(t, r); len(v.Pools) != 2 || v.Pools["pods"].Value.UUID != p.UUID {
		t.Errorf("pools: %+v", v.Pools)
	}
	again.Name = "thief"
	if _, err := r.CreatePool(t.Context(), again); !errors.Is(err, registry.ErrExists) {
		t.Errorf("the UUID of another pool: %v", err)
	}
}
