package segment

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// TestTask: what is on record is built, published and kept, and what has gone is
// withdrawn.
func TestTask(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, d *desk) {
		d.pass(time.Second)
		select {
		case <-d.Ready():
		default:
			t.Error("without segments it is not ready")
		}
		d.put(partOf(2, "02=10.9.0.2"))
		put(t, d.ledger, "a", "", made())
		d.Stir()
		d.pass(100 * time.Millisecond)
		d.expect("built", "7 on eth1 at 8472", d.built[0])
		put(t, d.ledger, "a", "02:00:00:00:00:01", in(), "10.9.0.1")
		d.Stir()
		d.pass(400 * time.Millisecond)
		d.expect("published", string(record.EncodeSegment(partOf(1, "01=10.9.0.1"))), d.record())
		d.expect("entries", `10.9.0.1 dev br7 lladdr 02:00:00:00:00:01
10.9.0.2 dev br7 lladdr 02:00:00:00:00:02
master 02:00:00:00:00:01 dev lp7
master 02:00:00:00:00:02 dev vx7
self 00:00:00:00:00:00 dev vx7 dst 192.0.2.2
self 02:00:00:00:00:02 dev vx7 dst 192.0.2.2
`, d.kernel())
		ports, vteps, known := d.Guard()
		d.expect("guard", "[8472] [192.0.2.2] true 2", fmt.Sprint(ports, vteps, known, d.changed))
		// Somebody else has changed what is this node's own.
		for _, value := range []string{"odd", string(record.EncodeSegment(partOf(1)))} {
			d.store.Put(record.SegmentKey(vni, idOf(1)), []byte(value))
			d.pass(time.Second)
			d.expect("published again", string(record.EncodeSegment(partOf(1, "01=10.9.0.1"))), d.record())
		}
		must(t, registry.Registry{Store: d.store}.DeleteSegment(t.Context(), vni, idOf(1)))
		d.pass(time.Second)
		d.expect("published once more", string(record.EncodeSegment(partOf(1, "01=10.9.0.1"))), d.record())
		release(t, d.ledger, "red", "a")
		release(t, d.ledger, "red/vxlan", "a")
		d.Stir()
		d.pass(100 * time.Millisecond)
		d.expect("withdrawn", "", d.record())
		d.expect("removed by the plugin", "[]", d.removed)
		ports, vteps, known = d.Guard()
		d.expect("guard", "[] [] true", fmt.Sprint(ports, vteps, known))
		d.expect("segments", "[]", d.Segments())
	})
}

// TestBackWhileLeaving: an attachment that comes while this node is being withdrawn
// is published with all that finds it again, and withdrawn if it goes at once.
func TestBackWhileLeaving(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, d *desk) {
		come := func() {
			put(t, d.ledger, "a", "", made())
			put(t, d.ledger, "a", "02:00:00:00:00:01", in(), "10.9.0.1")
			d.Stir()
		}
		leave := func() {
			release(t, d.ledger, "red", "a")
			release(t, d.ledger, "red/vxlan", "a")
			d.Stir()
		}
		there := func() string {
			i, err := d.store.Get(t.Context(), record.MemberKey(idOf(1), vni))
			must(t, err)
			return fmt.Sprint(d.record() != "", i.Rev != 0)
		}
		come()
		d.pass(time.Second)
		d.expect("published", "true true", there())
		for _, key := range []string{record.SegmentKey(vni, idOf(1)), record.MemberKey(idOf(1), vni)} {
			d.store.Rig(func(r memstore.Request) memstore.Fault {
				if r.Kind == "delete" && r.Key == key {
					time.Sleep(time.Second)
				}
				return memstore.Deliver
			})
			leave()
			d.pass(500 * time.Millisecond)
			come()
			d.pass(2 * time.Second)
			d.expect("back", "true true", there())
			leave()
			d.pass(500 * time.Millisecond)
			come()
			d.pass(300 * time.Millisecond)
			leave()
			d.pass(5 * time.Second)
			d.expect("gone again", "false false", there())
			come()
			d.pass(2 * time.Second)
		}
	})
}

