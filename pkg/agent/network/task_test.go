package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/agent/network/overlay"
	"github.com/underlay-cni/underlay/pkg/hostnet"
	"github.com/underlay-cni/underlay/pkg/nft"
	"github.com/underlay-cni/underlay/pkg/reconcile"
	"github.com/underlay-cni/underlay/pkg/route"
)

const (
	me   = lease.Node("10000000-0000-4000-8000-000000000000")
	uuid = "a0000000-0000-4000-8000-000000000000"
)

// member is a node's part in a cluster whose registry is a view.
type member struct {
	mu      sync.Mutex
	view    *registry.View
	away    error
	peers   chan struct{}
	stirred int
}

func (m *member) Look(_ context.Context, f func(*registry.View, lease.Node)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away != nil {
		return m.away
	}
	f(m.view, me)
	return nil
}

func (m *member) Peers() <-chan struct{} { return m.peers }

func (m *member) Stir() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stirred++
}

// set changes the view, or says why there is none.
func (m *member) set(away error, items ...registry.Item) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away = away; away == nil {
		m.view.Apply(registry.Batch{Rev: m.view.Rev + 1, Items: items})
	}
	ring(m.peers)
}

// desk is a task with nothing real about it.
type desk struct {
	*Task
	cluster  *member
	wire     *hostnet.Fake
	overlays *overlay.Fake
	routes   *route.Fake
	rules    *nft.Fake
	ledger   *ledger.Ledger
	metrics  *prometheus.Registry
}

func (d *desk) With(f func(*ledger.Ledger) error) error { return f(d.ledger) }

// newDesk has a host with 192.0.0.1/8 on eth1, the network pods of the pool
// 10.0.0.0/8, and what else is in the registry.
func newDesk(t testing.TB, change func(*Config), items ...registry.Item) *desk {
	t.Helper()
	p, err := record.LoadPool([]byte(`{"version":1,"name":"pods","uuid":"` + uuid + `","kind":"routed","ranges":[[{"subnet":"10.0.0.0/8"}]]}`))
	must(t, err)
	items = append([]registry.Item{
		{Key: record.PoolFolder + "pods", Value: record.EncodePool(p), Rev: 2},
		{Key: record.NetworkFolder + "pods", Value: record.EncodeNetwork(record.Network{Name: "pods", Pool: "pods", Backend: record.HostGW}), Rev: 3},
	}, items...)
	d := &desk{
		cluster: &member{view: registry.NewView(registry.List{Rev: 9, Items: items}), peers: make(chan struct{}, 1)},
		wire:    new(hostnet.Fake), overlays: new(overlay.Fake), routes: new(route.Fake), rules: nft.NewFake(), metrics: prometheus.NewRegistry(),
	}
	d.routes.AddLink("eth1")
	d.routes.SetUp("eth1", true)
	d.routes.AddAddr("eth1", netip.MustParsePrefix("192.0.0.1/8"))
	d.wire.Set(hostnet.State{Default: []string{"eth1"}, Links: []hostnet.Link{{Name: "eth1", Up: true, Broadcast: true, Addrs: []hostnet.Addr{{Prefix: netip.MustParsePrefix("192.0.0.1/8")}}}}})
	d.wire.Mute(netip.MustParseAddr("192.1.0.9"))
	dir := t.TempDir()
	d.ledger, err = ledger.Open(t.Context(), ledger.Options{DataDir: dir, RunDir: dir + "/run", BootID: "boot", MachineID: "m"})
	must(t, err)
	t.Cleanup(func() { must(t, d.ledger.Close()) })
	conf := Config{Cluster: d.cluster, Ledger: d, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Registry: d.metrics, Host: d.wire, Overlays: d.overlays, Routes: d.routes, Rules: d.rules}
	noDrops(&conf)
	if change != nil {
		change(&conf)
	}
	d.Task, err = New(conf)
	must(t, err)
	return d
}

// run runs it as long as the test.
func (d *desk) run(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
}

// peer is a node with a block, the i-th one.
func peer(i int) []registry.Item {
	id := lease.Node(fmt.Sprintf("20000000-0000-4000-8000-%012d", i))
	addr := netip.AddrFrom4([4]byte{192, 1, byte(i >> 8), byte(i)})
	cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 10), byte(i >> 2), byte(i << 6)}), 26)
	value, err := record.EncodeBlock(lease.Block{CIDR: cidr, Owner: id})
	if err != nil {
		panic(err)
	}
	return []registry.Item{
		{Key: record.NodeFolder + string(id), Value: record.EncodeNode(record.Node{Node: id, Name: fmt.Sprint("n", i), Addresses: []netip.Addr{addr}}), Rev: 4},
		{Key: record.BlockKey(uuid, cidr), Value: value, Rev: 5},
	}
}

