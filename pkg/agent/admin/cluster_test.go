package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

const (
	n1 = "10000000-0000-4000-8000-000000000000"
	n2 = "20000000-0000-4000-8000-000000000000"
	n3 = "30000000-0000-4000-8000-000000000000"
)

const podsDocument = `{"version":1,"name":"pods","tenant":"red","kind":"shared","ranges":[[{"subnet":"10.5.0.0/28"}]],"blockPrefix":{"ipv4":30},"sticky":true}`

// cluster makes a registry in which node one, which is alive, leases
// 10.5.0.0/30 of the pool pods, and node two, which is not, 10.5.0.4/30, of
// which it has given .5 to node one and parked .6.
func cluster(t testing.TB) (*memstore.Store, registry.Registry, record.Pool) {
	t.Helper()
	store := memstore.New()
	reg := registry.Registry{Store: store, Now: func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }}
	ctx := context.Background()
	p, err := record.LoadPool([]byte(podsDocument))
	if err != nil {
		t.Fatal(err)
	}
	_, err = reg.Open(ctx)
	made, perr := reg.CreatePool(ctx, p)
	_, berr := reg.Bind(ctx, record.Live{Node: n1, Machine: "m"}, time.Minute)
	for _, err := range []error{
		err, perr, berr,
		reg.Enroll(ctx, record.Node{Node: n1, Name: "one", Machine: "m", Asserted: 1, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}),
		reg.Enroll(ctx, record.Node{Node: n2, Name: "two"}),
		reg.PutNetwork(ctx, record.Network{Name: "net", Tenant: "red", Pool: "pods", Backend: record.HostGW}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range []lease.Block{
		{CIDR: netip.MustParsePrefix("10.5.0.0/30"), Owner: n1},
		{CIDR: netip.MustParsePrefix("10.5.0.4/30"), Owner: n2, Given: map[netip.Addr]lease.Entry{
			netip.MustParseAddr("10.5.0.5"): {Node: n1}, netip.MustParseAddr("10.5.0.6"): {Key: "ns/web-0", Since: reg.Now()},
		}},
		{CIDR: netip.MustParsePrefix("10.5.0.8/30")}, // leased once, and given back
	} {
		if _, a := reg.Send(ctx, made.UUID, lease.Step{Do: lease.Send, Block: b}); a.Outcome != registry.Applied {
			t.Fatal(a)
		}
	}
	return store, reg, made
}

func always(reg registry.Registry) func() (registry.Registry, error) {
	return func() (registry.Registry, error) { return reg, nil }
}

var same = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty(),
	cmp.Transformer("compact", func(raw json.RawMessage) string {
		var b bytes.Buffer
		_ = json.Compact(&b, raw)
		return b.String()
	}),
}

func expect(t *testing.T, what string, want, got any, err error) {
	t.Helper()
	if diff := cmp.Diff(want, got, same...); err != nil || diff != "" {
		t.Errorf("%s: %v (-want +got)\n%s", what, err, diff)
	}
}

func TestPoolsOfTheCluster(t *testing.T) {
	t.Parallel()
	_, reg, pods := cluster(t)
	c, _, _ := serveIn(t, always(reg))
	ctx := t.Context()
	// Usable are 10.5.0.2 to .14 without the gateway .1; .1 and .0 are leased too.
	listed, err := c.ClusterPools(ctx)
	expect(t, "list", []api.ClusterPool{{Pool: pods, Networks: []string{"net"},
		Sets: []api.ClusterCounts{{Usable: 13, Leased: 2 + 3, Parked: 1, Blocks: 2}}}}, listed, err)
	one, err := c.ClusterPool(ctx, "pods")
	expect(t, "one", pods, one, err)
	more, err := c.CreatePool(ctx, []byte(`{"version":1,"name":"more","kind":"routed","ranges":[[{"subnet":"10.9.0.0/24"}]]}`))
	if err != nil || !record.ValidUUID(more.UUID) || more.Bits4 != 26 {
		t.Errorf("create: %+v, %v", more, err)
	}
	// What is read can be written back; a document without blockPrefix keeps it.
	for _, text := range []string{string(record.EncodePool(pods)), strings.Replace(podsDocument, `"blockPrefix":{"ipv4":30},`, "", 1)} {
		again, err := c.UpdatePool(ctx, "pods", []byte(text))
		expect(t, "update", pods, again, err)
	}
	wide, err := c.UpdatePool(ctx, "pods", []byte(strings.Replace(podsDocument, "/28", "/27", 1)))
	if err != nil || wide.UUID != pods.UUID || wide.Sets[0].Size() != 29 {
		t.Errorf("update: %+v, %v", wide, err)
	}
	gone, err := c.DeletePool(ctx, "more")
	expect(t, "delete", more, gone, err)
	if _, err := c.ClusterPool(ctx, "more"); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("after delete: %v", err)
	}
}