// TestGuard: who starts cuts off no segment that it has not read yet, and one that
// is new opens the port of others to nobody.
func TestGuard(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, nil)
		guard := func() string {
			ports, vteps, known := d.Guard()
			return fmt.Sprint(ports, vteps, known)
		}
		unread := func(vni int) {
			d.store.Rig(func(r memstore.Request) memstore.Fault {
				if r.Kind == "list" && r.Key == record.SegmentKeys(vni) {
					return memstore.Fail
				}
				return memstore.Deliver
			})
		}
		d.put(partOf(2, "02=10.9.0.2"))
		put(t, d.ledger, "a", "", made())
		d.expect("nothing is read", "[] [] false", guard())
		unread(vni)
		defer d.run()()
		d.pass(time.Second)
		d.expect("the segment is not", "[] [] false", guard())
		unread(8)
		d.pass(10 * time.Second)
		d.expect("it is", "[8472] [192.0.2.2] true", guard())
		put(t, d.ledger, "b", "", ipam.Uses{Parent: "eth1", Segment: ipam.Segment{VNI: 8, Port: 8472}})
		d.Stir()
		d.pass(time.Second)
		d.expect("a new one is not", "[8472] [192.0.2.2] true", guard())
	})
}

// TestFreed: what the agent has released itself leaves no segment behind, and that
// of another attachment stays.
func TestFreed(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, d *desk) {
		other := ipam.Uses{Parent: "eth1", Segment: ipam.Segment{VNI: 9, Port: 8472}}
		for id, u := range map[string]ipam.Uses{"a": made(), "b": other, "c": other} {
			put(t, d.ledger, id, "", u)
		}
		d.Stir()
		d.pass(time.Second)
		release(t, d.ledger, "red/vxlan", "a")
		release(t, d.ledger, "red/vxlan", "b")
		d.Stir() // a round that does not know of it yet
		d.pass(time.Second)
		d.expect("before it is told", "[]", d.removed)
		d.Freed()
		d.pass(time.Second)
		d.expect("removed", "[7]", d.removed)
		release(t, d.ledger, "red/vxlan", "c")
		d.Stir()
		d.pass(2 * endedFor)
		d.Freed()
		d.pass(time.Second)
		d.expect("what a plugin has removed", "[7]", d.removed)
	})
}

// TestTrouble: what goes wrong is told, tried again, and keeps nothing else.
func TestTrouble(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, d *desk) {
		d.set(func() { d.fail = errors.New("no such parent") })
		put(t, d.ledger, "a", "02:00:00:00:00:01", in(), "10.9.0.1")
		put(t, d.ledger, "a", "", made())
		put(t, d.ledger, "d", "01:00:00:00:00:01", in())
		d.Stir()
		d.pass(time.Second)
		d.expect("not published", "", d.record())
		d.expect("why", "no such parent", d.Segments()[0].Reason)
		d.set(func() { d.fail = nil })
		d.pass(2 * time.Second)
		d.expect("published", string(record.EncodeSegment(partOf(1, "01=10.9.0.1"))), d.record())
		d.put(partOf(2, "02=10.9.0.2"), partOf(3, "03=10.9.0.3"))
		d.pass(time.Second)
		before := d.kernel()
		d.store.Put(record.SegmentKey(vni, idOf(2)), []byte(`{"version":2}`))
		d.pass(time.Second)
		d.expect("with a record that cannot be read", before, d.kernel())
		s, _ := d.Segment(vni)
		d.expect("skipped", fmt.Sprintf("[{%s segment.version: 2: %v} { attachment red/d/eth0: 01:00:00:00:00:01 is the MAC of no station}]", idOf(2), record.ErrNewer), s.Skipped)
		const want = `
# HELP underlay_segment_endpoints Endpoints of a segment, by how they are reached: local, remote, pending, failed, moved, unreachable.
# TYPE underlay_segment_endpoints gauge
underlay_segment_endpoints{state="failed",vni="7"} 0
underlay_segment_endpoints{state="local",vni="7"} 1
underlay_segment_endpoints{state="moved",vni="7"} 0
underlay_segment_endpoints{state="pending",vni="7"} 0
underlay_segment_endpoints{state="remote",vni="7"} 2
underlay_segment_endpoints{state="unreachable",vni="7"} 0
# HELP underlay_segment_entries Neighbours and FDB entries of a segment, by whether they are in the kernel: kept, pending, failed.
# TYPE underlay_segment_entries gauge
underlay_segment_entries{state="failed",vni="7"} 0
underlay_segment_entries{state="kept",vni="7"} 10
underlay_segment_entries{state="pending",vni="7"} 0
# HELP underlay_segment_nodes Nodes in a segment, this one included.
# TYPE underlay_segment_nodes gauge
underlay_segment_nodes{vni="7"} 3
# HELP underlay_segment_skipped_records Records of nodes in a segment that cannot be read, and attachments that cannot be told others.
# TYPE underlay_segment_skipped_records gauge
underlay_segment_skipped_records{vni="7"} 2
# HELP underlay_segments VXLAN segments that this node has attachments in, by whether they are as they have to be.
# TYPE underlay_segments gauge
underlay_segments{state="failed"} 0
underlay_segments{state="kept"} 1
`
		if err := testutil.GatherAndCompare(d.metrics, strings.NewReader(want)); err != nil {
			t.Error(err)
		}
		// The ledger is away for a while.
		d.set(func() { d.unread = errors.New("no ledger") })
		d.Stir()
		d.pass(time.Minute)
		d.expect("without a ledger", before, d.kernel())
		d.kernels[vni].DeleteDevice("br7")
		d.hear()
		d.pass(time.Second)
		d.expect("built without a ledger", before, d.kernel())
		d.set(func() { d.unread = nil })
		d.pass(5 * time.Second)
		// The kernel refuses what is for a device that is not there.
		d.kernels[vni].DeleteDevice("br7")
		d.pass(time.Second)
		s, _ = d.Segment(vni)
		if len(s.All) != 3 || s.All[0].State != api.EndpointFailed || !strings.Contains(s.All[0].Reason, "br7") {
			t.Errorf("%+v", s.All)
		}
		d.hear()
		d.pass(2 * time.Second)
		d.expect("built again", before, d.kernel())
	})
}

