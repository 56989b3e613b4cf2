package ledger

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

func routes(dst ...string) (out []ipam.Route) {
	for _, d := range dst {
		out = append(out, ipam.Route{Dst: netip.MustParsePrefix(d)})
	}
	return out
}

// Routes of a pool come with its addresses. A configuration that contradicts
// them gets nothing, and loses nothing that it has.
func TestClusterRoutes(t *testing.T) {
	t.Parallel()
	equal := cmp.Comparer(func(a, b ipam.Route) bool { return a.Equal(b) })
	l, o, p := clusterPool(t, newClock(), func(p *ipam.Pool) { p.Routes = routes("0.0.0.0/0", "10.0.0.0/8") })
	want := func(req ipam.AllocateRequest, want []ipam.Route) {
		t.Helper()
		got, err := l.Allocate(req, nil)
		must(t, err)
		if diff := cmp.Diff(want, got.Routes, equal); diff != "" {
			t.Errorf("routes (-want +got):\n%s", diff)
		}
	}
	want(named("a"), p.Routes)
	shut(t, l)
	l = open(t, o)
	want(named("a"), p.Routes)
	req := named("b")
	req.Routes = p.Routes
	want(req, p.Routes)

	before := sequence(t, l)
	for _, id := range []string{"a", "c"} {
		req := named(id)
		req.Routes = routes("0.0.0.0/0")
		decided := false
		_, err := l.Allocate(req, func(ipam.Allocation) { decided = true })
		if code(err) != ipam.CodeInvalidConfig || !strings.Contains(fmt.Sprint(err), `[{"dst":"0.0.0.0/0"}] differ`) || !strings.Contains(err.Error(), `{"dst":"10.0.0.0/8"}`) || decided {
			t.Errorf("other routes for %s: %v, decided %v", id, err, decided)
		}
	}
	wantStates(t, l, "10.9.0.8 held a", "10.9.0.9 held b")
	if n := sequence(t, l); n != before {
		t.Errorf("%d transactions for what was refused", n-before)
	}

	p.Routes = nil
	must(t, l.SetPools([]ipam.Pool{p}))
	want(named("a"), nil)
	req = named("c")
	req.Routes = routes("0.0.0.0/0")
	want(req, req.Routes)
	// A local pool leaves its routes to the configuration.
	local := request(pool("local", set(t, "10.0.0.0/24")), "l")
	local.Routes = routes("::/0")
	want(local, nil)
}

// The MAC of an address of a cluster pool is the same on every node, and also on
// one that is another node now.
func TestClusterMAC(t *testing.T) {
	t.Parallel()
	mac := func(l *Ledger, req ipam.AllocateRequest) string {
		t.Helper()
		req.MACPrefix = "02"
		got, err := l.Allocate(req, nil)
		must(t, err)
		if got.MAC == "" {
			t.Fatal("no MAC")
		}
		return fmt.Sprint(addrs(got), " ", got.MAC)
	}
	one, _, _ := clusterPool(t, newClock())
	two, _, _ := clusterPool(t, newClock())
	local := request(pool("local", set(t, "10.0.0.0/24")), "l")
	if a, b := mac(one, local), mac(two, local); a == b {
		t.Errorf("two nodes give out %s of a local pool", a)
	}
	first := mac(one, named("a"))
	if other := mac(two, named("a")); other != first {
		t.Errorf("%s on one node, %s on another", first, other)
	}
	if next := mac(one, named("b")); strings.HasSuffix(next, strings.Fields(first)[1]) {
		t.Errorf("%s has the MAC of %s", next, first)
	}
	_, err := one.Renew()
	must(t, err)
	if again := mac(one, named("a")); again != first {
		t.Errorf("%s, and %s as another node", first, again)
	}
	// Another network, or another pool that has the name later, is told apart.
	del(t, two, "a")
	req := named("a")
	req.Attachment.Network = "other"
	if other := mac(two, req); other == first {
		t.Errorf("%s on two networks", first)
	}
}

// What somebody else answers for rests, here and for all nodes, and the next
// candidate is another one.
func TestClusterConflict(t *testing.T) {
	t.Parallel()
	c := newClock()
	l, o, _ := clusterPool(t, c, func(p *ipam.Pool) { p.Quarantine = time.Minute })
	conflict := func(id, addr string) {
		t.Helper()
		_, err := l.Release(ipam.ReleaseRequest{Attachment: att(id), Undo: true,
			Conflict: []ipam.Conflict{{Address: netip.MustParseAddr(addr), Reason: "answered by 02:00:00:00:00:01"}}})
		must(t, err)
	}
	for i := range 8 {
		got := add(t, l, named("a"))
		if want := fmt.Sprintf("10.9.0.%d", 8+i); got != want {
			t.Fatalf("candidate %s, want %s", got, want)
		}
		conflict("a", got)
		sound(t, l)
	}
	_, err := l.Allocate(named("a"), nil)
	var full *ipam.ExhaustedError
	if want := (ipam.Counts{Usable: 254, Quarantined: 8, Elsewhere: 246}); !errors.As(err, &full) || full.Counts != want {
		t.Errorf("with all in quarantine: %v", err)
	}
	req := named("a")
	ips("10.9.0.8")(&req)
	var taken *ipam.TakenError
	if _, err := l.Allocate(req, nil); !errors.As(err, &taken) || taken.State != ipam.Quarantined {
		t.Errorf("one of them by name: %v", err)
	}
	// Nor does another node get it.
	spares, err := l.Spares(clusterUUID, 10)
	must(t, err)
	if len(spares) > 0 {
		t.Errorf("to be given away: %+v", spares)
	}
	s, err := leased(l)
	must(t, err)
	if err := l.Intend(clusterUUID, s, map[netip.Addr]lease.Entry{netip.MustParseAddr("10.9.0.8"): {Node: "other"}}); !errors.Is(err, lease.ErrInUse) {
		t.Errorf("to give what is in quarantine: %v", err)
	}
	shut(t, l)
	l = open(t, o)
	c.add(time.Minute)
	add(t, l, named("a"))
	if spares, err = l.Spares(clusterUUID, 10); err != nil || len(spares) != 7 {
		t.Errorf("after it: %+v, %v", spares, err)
	}
}

func TestCluster(t *testing.T) {
	t.Parallel()
	l, _, want := clusterPool(t, newClock())
	if p, err := l.Cluster("lan"); err != nil || p.UUID != want.UUID {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := l.Cluster("wan"); code(err) != ipam.CodeTryAgainLater || !strings.Contains(fmt.Sprint(err), `"wan"`) || !strings.Contains(err.Error(), "underlayd") {
		t.Errorf("a pool that nobody knows: %v", err)
	}
}