// TestFirst: nothing is written before the registry is known, and nothing goes
// when it is away.
func TestFirst(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil, peer(5)...)
	d.cluster.away = errors.New("the registry is out of reach")
	old := route.Route{Dst: netip.MustParsePrefix("10.9.9.0/26"), Via: netip.MustParseAddr("192.0.0.77"), Dev: "eth1"}
	must(t, d.routes.Put(old, true))
	d.run(t)
	err := d.Await(t.Context(), ipam.Uses{Network: "pods"})
	var coded interface{ CNICode() uint }
	if !errors.As(err, &coded) || coded.CNICode() != ipam.CodeTryAgainLater || !strings.Contains(err.Error(), "out of reach") {
		t.Errorf("Await: %v", err)
	}
	if got := d.routes.String(); got != old.String()+"\n" || d.routes.Calls() != 0 || d.rules.String() != "" {
		t.Errorf("before the first list: %q, %q", got, d.rules)
	}
	d.cluster.set(nil)
	must(t, d.Await(t.Context(), ipam.Uses{Network: "pods"}))
	const want = "10.0.1.64/26 via 192.1.0.5 dev eth1\n"
	if got := d.routes.String(); got != want {
		t.Errorf("routes %q", got)
	}
	d.cluster.set(errors.New("the registry is out of reach"))
	d.Stir()
	must(t, d.Await(t.Context(), ipam.Uses{Network: "pods", Masquerade: true}))
	if got := d.routes.String(); got != want || !strings.Contains(d.rules.String(), "masquerade4 { 10.0.0.0/8 }") {
		t.Errorf("while the registry is away: %q\n%s", got, d.rules)
	}
}

func TestAwait(t *testing.T) {
	t.Parallel()
	d := newDesk(t, func(c *Config) { c.Networks = []string{"pods", "lost", "none", "far"} },
		registry.Item{Key: record.NetworkFolder + "far", Value: record.EncodeNetwork(record.Network{Name: "far", Pool: "pods", Backend: record.VXLAN, VNI: 1, Port: 1}), Rev: 3},
		registry.Item{Key: record.NetworkFolder + "lost", Value: record.EncodeNetwork(record.Network{Name: "lost", Pool: "lost", Backend: record.HostGW}), Rev: 3})
	d.overlays.Fail(1, errors.New("VXLAN device vx1: no way"))
	d.run(t)
	<-d.Ready()
	for _, tt := range []struct {
		uses ipam.Uses
		code uint
		want string
	}{
		{ipam.Uses{Network: "pods"}, 0, ""},
		{ipam.Uses{Network: "pods", Masquerade: true}, 0, ""},
		{ipam.Uses{Network: "lost"}, 11, `network "lost": the registry has no pool "lost"`},
		{ipam.Uses{Network: "far"}, 11, `network "far": VXLAN device vx1: no way`},
		{ipam.Uses{Network: "none"}, 11, `network: the registry knows no network "none"; see: underlayctl network list`},
		{ipam.Uses{Network: "other"}, 7, `network: this node does not follow network "other"; add it to "networks" in underlayd.json`},
	} {
		began := time.Now()
		err := d.Await(t.Context(), tt.uses)
		var coded interface{ CNICode() uint }
		if tt.want == "" && err == nil {
			continue
		}
		if !errors.As(err, &coded) || coded.CNICode() != tt.code || err.Error() != tt.want || time.Since(began) > 2*attachPatience {
			t.Errorf("%+v: after %s: %v", tt.uses, time.Since(began), err)
		}
	}
	d.rules.Fail(errors.New("nft is broken"))
	must(t, d.rules.Flush())
	await(t, "broken rules", "nft is broken", func() string {
		_, after, _ := strings.Cut(d.Routing().Rules, "nft is")
		return "nft is" + after
	})
	if err := d.Await(t.Context(), ipam.Uses{Network: "pods", Masquerade: true}); err == nil || !strings.Contains(err.Error(), "nft is broken") {
		t.Errorf("masquerade without rules: %v", err)
	}
	must(t, d.Await(t.Context(), ipam.Uses{Network: "pods"}))
}

// quick is a kernel that takes everything, and in time that does not depend on
// how much it has.
type quick struct {
	reconcile.Herald
	mu     sync.Mutex
	routes map[route.Key]route.Route
}

func (q *quick) List(context.Context) (out []route.Route, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range q.routes {
		out = append(out, r)
	}
	return out, nil
}

func (q *quick) Change(_ context.Context, changes []reconcile.Change[route.Route]) ([]error, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range changes {
		if c.Verb == reconcile.Delete {
			delete(q.routes, c.Old.Key())
		} else {
			q.routes[c.New.Key()] = c.New
		}
	}
	return make([]error, len(changes)), nil
}

func (q *quick) Close() error { return nil }

func (q *quick) count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.routes)
}