// TestRemovedNode: the record of a node that was removed is ignored at once, and
// goes in time; a node that was removed itself says nothing more.
func TestRemovedNode(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, d *desk) {
		put(t, d.ledger, "a", "", made())
		d.put(partOf(2, "02=10.9.0.2"))
		d.Stir()
		d.pass(time.Second)
		d.expect("before", "master 02:00:00:00:00:02 dev vx7", strings.Split(d.kernel(), "\n")[1])
		d.store.Put(record.GoneFolder+string(idOf(2)), record.EncodeGone(record.Gone{Node: idOf(2), Name: "n2"}))
		d.members <- struct{}{}
		d.pass(400 * time.Millisecond)
		d.expect("after", "", d.kernel())
		d.pass(2 * seldom)
		l, err := d.store.List(t.Context(), record.SegmentKeys(vni))
		must(t, err)
		d.expect("records", "1", len(l.Items))
		d.store.Put(record.GoneFolder+string(idOf(1)), record.EncodeGone(record.Gone{Node: idOf(1), Name: "n1"}))
		d.members <- struct{}{}
		d.pass(time.Second)
		must(t, registry.Registry{Store: d.store}.DeleteSegment(t.Context(), vni, idOf(1)))
		d.pass(time.Minute)
		d.expect("this node", "", d.record())
	})
}