func TestNetworksAndTenants(t *testing.T) {
	t.Parallel()
	store, reg, _ := cluster(t)
	c, _, _ := serveIn(t, always(reg))
	ctx := t.Context()
	net := record.Network{Version: 1, Name: "net", Tenant: "red", Pool: "pods", Backend: record.HostGW}
	all, err := c.Networks(ctx)
	expect(t, "list", []record.Network{net}, all, err)
	over, err := c.CreateNetwork(ctx, []byte(`{"version":1,"name":"over","tenant":"red","pool":"pods","backend":"vxlan","vni":5}`))
	expect(t, "create", record.Network{Version: 1, Name: "over", Tenant: "red", Pool: "pods", Backend: record.VXLAN, VNI: 5, Port: 8472}, over, err)
	over, err = c.PutNetwork(ctx, "over", []byte(`{"version":1,"name":"over","tenant":"red","pool":"pods","backend":"vxlan","vni":6}`))
	if err != nil || over.VNI != 6 {
		t.Errorf("put: %+v, %v", over, err)
	}
	one, err := c.Network(ctx, "over")
	expect(t, "one", over, one, err)
	one, err = c.DeleteNetwork(ctx, "over")
	expect(t, "delete", over, one, err)
	store.Put(record.NetworkFolder+"odd", []byte(`{"version":2}`))
	if _, err = c.DeleteNetwork(ctx, "odd"); err != nil {
		t.Errorf("delete what cannot be read: %v", err)
	}

	red := api.Tenant{Name: "red", Leased: 5, Pools: []string{"pods"}}
	tenants, err := c.Tenants(ctx)
	expect(t, "tenants", []api.Tenant{red}, tenants, err)
	red.Quota = 5 // less than what is leased
	for _, f := range []func() (api.Tenant, error){
		func() (api.Tenant, error) { return c.PutTenant(ctx, record.Tenant{Name: "red", Quota: 5}) },
		func() (api.Tenant, error) { return c.Tenant(ctx, "red") },
		func() (api.Tenant, error) { return c.DeleteTenant(ctx, "red") },
	} {
		got, err := f()
		expect(t, "tenant", red, got, err)
	}
	if got, err := c.Tenant(ctx, "red"); err != nil || got.Quota != 0 {
		t.Errorf("without a quota: %+v, %v", got, err)
	}
	blue := api.Tenant{Name: "blue", VNIs: record.VNIs{First: 5000, Last: 5999}, Pools: []string{}}
	got, err := c.PutTenant(ctx, record.Tenant{Name: "blue", VNIs: blue.VNIs})
	expect(t, "VNIs", blue, got, err)
	lan := api.SegmentName{VNI: 5000, Tenant: "blue", Name: "lan"}
	if _, err := reg.VNI(ctx, "blue", "lan", 0); err != nil {
		t.Fatal(err)
	}
	names, err := c.SegmentNames(ctx)
	expect(t, "names", []api.SegmentName{lan}, names, err)
	name, err := c.ForgetSegment(ctx, "blue", "lan")
	expect(t, "forgotten", lan, name, err)
	if _, err := c.ForgetSegment(ctx, "blue", "lan"); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("forgotten what is not there: %v", err)
	}
	store.Put(record.TenantFolder+"odd", []byte(`{"version":2}`))
	if _, err := c.Tenant(ctx, "odd"); !errors.Is(err, api.ErrConflict) {
		t.Errorf("what cannot be read: %v", err)
	}
	if _, err := c.DeleteTenant(ctx, "odd"); err != nil {
		t.Errorf("delete what cannot be read: %v", err)
	}
}

