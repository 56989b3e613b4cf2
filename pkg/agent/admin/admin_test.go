package admin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"sigs.k8s.io/yaml"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// shelf is where the agent's ledger is, unless it is away.
type shelf struct {
	mu   sync.Mutex
	l    *ledger.Ledger
	away error
}

func (s *shelf) With(f func(*ledger.Ledger) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away != nil {
		return s.away
	}
	return f(s.l)
}

func (s *shelf) put(away error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

func slogNowhere() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serve starts a server of a ledger with 10.0.0.2 held by c1 and 10.0.0.3 by
// c2, which uses a VLAN.
func serve(t *testing.T) (*api.Client, *shelf, *Server) {
	t.Helper()
	return serveIn(t, nil)
}

// serveIn is serve in a cluster; nil is none.
func serveIn(t *testing.T, cluster func() (registry.Registry, error)) (*api.Client, *shelf, *Server) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ul") // the path of a socket has 108 octets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := ledger.Open(t.Context(), ledger.Options{DataDir: filepath.Join(dir, "data"), RunDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	cfg, err := ipam.Load([]byte(`{"type":"underlay","ranges":[[{"subnet":"10.0.0.0/24"}]]}`), "lan/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"c1", "c2"} {
		req := ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "lan/1", ContainerID: id, IfName: "eth0"}, Pool: cfg.Pool}
		if id == "c2" {
			req.Attachment.Network, req.Uses = "other", ipam.Uses{Parent: "eth1", VLAN: 5}
		}
		if _, err := l.Allocate(req, nil); err != nil {
			t.Fatal(err)
		}
	}
	s := &shelf{l: l}
	server, err := New(Config{Node: "n1", Version: "v0", Socket: filepath.Join(dir, SocketName), DataDir: "/data", Ledger: s,
		Pending: func() []string { return nil }, Log: slogNowhere(), Registry: prometheus.NewRegistry(), Cluster: cluster})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	<-server.Ready()
	c := api.NewClient(dir)
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return c, s, server
}