// TestVNI: this node joins a segment before it is told which VNI that has, and leaves
// it if it has no use of it.
func TestVNI(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, d *desk) {
		r := registry.Registry{Store: d.store}
		ask := func(name string, prefer, want int) {
			t.Helper()
			if got, err := d.VNI(t.Context(), "red", name, prefer, false); got != want || err != nil {
				t.Errorf("%s: %d, %v, want %d", name, got, err, want)
			}
		}
		in := func(want string) {
			t.Helper()
			vnis, err := r.SegmentsOf(t.Context(), idOf(1))
			must(t, err)
			d.expect("member", want, fmt.Sprint(vnis))
		}
		if _, err := d.VNI(t.Context(), "red", "lan", 0, true); err == nil || !strings.Contains(err.Error(), "has no range") {
			t.Errorf("without a range: %v", err)
		}
		must(t, r.PutTenant(t.Context(), record.Tenant{Name: "red", VNIs: record.VNIs{First: vni, Last: vni + 2}}))
		if got, err := d.VNI(t.Context(), "red", "lan", 0, true); got != 0 || err != nil {
			t.Errorf("looked: %d, %v", got, err)
		}
		ask("lan", 0, vni)
		ask("other", 0, vni+1)
		in(fmt.Sprint([]int{vni, vni + 1}))
		put(t, d.ledger, "a", "", made())
		d.Stir()
		d.pass(unused + time.Second)
		in(fmt.Sprint([]int{vni}))
		ask("lan", vni, vni)
		if _, err := r.Forget(t.Context(), "red", "lan"); err == nil {
			t.Error("forgotten while an attachment is in it")
		}
		// One that is being left is joined again.
		release(t, d.ledger, "red/vxlan", "a")
		d.Stir()
		d.pass(100 * time.Millisecond)
		in("[]")
		ask("lan", 0, vni)
		in(fmt.Sprint([]int{vni}))
		d.pass(unused + time.Second)
		in("[]")
		n, err := r.Forget(t.Context(), "red", "lan")
		must(t, err)
		d.expect("forgotten", fmt.Sprint(vni), n.VNI)
	})
}

// TestAwait: a VNI is either a network's or a segment's.
func TestAwait(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, d *desk) {
		n := record.Network{Name: "pods", Pool: "pods", Backend: record.VXLAN, VNI: vni, Port: 4789}
		put(t, d.ledger, "a", "", made())
		d.Stir()
		d.store.Put(record.NetworkFolder+"pods", record.EncodeNetwork(n))
		d.members <- struct{}{}
		d.pass(time.Second)
		d.expect("of one that is there", `network "pods" has this VNI too; give one of them another`, d.Segments()[0].Reason)
		refused := func(what string) {
			t.Helper()
			var field *ipam.FieldError
			if err := d.Await(t.Context(), made()); !errors.As(err, &field) || field.Place != "vni" || !strings.Contains(err.Error(), `network "pods"`) {
				t.Errorf("%s: %v", what, err)
			}
		}
		refused("when it is known")
		if err := d.Await(t.Context(), in()); err != nil {
			t.Errorf("who is only in it: %v", err)
		}
		if err := d.Await(t.Context(), ipam.Uses{Segment: ipam.Segment{VNI: 8, Port: 8472}}); err != nil {
			t.Errorf("another one: %v", err)
		}
		d.set(func() { d.away = errors.New("away") })
		refused("while the registry is away")
		d.set(func() { d.away = nil })
		must(t, registry.Registry{Store: d.store}.DeleteNetwork(t.Context(), "pods"))
		if err := d.Await(t.Context(), made()); err != nil {
			t.Errorf("of no network any more: %v", err)
		}
		fresh := newDesk(t, func(c *Config) { c.Cluster = d }) // which has not looked yet
		d.store.Put(record.NetworkFolder+"pods", record.EncodeNetwork(n))
		if err := fresh.Await(t.Context(), made()); err == nil {
			t.Error("not refused at once")
		}
	})
}

// TestAlone: without a registry a segment is kept in repair, and what leads to
// endpoints is left to whoever has made it.
func TestAlone(t *testing.T) {
	inBubble(t, func(c *Config) { c.Cluster = nil }, func(t *testing.T, d *desk) {
		put(t, d.ledger, "a", "", made())
		put(t, d.ledger, "a", "02:00:00:00:00:01", in(), "10.9.0.1")
		d.Stir()
		d.pass(time.Second)
		built := len(d.built)
		d.hear()
		d.pass(time.Second)
		if built == 0 || len(d.built) <= built {
			t.Errorf("built %d times, and then %d", built, len(d.built))
		}
		d.expect("entries", "", d.kernel())
		s, ok := d.Segment(vni)
		if !ok || len(s.All) != 1 || s.All[0].State != api.EndpointLocal || len(s.Members) != 1 || s.VTEP.String() != "192.0.2.1" || !strings.Contains(s.Reason, "no registry") {
			t.Errorf("%+v", s)
		}
		if err := d.Await(t.Context(), made()); err != nil {
			t.Error(err)
		}
		if _, ok := d.Segment(8); ok {
			t.Error("it is in another one")
		}
	})
}
