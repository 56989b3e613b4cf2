package cluster_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/admin"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		// Scripts leave out where their ledger is.
		"underlayctl": func() {
			dir := os.Getenv("LEDGER")
			args := append(os.Args[1:len(os.Args):len(os.Args)], "--data-dir="+dir, "--run-dir="+dir+".run")
			os.Exit(cli.Run(context.Background(), args, cli.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
		},
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("GORACE", "atexit_sleep_ms=0") // a second for each command under -race
			w := &world{dir: filepath.Join(env.WorkDir, "ledger"), store: memstore.New()}
			env.Setenv("LEDGER", w.dir)
			env.Setenv("NODE2", string(n2))
			env.Setenv("POOL", podsUUID)
			env.Values["world"] = w
			env.Defer(func() { _ = w.stop() })
			n1, err := w.fill()
			env.Setenv("NODE1", string(n1))
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// agent starts one: with the registry, or with none.
			"agent": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(worldOf(ts).start(len(args) == 0))
			},
			"stop":   func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(worldOf(ts).stop()) },
			"freeze": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(worldOf(ts).freeze()) },
			// lend lends a block of the pool pods, which may be in use, through a file.
			"lend": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(worldOf(ts).ledger.Lend(podsUUID, netip.MustParsePrefix(args[0]), args[1], true))
			},
			// odd puts a value into the registry that cannot be read.
			"odd": func(ts *testscript.TestScript, _ bool, args []string) {
				worldOf(ts).store.Put(record.Prefix+args[0], []byte(`{"version":2}`))
			},
			// rig has changes of the folder fail on their way, or their answers get lost.
			"rig": func(ts *testscript.TestScript, _ bool, args []string) {
				fault := map[string]memstore.Fault{"fail": memstore.Fail, "lose": memstore.Lose}[args[0]]
				worldOf(ts).store.Rig(func(r memstore.Request) memstore.Fault {
					if r.Kind == "swap" && strings.HasPrefix(r.Key, record.Prefix+args[1]) {
						return fault
					}
					return memstore.Deliver
				})
			},
			// cut keeps all requests from the registry.
			"cut": func(ts *testscript.TestScript, _ bool, _ []string) {
				worldOf(ts).store.Rig(func(memstore.Request) memstore.Fault { return memstore.Fail })
			},
		},
	})
}

const (
	n2       = lease.Node("20000000-0000-4000-8000-000000000000")
	podsUUID = "a0000000-0000-4000-8000-00000000000f"
)

// world is a node with a ledger, and the registry of its cluster.
type world struct {
	dir    string
	store  *memstore.Store
	ledger *ledger.Ledger
	cancel func()
	ended  chan error
}

func worldOf(ts *testscript.TestScript) *world { return ts.Value("world").(*world) }

func (w *world) registry() registry.Registry {
	return registry.Registry{Store: w.store, Now: func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }}
}

// With implements admin.Ledger.
func (w *world) With(f func(*ledger.Ledger) error) error { return f(w.ledger) }

func (w *world) open() (err error) {
	w.ledger, err = ledger.Open(context.Background(), ledger.Options{DataDir: w.dir, RunDir: w.dir + ".run"})
	return err
}