func TestAPI(t *testing.T) {
	t.Parallel()
	c, shelf, server := serve(t)
	ctx := t.Context()
	if info, err := os.Stat(server.conf.Socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", info, err)
	}
	if n, err := c.Node(ctx); err != nil || n.Name != "n1" || n.Version != "v0" || n.DataDir != "/data" || n.Ledger.Held != 2 {
		t.Errorf("node: %+v, %v", n, err)
	}
	if p, err := c.Pools(ctx); err != nil || len(p) != 1 || p[0].Name != "lan/1" || p[0].Counts[0].Held != 2 {
		t.Errorf("pools: %+v, %v", p, err)
	}
	if p, err := c.Pool(ctx, "lan/1"); err != nil || p.Counts[0].Usable != 253 {
		t.Errorf("pool: %+v, %v", p, err)
	}
	if _, err := c.Pool(ctx, "none"); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("no pool: %v", err)
	}
	for _, tt := range []struct {
		f    api.AddressFilter
		want int
	}{{api.AddressFilter{}, 2}, {api.AddressFilter{Network: "other"}, 1}, {api.AddressFilter{Pool: "lan/1", State: ipam.Held}, 2}, {api.AddressFilter{State: ipam.Cooling}, 0}} {
		if r, err := c.Addresses(ctx, tt.f); err != nil || len(r) != tt.want {
			t.Errorf("addresses of %+v: %+v, %v", tt.f, r, err)
		}
	}
	var field *ipam.FieldError
	if _, err := c.Addresses(ctx, api.AddressFilter{State: "odd"}); !errors.As(err, &field) || field.Place != "state" {
		t.Errorf("an odd state: %v", err)
	}
	if a, err := c.Attachments(ctx, "other"); err != nil || len(a) != 1 || a[0].Uses.VLAN != 5 {
		t.Errorf("attachments: %+v, %v", a, err)
	}
	if v, err := c.Check(ctx); err != nil || len(v.Findings) > 0 {
		t.Errorf("check: %+v, %v", v, err)
	}
	d, err := c.Ledger(ctx)
	if err != nil || len(d.Addresses) != 2 || len(d.Attachments) != 2 || len(d.Pools) != 1 {
		t.Errorf("ledger: %+v, %v", d, err)
	}
	second := netip.MustParseAddr("10.0.0.2")
	if r, err := c.Address(ctx, second); err != nil || r.Address.Addr() != second {
		t.Errorf("address: %+v, %v", r, err)
	}
	if r, err := c.ReleaseAddress(ctx, second); err != nil || r.State != ipam.Held {
		t.Errorf("release: %+v, %v", r, err)
	}
	if r, err := c.ReleaseAddress(ctx, second); err != nil || r.State != ipam.Cooling {
		t.Errorf("release again: %+v, %v", r, err)
	}
	if _, err := c.Address(ctx, second); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("a free address: %v", err)
	}
	if _, err := c.ReleaseAddress(ctx, second); !errors.As(err, &field) {
		t.Errorf("release of a free address: %v", err)
	}
	if r, err := c.Ready(ctx); err != nil || !r.Ready {
		t.Errorf("ready: %+v, %v", r, err)
	}
	shelf.put(&ipam.LedgerError{Path: "/x", Msg: "gives out no addresses", Err: ledger.ErrLost})
	if r, err := c.Ready(ctx); err != nil || r.Ready || !strings.Contains(r.Reason, "gives out no addresses") {
		t.Errorf("without a ledger: %+v, %v", r, err)
	}
	if _, err := c.Node(ctx); !errors.Is(err, ledger.ErrLost) {
		t.Errorf("without a ledger: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	_, shelf, server := serve(t)
	problems, err := testutil.GatherAndLint(server.conf.Registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%+v, %v", problems, err)
	}
	const want = `
# HELP underlay_addresses Addresses that are not free, by pool and state.
# TYPE underlay_addresses gauge
underlay_addresses{pool="lan/1",state="held"} 2
# HELP underlay_serving 1 if the agent has the ledger open and serves plugins.
# TYPE underlay_serving gauge
underlay_serving 1
`
	if err := testutil.GatherAndCompare(server.conf.Registry, strings.NewReader(want), "underlay_addresses", "underlay_serving"); err != nil {
		t.Error(err)
	}
	shelf.put(errors.New("away"))
	const without = `
# HELP underlay_serving 1 if the agent has the ledger open and serves plugins.
# TYPE underlay_serving gauge
underlay_serving 0
`
	if err := testutil.GatherAndCompare(server.conf.Registry, strings.NewReader(without), "underlay_addresses", "underlay_serving"); err != nil {
		t.Error(err)
	}
}

// TestOpenAPI: the description has the routes that are served, and no others,
// and each answers as it says.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	_, _, server := serve(t)
	var doc struct {
		Paths      map[string]map[string]any
		Components map[string]map[string]any
	}
	if err := yaml.Unmarshal(api.OpenAPI, &doc); err != nil {
		t.Fatal(err)
	}
	for _, ref := range regexp.MustCompile(`"#/components/(\w+)/(\w+)"`).FindAllStringSubmatch(string(api.OpenAPI), -1) {
		if doc.Components[ref[1]][ref[2]] == nil {
			t.Errorf("%s is referred to, and missing", ref[0])
		}
	}
	var described, served []string
	for path, methods := range doc.Paths {
		for m := range methods {
			if m != "parameters" {
				described = append(described, strings.ToUpper(m)+" "+path)
			}
		}
	}
	for p := range server.plain() {
		served = append(served, p)
	}
	for p := range server.documents() {
		served = append(served, p)
	}
	for p := range server.cluster() {
		served = append(served, p)
	}
	for p := range server.networked() {
		served = append(served, p)
	}
	for p := range server.segmented() {
		served = append(served, p)
	}
	slices.Sort(described)
	slices.Sort(served)
	if diff := cmp.Diff(described, served); diff != "" {
		t.Errorf("routes (-described +served):\n%s", diff)
	}
	h := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", server.conf.Socket)
	}}}
	defer h.CloseIdleConnections()
	for _, route := range append(served, "GET /nosuch", "POST /v1/node") {
		if slices.Contains(ofStates, route) {
			continue
		}
		method, path, _ := strings.Cut(route, " ")
		path = strings.NewReplacer("{name}", "lan%2F1", "{address}", "10.0.0.2", "{vni}", "7", "{segment}", "s").Replace(path)
		req, err := http.NewRequestWithContext(t.Context(), method, "http://x"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := h.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		want := http.StatusOK
		switch {
		case !slices.Contains(served, route), route == "GET /v1/segments/{vni}": // this node is in none
			want = http.StatusNotFound
		case server.cluster()[route] != nil, server.networked()[route] != nil:
			want = http.StatusServiceUnavailable // this agent has no registry
		}
		if err != nil || res.StatusCode != want || len(body) == 0 {
			t.Errorf("%s: %s, %d bytes, %v", route, res.Status, len(body), err)
		}
	}
}