// TestWithdraw: peers are told at once of an address that comes, and of one that
// goes when it stays away; and never that there is none.
func TestWithdraw(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, nil)
		d.run(t)
		step := func(what, want string, wait time.Duration, addrs ...string) {
			t.Helper()
			l := hostnet.Link{Name: "eth1", Up: true, Broadcast: true}
			for _, a := range addrs {
				l.Addrs = append(l.Addrs, hostnet.Addr{Prefix: netip.MustParsePrefix(a)})
			}
			d.wire.Set(hostnet.State{Default: []string{"eth1"}, Links: []hostnet.Link{l}})
			time.Sleep(wait)
			if got := fmt.Sprint(d.Addresses()); got != want {
				t.Errorf("%s: %s, want %s", what, got, want)
			}
		}
		const soon, late = time.Second, 2 * withdrawAfter
		step("the first", "[192.0.0.1]", soon, "192.0.0.1/8")
		step("one more", "[192.0.0.1 2001:db8::1]", soon, "192.0.0.1/8", "2001:db8::1/64")
		step("it goes", "[192.0.0.1 2001:db8::1]", soon, "192.0.0.1/8")
		step("and comes back", "[192.0.0.1 2001:db8::1]", late, "192.0.0.1/8", "2001:db8::1/64")
		step("it goes again", "[192.0.0.1 2001:db8::1]", soon, "192.0.0.1/8")
		step("for good", "[192.0.0.1]", late, "192.0.0.1/8")
		step("another one", "[192.0.0.2]", soon, "192.0.0.2/8")
		step("none", "[192.0.0.2]", late)
		step("one again", "[192.0.0.3]", soon, "192.0.0.3/8")
		d.cluster.mu.Lock()
		defer d.cluster.mu.Unlock()
		if d.cluster.stirred != 5 {
			t.Errorf("the registry was to be told %d times, want 5", d.cluster.stirred)
		}
	})
}

// TestMany: 5,000 peers, and as many of which a fifth is unreachable and another
// cannot be read, take about the same time, and not much memory.
func TestMany(t *testing.T) {
	const peers = 5000
	start := func(odd bool) (*desk, *quick, time.Duration) {
		var items []registry.Item
		for i := range peers {
			p := peer(i)
			switch {
			case odd && i%10 == 1: // on no subnet
				id := lease.Node(fmt.Sprintf("20000000-0000-4000-8000-%012d", i))
				p[0].Value = record.EncodeNode(record.Node{Node: id, Name: "far", Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.1")}})
			case odd && i%10 == 2:
				p[1].Value = []byte("{")
			}
			items = append(items, p...)
		}
		q := &quick{routes: make(map[route.Key]route.Route)}
		d := newDesk(t, func(c *Config) { c.Routes = q }, items...)
		began := time.Now()
		d.run(t)
		<-d.Ready()
		took := time.Since(began)
		must(t, d.Await(t.Context(), ipam.Uses{Network: "pods"}))
		return d, q, took
	}
	_, _, plain := start(false)
	d, q, odd := start(true)
	t.Logf("%d peers: %s; a fifth of them unreachable or odd: %s", peers, plain, odd)
	if odd > 2*plain+100*time.Millisecond {
		t.Errorf("%d peers take %s, and %s where a fifth is unreachable or odd", peers, plain, odd)
	}
	counts := map[api.PeerState]int{}
	for _, p := range d.Peers("pods") {
		counts[p.State]++
	}
	if got := len(d.Routing().Skipped); got != peers/10 || counts[api.PeerUnreachable] != peers/10 || counts[api.PeerFailed]+counts[api.PeerPending] > 0 {
		t.Errorf("%d skipped, %v", got, counts)
	}
	began := time.Now()
	d.cluster.set(nil, peer(peers)...)
	await(t, "one more", fmt.Sprint(peers*8/10+1), func() string { return fmt.Sprint(q.count()) })
	t.Logf("one more: %s", time.Since(began))
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("heap of two desks: %d MB", m.HeapAlloc>>20)
}

// TestStates: what is told of peers, and the metrics.
func TestStates(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil, append(peer(9), peer(10)...)...)
	must(t, d.routes.Put(route.Route{Dst: netip.MustParsePrefix("10.0.2.128/26"), Via: netip.MustParseAddr("192.0.0.77"), Dev: "eth1"}, false))
	d.run(t)
	await(t, "states", "n10 failed: add route 10.0.2.128/26 via 192.1.0.10 dev eth1: a route of somebody else to the same prefix is in the way\nn9 silent: nobody answers at 192.1.0.9\n", func() (out string) {
		for _, p := range d.Peers("") {
			out += fmt.Sprintf("%s %s: %s\n", p.Name, p.State, p.Reason)
		}
		return out
	})
	const want = `
# HELP underlay_peers Peers by network and by how they are reached: direct, vxlan, silent, pending, failed, unreachable.
# TYPE underlay_peers gauge
underlay_peers{network="pods",state="direct"} 0
underlay_peers{network="pods",state="failed"} 1
underlay_peers{network="pods",state="pending"} 0
underlay_peers{network="pods",state="silent"} 1
underlay_peers{network="pods",state="unreachable"} 0
underlay_peers{network="pods",state="vxlan"} 0
# HELP underlay_nftables_kept 1 if the nftables table is as it has to be.
# TYPE underlay_nftables_kept gauge
underlay_nftables_kept 1
`
	if err := testutil.GatherAndCompare(d.metrics, strings.NewReader(want), "underlay_peers", "underlay_nftables_kept"); err != nil {
		t.Error(err)
	}
	if four, six := d.wire.Forwards("eth1"); !four || six {
		t.Errorf("forwards IPv4 %v, IPv6 %v", four, six)
	}
}