// fill makes the pool pods of tenant red. This node, n1, leases 10.5.0.0/30 and
// holds .2 of it; node n2, which is silent, leases 10.5.0.4/30, has given .5 to
// this node and parked .6. The local pool lan has one address held.
func (w *world) fill() (lease.Node, error) {
	if err := w.open(); err != nil {
		return "", err
	}
	defer w.stop()
	n1, err := w.ledger.Node()
	if err != nil {
		return "", err
	}
	reg, ctx := w.registry(), context.Background()
	pods, err := record.LoadPool([]byte(`{"version":1,"name":"pods","uuid":"` + podsUUID + `","tenant":"red","kind":"shared","ranges":[[{"subnet":"10.5.0.0/28"}]],"blockPrefix":{"ipv4":30},"sticky":true}`))
	if err != nil {
		return "", err
	}
	w.store.Put(record.PoolFolder+"pods", record.EncodePool(pods))
	w.store.Put(record.ClusterKey, record.EncodeCluster(record.Cluster{ID: "c0000000-0000-4000-8000-000000000001", Epoch: lease.Epoch{Number: 1, ID: "e0000000-0000-4000-8000-000000000001"}}))
	first := lease.Block{CIDR: netip.MustParsePrefix("10.5.0.0/30"), Owner: n1}
	second := lease.Block{CIDR: netip.MustParsePrefix("10.5.0.4/30"), Owner: n2, Given: map[netip.Addr]lease.Entry{
		netip.MustParseAddr("10.5.0.5"): {Node: n1}, netip.MustParseAddr("10.5.0.6"): {Key: "ns/web-0", Since: reg.Now()},
	}}
	errs := []error{
		reg.Enroll(ctx, record.Node{Node: n1, Name: "n1", Machine: "m1", Asserted: 1, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}),
		reg.Enroll(ctx, record.Node{Node: n2, Name: "n2", Machine: "m2", Asserted: 1}),
		w.ledger.SetPools([]ipam.Pool{pods.IPAM()}),
	}
	_, err = reg.Bind(ctx, record.Live{Node: n1, Machine: "m1"}, time.Minute)
	errs = append(errs, err)
	for _, b := range []lease.Block{first, second} {
		seen, a := reg.Send(ctx, podsUUID, lease.Step{Do: lease.Send, Block: b})
		if a.Outcome != registry.Applied {
			errs = append(errs, errors.New("a block was not leased"))
		}
		_, err := w.ledger.Learn(podsUUID, seen, true)
		errs = append(errs, err)
	}
	lan := ipam.Pool{Name: "lan", Sets: []ipam.RangeSet{{{
		Subnet:   netip.MustParsePrefix("192.0.2.0/29"),
		Interval: ipam.Interval{First: netip.MustParseAddr("192.0.2.2"), Last: netip.MustParseAddr("192.0.2.6")},
	}}}}
	errs = append(errs, w.ledger.Confirm())
	for _, req := range []ipam.AllocateRequest{
		{Attachment: ipam.Attachment{Network: "lan", ContainerID: "web", IfName: "eth0"}, Pool: lan},
		{Attachment: ipam.Attachment{Network: "pods", ContainerID: "web", IfName: "eth1"}, Cluster: "pods"},
	} {
		_, err := w.ledger.Allocate(req, nil)
		errs = append(errs, err)
	}
	return n1, errors.Join(errs...)
}

func (w *world) freeze() error {
	return w.registry().Freeze(context.Background(), record.Frozen{Node: n2, Reason: "revision 7 after 90", Epoch: 1, Rev: 90})
}

// start starts what of the agent answers underlayctl.
func (w *world) start(cluster bool) error {
	if err := w.open(); err != nil {
		return err
	}
	conf := admin.Config{
		Node: "n1", Version: "v0", Socket: filepath.Join(w.dir+".run", admin.SocketName), DataDir: w.dir, Ledger: w,
		Pending: func() []string { return nil }, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
	}
	if cluster {
		conf.Cluster = func() (registry.Registry, error) { return w.registry(), nil }
		conf.Networks, conf.Segments = routed{}, segments{}
	}
	server, err := admin.New(conf)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.ended = cancel, make(chan error, 1)
	go func() { w.ended <- server.Run(ctx) }()
	select {
	case <-server.Ready():
		return nil
	case err := <-w.ended:
		w.cancel = nil
		return err
	}
}

// stop ends the agent, and closes the ledger.
func (w *world) stop() (err error) {
	if w.cancel != nil {
		w.cancel()
		err, w.cancel = <-w.ended, nil
	}
	if w.ledger != nil {
		err, w.ledger = errors.Join(err, w.ledger.Close()), nil
	}
	return err
}

// routed is a node that reaches one of two peers, and has a firewall.
type routed struct{}

