package registry_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

const n3 = lease.Node("30000000-0000-4000-8000-000000000000")

func part(n lease.Node, macs ...string) record.Segment {
	s := record.Segment{VNI: 7, Node: n, Name: "n" + string(n[0]), VTEP: netip.MustParseAddr("192.0.2." + string(n[0])), Port: 8472}
	for _, mac := range macs {
		s.Endpoints = append(s.Endpoints, record.Endpoint{MAC: "02:00:00:00:00:" + mac})
	}
	return s
}

// members is what is known of a segment, for people.
func members(m *registry.Members) string {
	var b strings.Builder
	for _, n := range slices.Sorted(maps.Keys(m.Nodes)) {
		fmt.Fprintf(&b, "%s", m.Nodes[n].Name)
		for _, e := range m.Nodes[n].Endpoints {
			fmt.Fprintf(&b, " %s", e.MAC[15:])
		}
		b.WriteString("; ")
	}
	return fmt.Sprintf("%sunread %d", b.String(), len(m.Unread))
}

// TestFollowSegment: each change is told, also those that a watch did not live to
// tell of; what cannot be read is as it was before.
func TestFollowSegment(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	store := memstore.New()
	r := registry.Registry{Store: store}
	told := make(chan *registry.Members, 100)
	ended := make(chan error)
	go func() {
		ended <- r.FollowSegment(ctx, 7, func(context.Context, error, int) error { return nil }, func(m *registry.Members) error {
			told <- m
			return nil
		})
	}()
	var last *registry.Members
	until := func(want string) {
		t.Helper()
		for got := ""; ; {
			select {
			case last = <-told:
				if got = members(last); got == want {
					return
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("got %s, want %s", got, want)
			}
		}
	}
	until("unread 0")
	must(t, r.PutSegment(ctx, part(n1, "01", "02")))
	until("n1 01 02; unread 0")
	first := last.Nodes[n1]
	must(t, r.PutSegment(ctx, part(n1, "01", "03")))
	until("n1 01 03; unread 0")
	if now := last.Nodes[n1]; now.Since["02:00:00:00:00:01"] != first.Rev || now.Since["02:00:00:00:00:03"] != now.Rev || now.Rev <= first.Rev || len(now.Since) != 2 {
		t.Errorf("since %v, before %v", now.Since, first.Since)
	}
	rev := last.Rev
	must(t, r.PutSegment(ctx, part(n1, "01", "03"))) // nothing new
	must(t, r.PutSegment(ctx, part(n2, "04")))
	until("n1 01 03; n2 04; unread 0")
	if last.Rev != rev+2 { // and that it may have one
		t.Errorf("what is there was written again: revision %d after %d", last.Rev, rev)
	}
	store.Put(record.SegmentKey(7, n1), []byte(`{"version":9}`))
	until("n1 01 03; n2 04; unread 1")
	store.Put(record.SegmentKey(7, n3), []byte(`{}`))
	until("n1 01 03; n2 04; unread 2")
	store.Put(record.SegmentKeys(7)+"odd", []byte(`{}`))
	until("n1 01 03; n2 04; unread 3")
	other := part(n3, "05")
	other.VNI = 8
	store.Put(record.SegmentKey(7, n3), record.EncodeSegment(other))
	until("n1 01 03; n2 04; unread 3")
	must(t, r.PutSegment(ctx, other)) // nobody here follows that
	// What came and went while nobody told of it.
	store.Rig(func(q memstore.Request) memstore.Fault {
		if q.Kind == "list" || q.Kind == "watch" {
			return memstore.Fail
		}
		return memstore.Deliver
	})
	store.Break()
	must(t, r.DeleteSegment(ctx, 7, n2))
	must(t, r.DeleteSegment(ctx, 7, n2))
	must(t, r.DeleteSegment(ctx, 7, n3))
	store.Rig(nil)
	until("n1 01 03; unread 2")
	must(t, r.PutSegment(ctx, part(n1, "01")))
	until("n1 01; unread 1")
	if since := last.Nodes[n1].Since["02:00:00:00:00:01"]; since != first.Rev {
		t.Errorf("it came with revision %d, and now with %d", first.Rev, since)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestSegmentOrNetwork: one VNI is never both, and a removed node is in no segment.
func TestSegmentOrNetwork(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := memstore.New()
	r := registry.Registry{Store: store}
	_, err := r.Open(ctx)
	must(t, err)
	p, err := record.LoadPool([]byte(`{"version":1,"name":"pods","kind":"routed","ranges":[[{"subnet":"10.5.0.0/16"}]]}`))
	must(t, err)
	_, err = r.CreatePool(ctx, p)
	must(t, err)
	must(t, r.Enroll(ctx, record.Node{Node: n1, Name: "n1", Machine: "m"}))
	must(t, r.PutSegment(ctx, part(n1, "01")))
	n := record.Network{Name: "pods", Pool: "pods", Backend: record.VXLAN, VNI: 7, Port: 4789}
	var busy *registry.InUseError
	if err := r.CreateNetwork(ctx, n); !errors.As(err, &busy) || err.Error() != `VNI 7, as a segment, is in use: node "n1" has attachments in it` {
		t.Errorf("a network with the VNI of a segment: %v", err)
	}
	must(t, r.Remove(ctx, n1, 0))
	must(t, r.CreateNetwork(ctx, n))
	// One that was cut off between two writes has said that it may be in it.
	store.Put(record.MemberKey(n1, 8), []byte("{}"))
	must(t, r.PutSegment(ctx, part(n2, "01")))
	if vnis, err := r.SegmentsOf(ctx, n1); err != nil || !slices.Equal(vnis, []int{7, 8}) {
		t.Errorf("VNIs of a node: %v, %v", vnis, err)
	}
	if _, err := r.Sweep(ctx, n1); err != nil {
		t.Error(err)
	}
	for _, folder := range []string{record.SegmentFolder, record.MemberFolder} {
		if l, err := store.List(ctx, folder); err != nil || len(l.Items) != 1 || !strings.Contains(l.Items[0].Key, string(n2)) {
			t.Errorf("after a node was removed: %v, %v", l.Items, err)
		}
	}
	must(t, r.DeleteSegment(ctx, 7, n2))
	if l, err := store.List(ctx, record.MemberFolder); err != nil || len(l.Items) > 0 {
		t.Errorf("left of a node that has withdrawn: %v, %v", l.Items, err)
	}
	v, err := r.View(ctx)
	must(t, err)
	if got, ok := v.Network(7); !ok || got.Name != "pods" {
		t.Errorf("VNI 7 is of %+v", got)
	}
	if got, ok := v.Network(8); ok {
		t.Errorf("VNI 8 is of %+v", got)
	}
	store.Put(record.SegmentKey(9, n2), []byte("odd"))
	n.Name, n.VNI = "more", 9
	if err := r.CreateNetwork(ctx, n); !errors.As(err, &busy) {
		t.Errorf("with the VNI of a segment that nobody can read: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
