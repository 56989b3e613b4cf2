package storetest

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// vnis: of many nodes that ask for few names at once all are told the same of one
// name, and no VNI of two.
func vnis(t *testing.T, ctx context.Context, b Backend) {
	r := registry.Registry{Store: b.A}
	const names, nodes = 4, 12
	if err := r.PutTenant(ctx, record.Tenant{Name: "red", VNIs: record.VNIs{First: 5000, Last: 5000 + names - 1}}); err != nil {
		t.Fatal(err)
	}
	var got [nodes][names]int
	var wg sync.WaitGroup
	for node := range nodes {
		wg.Go(func() {
			r := registry.Registry{Store: []registry.Store{b.A, b.B}[node%2]}
			for i := range names {
				name := (i + node) % names
				vni, err := r.Join(ctx, "red", fmt.Sprint("seg", name), 0, lease.Node(record.NewUUID()))
				if err != nil {
					t.Error(err)
				}
				got[node][name] = vni
			}
		})
	}
	wg.Wait()
	of := make(map[int]int)
	for name, vni := range got[0] {
		of[vni] = name
	}
	if len(of) != names {
		t.Errorf("%d names have the VNIs %v", names, got[0])
	}
	for node := range nodes {
		if got[node] != got[0] {
			t.Errorf("one node has %v, another %v", got[0], got[node])
		}
	}
	if _, err := r.Forget(ctx, "red", "seg0"); err == nil {
		t.Error("forgotten while nodes have a part in it")
	}
}