func (routed) Peers(network string) []api.Peer {
	if network == "nosuch" {
		return []api.Peer{}
	}
	return []api.Peer{
		{Network: "pods", NodeName: api.NodeName{Node: string(n2), Name: "n2"}, Address: netip.MustParseAddr("192.0.2.2"), Dev: "eth1",
			Prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.0.64/26"), netip.MustParsePrefix("10.5.1.0/26")}, State: api.PeerDirect},
		{Network: "pods", NodeName: api.NodeName{Node: podsUUID}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.2.0/26")},
			State: api.PeerUnreachable, Reason: "198.51.100.7 is on no subnet that this node is on"},
	}
}

func (routed) Routing() api.Routing {
	return api.Routing{
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Networks: []api.RoutingNetwork{{Name: "pods", Backend: "hostgw", Pool: "pods", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")},
			Own: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/26")}, Synced: true}},
		Drops:   []api.ForwardDrop{{Chain: "ip filter FORWARD (nft)", Command: "iptables-nft -I DOCKER-USER -j ACCEPT"}},
		Skipped: []api.SkippedRecord{{Network: "pods", Node: string(n2), Block: netip.MustParsePrefix("10.5.3.0/26"), Reason: "version 2"}},
	}
}

// segments is a node that is in one, with another node.
type segments struct{}

func (segments) Segments() []api.Segment {
	return []api.Segment{{VNI: 5001, Port: 8472, Parent: "eth1", VTEP: netip.MustParseAddr("192.0.2.1"), MTU: 1450, Synced: true, Published: true, Nodes: 3, Endpoints: 2}}
}

func (segments) Segment(vni int) (s api.SegmentDetail, ok bool) {
	if vni != 5001 {
		return s, false
	}
	one, two := api.NodeName{Node: podsUUID, Name: "n1"}, api.NodeName{Node: string(n2)}
	return api.SegmentDetail{
		Segment: segments{}.Segments()[0],
		Members: []api.SegmentMember{
			{NodeName: one, Local: true, VTEP: netip.MustParseAddr("192.0.2.1"), Port: 8472, Endpoints: 1},
			{NodeName: two, VTEP: netip.MustParseAddr("192.0.2.2"), Port: 4789, Endpoints: 1, Reason: "it takes VXLAN at port 4789"},
		},
		All: []api.SegmentEndpoint{
			{NodeName: one, MAC: "02:00:5e:00:53:01", Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("2001:db8:9::1")}, State: api.EndpointLocal},
			{NodeName: two, MAC: "02:00:5e:00:53:02", Addresses: []netip.Addr{}, State: api.EndpointUnreachable, Reason: "it takes VXLAN at port 4789"},
		},
		Skipped: []api.SkippedEndpoints{{Node: podsUUID, Reason: "version 2"}},
	}, true
}

// TestUsage: what the command line itself says wrong is told before any agent
// is asked.
func TestUsage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, tt := range []struct{ line, want string }{
		{"pool create", "accepts 1 arg"},
		{"pool create a --subnet 10.0.0.0", `--subnet: "10.0.0.0" is not a prefix`},
		{"pool create a --gateway 10.0.0.1", "--gateway needs --subnet"},
		{"pool create a --subnet 10.0.0.0/24 --sticky=often", `--sticky: "often"`},
		{"pool create a --subnet 10.0.0.0/24 --sticky-for 1h", "without --sticky"},
		{"pool create a --subnet 10.0.0.0/24 --expected-nodes many", "many"},
		{"pool delete", "accepts 1 arg"},
		{"pool show a --kind flat", `--kind: "flat"`},
		{"pool updat a", "did you mean update?"},
		{"network show", "accepts 1 arg"},
		{"network import", "needs a command"},
		{"network import flannel", "accepts 1 arg"},
		{"network import flanel x", "did you mean flannel?"},
		{"tenant quota red", "accepts 2 arg"},
		{"tenant quota red many", `"many" is not a number of addresses`},
		{"tenant quota red -- -1", `"-1" is not a number of addresses`},
		{"node remove n1", "switch it off, and then say --yes-it-is-off"},
		{"node remove n1 --yes-it-is-off --rest=-1s", "--rest: -1s is negative"},
		{"node remove n1 --yes-it-is-off --rest=1d", "1d"},
		{"registry recovered", "then say --yes"},
		{"lease list pods", "unknown command"},
		{"segment show", "accepts 1 arg"},
		{"segment show red", `"red" is no VNI, which is between 1 and 16777215`},
		{"segment show 16777216", "between 1 and 16777215"},
	} {
		t.Run(tt.line, func(t *testing.T) {
			t.Parallel()
			status, complaints := run(t, dir, strings.Fields(tt.line)...)
			if status != 2 || !strings.Contains(complaints, tt.want) || !strings.Contains(complaints, "hint: ") {
				t.Errorf("status %d, stderr %q", status, complaints)
			}
		})
	}
}

func run(t *testing.T, dir string, args ...string) (status int, complaints string) {
	t.Helper()
	var out, err strings.Builder
	// Flags first: "--" may end them.
	args = append([]string{"--data-dir=" + dir, "--run-dir=" + dir}, args...)
	status = cli.Run(t.Context(), args, cli.Stdio{In: strings.NewReader(""), Out: &out, Err: &err})
	return status, err.String()
}
