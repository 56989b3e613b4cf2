package storetest

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

const (
	node1 = lease.Node("10000000-0000-4000-8000-000000000000")
	node2 = lease.Node("20000000-0000-4000-8000-000000000000")
)

// segments: who follows a segment hears of that one alone, and who follows the
// registry of none.
func segments(t *testing.T, ctx context.Context, b Backend) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	own, other := registry.Registry{Store: b.A}, registry.Registry{Store: b.B}
	put := func(r registry.Registry, vni int, n lease.Node) {
		t.Helper()
		if err := r.PutSegment(ctx, record.Segment{VNI: vni, Node: n, VTEP: netip.MustParseAddr("192.0.2.1"), Port: 8472}); err != nil {
			t.Fatal(err)
		}
	}
	begin, err := b.A.List(ctx, record.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	put(own, 7, node1)
	counts := make(chan int)
	ended := make(chan error, 1)
	go func() {
		ended <- other.FollowSegment(ctx, 7, func(ctx context.Context, err error, _ int) error {
			t.Logf("followed anew: %v", err)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
				return nil
			}
		}, func(m *registry.Members) error {
			select {
			case counts <- len(m.Nodes):
			case <-ctx.Done():
			}
			return nil
		})
	}()
	until := func(want int) {
		t.Helper()
		for n := -1; n != want; {
			select {
			case n = <-counts:
			case err := <-ended:
				t.Fatal(err)
			}
		}
	}
	until(1)
	put(own, 77, node1)
	put(other, 7, node2)
	until(2)
	if err := own.DeleteSegment(ctx, 7, node1); err != nil {
		t.Fatal(err)
	}
	until(1)
	want(t, "in the registry", b.A.Swap(ctx, record.ClusterKey, 0, []byte("x")), registry.Applied)
	items, _, err := collect(ctx, b.B, record.Prefix, begin.Rev, 1)
	if len(items) != 1 || items[0].Key != record.ClusterKey || !errors.Is(err, errEnough) {
		t.Errorf("who follows the registry has heard of %+v, %v", items, err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
