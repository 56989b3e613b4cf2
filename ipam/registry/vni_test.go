package registry_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// TestVNI: a name has its VNI until it is forgotten, whoever asks, and none that
// somebody else has.
func TestVNI(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := memstore.New()
	r := registry.Registry{Store: store}
	vni := func(name string, prefer, want int) {
		t.Helper()
		for range 2 {
			if got, err := r.VNI(ctx, "red", name, prefer); got != want || err != nil {
				t.Errorf("%s: %d, %v, want %d", name, got, err, want)
			}
		}
	}
	refused := func(name, tenant, want string, code uint) {
		t.Helper()
		_, err := r.VNI(ctx, tenant, name, 0)
		var coded interface{ CNICode() uint }
		if err == nil || !strings.Contains(err.Error(), want) || code != 0 && (!errors.As(err, &coded) || coded.CNICode() != code) {
			t.Errorf("%s of %s: %v, want %q with code %d", name, tenant, err, want, code)
		}
	}
	refused("a", "red", `tenant "red" has no range to take one from; name the VNI, or give the range: underlayctl tenant vnis red FIRST-LAST`, ipam.CodeInvalidConfig)
	refused("a", "", `vni: is missing, and so is "tenant"`, ipam.CodeInvalidConfig)
	refused("a/b", "red", `name: "a/b" may hold`, ipam.CodeInvalidConfig)
	must(t, r.PutTenant(ctx, record.Tenant{Name: "red", VNIs: record.VNIs{First: 5, Last: 9}}))
	must(t, r.PutTenant(ctx, record.Tenant{Name: "blue", VNIs: record.VNIs{First: 5, Last: 9}}))
	_, err := r.CreatePool(ctx, pool(t, "p", "", "routed", `{"subnet":"10.7.0.0/24"}`))
	must(t, err)
	must(t, r.CreateNetwork(ctx, record.Network{Name: "n", Pool: "p", Backend: record.VXLAN, VNI: 5}))
	must(t, r.PutSegment(ctx, func() record.Segment { s := part(n1); s.VNI = 6; return s }()))
	vni("a", 0, 7)
	vni("b", 9, 9)
	if got, err := r.Join(ctx, "blue", "a", 7, n2); got != 8 || err != nil {
		t.Errorf("of another tenant: %d, %v", got, err)
	}
	vni("a", 9, 7)
	refused("c", "red", "no free VNI in 5-9: of 5, segments have 3 by their name and 1 by configurations, and networks 1", ipam.CodeTryAgainLater)

	var used *registry.InUseError
	if err := r.CreateNetwork(ctx, record.Network{Name: "m", Pool: "p", Backend: record.VXLAN, VNI: 9}); !errors.As(err, &used) || !strings.Contains(err.Error(), "underlayctl segment forget b --tenant red") {
		t.Errorf("a network of such a VNI: %v", err)
	}
	if _, err := r.Forget(ctx, "blue", "a"); !errors.As(err, &used) || !strings.Contains(err.Error(), `VNI 8 of segment "a" of tenant "blue" is in use: node`) {
		t.Errorf("forgotten while somebody uses it: %v", err)
	}
	if _, err := r.Forget(ctx, "blue", "b"); !errors.Is(err, registry.ErrNoName) {
		t.Errorf("forgotten what is not there: %v", err)
	}
	must(t, r.DeleteSegment(ctx, 8, n2))
	n, err := r.Forget(ctx, "blue", "a")
	if err != nil || n.VNI != 8 {
		t.Errorf("forgotten: %+v, %v", n, err)
	}
	vni("c", 0, 8)
	// What a range leaves out by now stays with who has it.
	must(t, r.PutTenant(ctx, record.Tenant{Name: "red", VNIs: record.VNIs{First: 20, Last: 20}}))
	vni("c", 0, 8)
	names, err := r.Names(ctx)
	must(t, err)
	var all []string
	for _, n := range names {
		all = append(all, fmt.Sprint(n.VNI, n.Tenant, n.Name))
	}
	if got := strings.Join(all, " "); got != "7reda 8redc 9redb" {
		t.Errorf("names: %s", got)
	}
	// One that was left behind by somebody who died is taken by who needs it, or
	// by the network that it is in the way of.
	left := record.Number{VNI: 20, Tenant: "red", Name: "gone", Token: record.NewUUID()}
	store.Put(record.NumberKey(20), record.EncodeNumber(left))
	vni("d", 0, 20)
	left.VNI, left.Token = 21, record.NewUUID()
	store.Put(record.NumberKey(21), record.EncodeNumber(left))
	must(t, r.CreateNetwork(ctx, record.Network{Name: "m", Pool: "p", Backend: record.VXLAN, VNI: 21}))

	store.Put(record.NumberKey(7), []byte("{"))
	refused("a", "red", record.NumberKey(7), 0)
	store.Put(record.ClusterKey, record.EncodeCluster(record.Cluster{ID: record.NewUUID(), Epoch: lease.Epoch{Number: 1, ID: record.NewUUID()}, Frozen: &record.Frozen{Node: n1, Epoch: 1}}))
	refused("e", "red", "frozen", 0)
}

// TestVNILeftBehind: one that was taken for a name by somebody who died, and that a
// configuration or a network has by now, is not that name's.
func TestVNILeftBehind(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := memstore.New()
	r := registry.Registry{Store: store}
	must(t, r.PutTenant(ctx, record.Tenant{Name: "red", VNIs: record.VNIs{First: 7, Last: 8}}))
	store.Put(record.NumberKey(7), record.EncodeNumber(record.Number{VNI: 7, Tenant: "red", Name: "a", Token: record.NewUUID()}))
	must(t, r.PutSegment(ctx, part(n1))) // of 7
	if vni, err := r.VNI(ctx, "red", "a", 0); vni != 8 || err != nil {
		t.Errorf("%d, %v, and others are in 7", vni, err)
	}
	if item, err := store.Get(ctx, record.NumberKey(7)); err != nil || item.Rev != 0 {
		t.Errorf("it is still taken: %s, %v", item.Value, err)
	}
}

// TestJoinAfterLeave: a node that comes again is seen, however late its own leaving
// arrives.
func TestJoinAfterLeave(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := memstore.New()
	r := registry.Registry{Store: store}
	must(t, r.PutTenant(ctx, record.Tenant{Name: "red", VNIs: record.VNIs{First: 7, Last: 8}}))
	_, err := r.Join(ctx, "red", "a", 0, n1)
	must(t, err)
	store.Rig(func(q memstore.Request) memstore.Fault {
		if q.Kind == "delete" {
			return memstore.Delay
		}
		return memstore.Deliver
	})
	if err := r.DeleteSegment(ctx, 7, n1); err == nil {
		t.Fatal("it is on its way, and is said to be done")
	}
	store.Rig(nil)
	_, err = r.Join(ctx, "red", "a", 0, n1)
	must(t, err)
	store.Land(0)
	var used *registry.InUseError
	if _, err := r.Forget(ctx, "red", "a"); !errors.As(err, &used) {
		t.Errorf("forgotten while a node has joined it: %v", err)
	}
}