func TestNodesAndLeases(t *testing.T) {
	t.Parallel()
	_, reg, pods := cluster(t)
	c, _, _ := serveIn(t, always(reg))
	ctx := t.Context()
	of := func(leased int) []api.NodePool {
		return []api.NodePool{{Pool: "pods", PoolUUID: pods.UUID, Leased: leased}}
	}
	one := api.NodeName{Node: n1, Name: "one"}
	two := api.ClusterNode{NodeName: api.NodeName{Node: n2, Name: "two"}, Leased: 2, Pools: of(2)}
	nodes, err := c.ClusterNodes(ctx)
	expect(t, "nodes", []api.ClusterNode{
		{NodeName: one, Alive: true, Machine: "m", Asserted: 1, Leased: 3, Pools: of(3), Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, two,
	}, nodes, err)
	for _, name := range []string{"two", n2} {
		got, err := c.ClusterNode(ctx, name)
		expect(t, name, two, got, err)
	}
	lent := api.Lease{Pool: "pods", PoolUUID: pods.UUID, CIDR: netip.MustParsePrefix("10.5.0.4/30"), Owner: &two.NodeName, Size: 4, Owned: 2, Others: 1, Parked: 1, Given: []api.Given{
		{Address: netip.MustParseAddr("10.5.0.5"), Node: &one}, {Address: netip.MustParseAddr("10.5.0.6"), Key: "ns/web-0", Since: reg.Now()},
	}}
	whole := api.Lease{Pool: "pods", PoolUUID: pods.UUID, CIDR: netip.MustParsePrefix("10.5.0.0/30"), Owner: &one, Size: 4, Owned: 4}
	for _, tt := range []struct {
		f    api.LeaseFilter
		want []api.Lease
	}{
		{api.LeaseFilter{}, []api.Lease{whole, lent}},
		{api.LeaseFilter{Pool: "pods", Node: "one"}, []api.Lease{whole, lent}},
		{api.LeaseFilter{Node: n2}, []api.Lease{lent}},
	} {
		got, err := c.Leases(ctx, tt.f)
		expect(t, "leases", tt.want, got, err)
	}
	two.Removed = &api.Removed{At: reg.Now(), Rest: time.Hour}
	for range 2 { // the second time nothing changes
		got, err := c.RemoveNode(ctx, "two", time.Hour)
		expect(t, "remove", two, got, err)
	}
	// Its successor has its name.
	if err := reg.Enroll(ctx, record.Node{Node: n3, Name: "two"}); err != nil {
		t.Fatal(err)
	}
	if got, err := c.ClusterNode(ctx, "two"); err != nil || got.Node != n3 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestRecover(t *testing.T) {
	t.Parallel()
	store, reg, _ := cluster(t)
	c, _, _ := serveIn(t, always(reg))
	ctx := t.Context()
	if _, err := c.Recover(ctx); !errors.Is(err, api.ErrConflict) || !strings.Contains(err.Error(), "not frozen") {
		t.Errorf("while all is well: %v", err)
	}
	frozen := record.Frozen{Node: n1, Reason: "revision 7 after 90", Epoch: 1, Rev: 90}
	if err := reg.Freeze(ctx, frozen); err != nil {
		t.Fatal(err)
	}
	store.Put(record.Prefix+"zone/b", []byte(`{}`))
	was, err := c.Cluster(ctx)
	if err != nil || !record.ValidUUID(was.ID) || *was.Frozen != frozen || was.UnreadCount != 1 || was.Unread[0].Key != record.Prefix+"zone/b" || was.Unread[0].Reason == "" || was.Revision == 0 {
		t.Errorf("frozen: %+v, %v", was, err)
	}
	now, err := c.Recover(ctx)
	if err != nil || now.Frozen != nil || now.Epoch.Number != 2 || now.Revision <= 90 || len(now.Waiting) != 2 {
		t.Errorf("recovered: %+v, %v", now, err)
	}
}

// TestRefusals: what is wrong is told with a status, a kind, and the place.
func TestRefusals(t *testing.T) {
	t.Parallel()
	store, reg, pods := cluster(t)
	if err := reg.Enroll(t.Context(), record.Node{Node: n3, Name: "two"}); err != nil {
		t.Fatal(err)
	}
	store.Put(record.TenantFolder+"odd", []byte(`{"version":2}`))
	_, _, server := serveIn(t, always(reg))
	document := func(old, new string) string { return strings.Replace(podsDocument, old, new, 1) }
	other := document(`"pods"`, `"other"`)
	const network = `{"version":1,"name":"n","tenant":"red","pool":"pods","backend":"hostgw"}`
	tests := []struct {
		name, request, body string
		status              int
		kind, place         string
		want                string // part of the text
	}{
		{"no pool", "GET /v1/cluster/pools/x", "", 404, "", "", `no pool "x"`},
		{"no JSON", "POST /v1/cluster/pools", "pods", 400, "", "pool", "invalid character"},
		{"no body", "POST /v1/cluster/pools", "", 400, "", "pool", "JSON"},
		{"unknown key", "POST /v1/cluster/pools", document(`"kind"`, `"kin"`), 400, "", "pool.kin", `did you mean "kind"?`},
		{"bad range", "POST /v1/cluster/pools", document(`10.5.0.0/28`, `10.5.0.1/28`), 400, "", "pool.ranges[0][0].subnet", "host bits"},
		{"a state of its own", "POST /v1/cluster/pools", document(`"kind"`, `"state":"pending","kind"`), 400, "", "pool.state", "leave it out"},
		{"too long", "POST /v1/cluster/pools", `{"version":1,"name":"` + strings.Repeat("x", maxDocument) + `"}`, 413, "", "", "more than 524288 bytes"},
		{"exists", "POST /v1/cluster/pools", podsDocument, 409, "exists", "", `pool "pods": it exists already`},
		{"overlap", "POST /v1/cluster/pools", other, 409, "overlap", "", `overlaps pool "pods" of the same tenant "red"`},
		{"update of none", "PUT /v1/cluster/pools/other", other, 404, "", "", `no pool "other"`},
		{"update elsewhere", "PUT /v1/cluster/pools/other", podsDocument, 400, "", "pool.name", `"pods" stands in the document of "other"`},
		{"another kind", "PUT /v1/cluster/pools/pods", strings.Replace(document("shared", "routed"), `,"sticky":true`, "", 1), 409, "fixed", "", "cannot change"},
		{"another block size", "PUT /v1/cluster/pools/pods", document(`"ipv4":30`, `"ipv4":29`), 409, "fixed", "", "pool.blockPrefix.ipv4: 29"},
		{"an old document", "PUT /v1/cluster/pools/pods", document(`"kind"`, `"uuid":"`+n1+`","kind"`), 409, "fixed", "", pods.UUID},
		{"below what is leased", "PUT /v1/cluster/pools/pods", document(`/28"`, `/28","rangeStart":"10.5.0.8"`), 409, "inUse", "", "node one (" + n1 + ") leases"},
		{"delete what is leased", "DELETE /v1/cluster/pools/pods", "", 409, "inUse", "", "node two (" + n2 + `) leases 2 addresses, network "net" refers to it`},
		{"delete none", "DELETE /v1/cluster/pools/x", "", 404, "", "", `no pool "x"`},
		{"unknown key", "POST /v1/cluster/networks", `{"version":1,"nam":"n"}`, 400, "", "network.nam", `did you mean "name"?`},
		{"no pool of that name", "POST /v1/cluster/networks", strings.Replace(network, "pods", "x", 1), 409, "", "", `pool "x": no such pool`},
		{"a network that exists", "POST /v1/cluster/networks", strings.Replace(network, `"n"`, `"net"`, 1), 409, "exists", "", "exists already"},
		{"another tenant's pool", "PUT /v1/cluster/networks/n", strings.Replace(network, "red", "blue", 1), 409, "tenant", "", "of one tenant"},
		{"put elsewhere", "PUT /v1/cluster/networks/x", network, 400, "", "network.name", `"n" stands in`},
		{"no network", "DELETE /v1/cluster/networks/x", "", 404, "", "", `no network "x"`},
		{"negative quota", "PUT /v1/cluster/tenants/red", `{"version":1,"name":"red","quota":-1}`, 400, "", "tenant.quota", "negative"},
		{"quota in words", "PUT /v1/cluster/tenants/red", `{"version":1,"name":"red","quota":"5"}`, 400, "", "tenant.quota", "string"},
		{"no tenant", "GET /v1/cluster/tenants/x", "", 404, "", "", `tenant "x"`},
		{"a tenant that cannot be read", "GET /v1/cluster/tenants/odd", "", 409, "unread", "", "cannot read"},
		{"no node", "GET /v1/cluster/nodes/x", "", 404, "", "", `no node "x"`},
		{"two of a name", "DELETE /v1/cluster/nodes/two", "", 409, "", "", n2 + ", " + n3},
		{"a live node", "DELETE /v1/cluster/nodes/one", "", 409, "live", "", "stop the node first"},
		{"rest", "DELETE /v1/cluster/nodes/" + n2 + "?rest=1d", "", 400, "", "rest", `"1d" is not a duration`},
		{"leases of no pool", "GET /v1/cluster/leases?pool=x", "", 404, "", "", `no pool "x"`},
		{"leases of no node", "GET /v1/cluster/leases?node=x", "", 404, "", "", `no node "x"`},
		{"recover what is well", "POST /v1/cluster/recover", "", 409, "", "", "not frozen"},
	}
	before := store.Snapshot()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, p := ask(t, server, tt.request, tt.body)
			if status != tt.status || p.Kind != tt.kind || p.Error == nil || !strings.Contains(p.Error.Text, tt.want) {
				t.Fatalf("status %d, %+v %+v", status, p, p.Error)
			}
			var field *ipam.FieldError
			if errors.As(p.Error.Err(), &field); tt.place != "" && (field == nil || field.Place != tt.place) {
				t.Errorf("place: %+v, want %q", field, tt.place)
			}
		})
	}
	// What was refused has left no trace, but for revisions.
	now := view(t, reg)
	store.Restore(before)
	then := view(t, reg)
	if len(now.Pools) != len(then.Pools) || now.Pools["pods"].Value.State != "" || len(now.Networks) != len(then.Networks) || len(now.Gone) != 0 || len(now.Tenants) != 0 {
		t.Errorf("left: %+v", now)
	}
}

func view(t *testing.T, reg registry.Registry) *registry.View {
	t.Helper()
	v, err := reg.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// ask makes a request, "METHOD /path", without a socket.
func ask(t testing.TB, s *Server, request, body string) (int, api.Problem) {
	t.Helper()
	method, path, _ := strings.Cut(request, " ")
	w := httptest.NewRecorder()
	s.handler().ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	var p api.Problem
	if w.Code != http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
			t.Errorf("%s: %v in %s", request, err, w.Body)
		}
	}
	return w.Code, p
}

// TestWithoutRegistry: there may be none, and one that is not in reach.
func TestWithoutRegistry(t *testing.T) {
	t.Parallel()
	store, reg, _ := cluster(t)
	c, _, _ := serve(t)
	if _, err := c.ClusterPools(t.Context()); !errors.Is(err, api.ErrNoRegistry) {
		t.Errorf("none: %v", err)
	}
	away := errors.New("not connected yet")
	c, _, _ = serveIn(t, func() (registry.Registry, error) { return registry.Registry{}, away })
	if _, err := c.Cluster(t.Context()); !errors.Is(err, api.ErrUnreachable) || !strings.Contains(err.Error(), away.Error()) {
		t.Errorf("not yet: %v", err)
	}
	c, _, _ = serveIn(t, always(reg))
	store.Rig(func(q memstore.Request) memstore.Fault {
		if slices.Contains([]string{"swap", "delete"}, q.Kind) {
			return memstore.Lose
		}
		return memstore.Deliver
	})
	if _, err := c.PutTenant(t.Context(), record.Tenant{Name: "red", Quota: 5}); !errors.Is(err, api.ErrUnreachable) || !strings.Contains(err.Error(), "unknown") {
		t.Errorf("an answer that is lost: %v", err)
	}
	store.Rig(func(memstore.Request) memstore.Fault { return memstore.Fail })
	if _, err := c.Leases(t.Context(), api.LeaseFilter{}); !errors.Is(err, api.ErrUnreachable) {
		t.Errorf("not in reach: %v", err)
	}
}
