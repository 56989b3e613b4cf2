package record_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

const (
	n1   = "10000000-0000-4000-8000-000000000000"
	n2   = "20000000-0000-4000-8000-000000000000"
	uuid = "a0000000-0000-4000-8000-00000000000f"
)

var opts = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}

func TestBlock(t *testing.T) {
	t.Parallel()
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b := lease.Block{CIDR: netip.MustParsePrefix("10.5.0.0/29"), Owner: n1, Given: map[netip.Addr]lease.Entry{
		netip.MustParseAddr("10.5.0.1"): {Node: n2, Key: "ns/web-0"},
		netip.MustParseAddr("10.5.0.2"): {Key: "ns/web-1", Since: since},
		netip.MustParseAddr("10.5.0.3"): {},
	}}
	value, err := record.EncodeBlock(b)
	want := `{"version":1,"cidr":"10.5.0.0/29","owner":"` + n1 + `","given":{` +
		`"10.5.0.1":{"node":"` + n2 + `","key":"ns/web-0"},"10.5.0.2":{"key":"ns/web-1","since":"2026-01-02T03:04:05Z"},"10.5.0.3":{}}}`
	if err != nil || string(value) != want {
		t.Errorf("%v (-want +got)\n%s", err, cmp.Diff(want, string(value)))
	}
	back, err := record.DecodeBlock(value)
	if diff := cmp.Diff(b, back, opts...); err != nil || diff != "" {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
}

// TestPoolOfLedger: the ledger is told the routes of a pool too.
func TestPoolOfLedger(t *testing.T) {
	t.Parallel()
	p, err := record.LoadPool([]byte(`{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.5.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"10.0.0.0/8","gw":"10.5.0.2","scope":0}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []ipam.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0")}, {Dst: netip.MustParsePrefix("10.0.0.0/8"), GW: netip.MustParseAddr("10.5.0.2"), Scope: new(int)}}
	if diff := cmp.Diff(want, p.IPAM().Routes, opts...); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestRoutedPool: the sets of a routed pool know its blocks, those of a shared one
// have none; and a node has of a block what the pool gives out of it.
func TestRoutedPool(t *testing.T) {
	t.Parallel()
	p, err := record.LoadPool([]byte(`{"version":1,"name":"a","kind":"routed","ranges":[[{"subnet":"10.5.0.0/16","exclude":["10.5.0.2"]}],[{"subnet":"fd00::/64"}]]}`))
	if err != nil {
		t.Fatal(err)
	}
	if p.Sets[0][0].BlockBits != 26 || p.IPAM().Sets[1][0].BlockBits != 122 {
		t.Errorf("blocks of %+v", p.Sets)
	}
	given := map[netip.Addr]lease.Entry{netip.MustParseAddr("10.5.0.0"): {Node: n2}, netip.MustParseAddr("10.5.0.5"): {Node: n2}, netip.MustParseAddr("10.5.0.6"): {}}
	for cidr, want := range map[string]map[lease.Node]int{"10.5.0.0/26": {n1: 58, n2: 1}, "10.5.0.64/26": {n1: 61}, "fd00::/122": {n1: 62}} {
		b := lease.Block{CIDR: netip.MustParsePrefix(cidr), Owner: n1}
		if cidr == "10.5.0.0/26" {
			b.Given = given
		}
		got := map[lease.Node]int{}
		for n, count := range p.Nodes(b) {
			got[n] += count
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", cidr, diff)
		}
	}
	shared, err := record.LoadPool([]byte(`{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.5.0.0/24"}]]}`))
	if err != nil || shared.Sets[0][0].BlockBits != 0 || shared.Usable(netip.MustParsePrefix("10.5.0.0/30")) != 2 {
		t.Errorf("%+v, %v", shared.Sets, err)
	}
}

// TestRefuses: what cannot be understood in whole is not taken in part.
func TestRefuses(t *testing.T) {
	t.Parallel()
	block := func(v []byte) error { _, err := record.DecodeBlock(v); return err }
	pool := func(v []byte) error { _, err := record.LoadPool(v); return err }
	stored := func(v []byte) error { _, err := record.DecodePool(v); return err }
	network := func(v []byte) error { _, err := record.DecodeNetwork(v); return err }
	node := func(v []byte) error { _, err := record.DecodeNode(v); return err }
	cluster := func(v []byte) error { _, err := record.DecodeCluster(v); return err }
	tenant := func(v []byte) error { _, err := record.DecodeTenant(v); return err }
	const ranges = `"ranges":[[{"subnet":"10.5.0.0/16"}]]`
	tests := []struct {
		name   string
		decode func([]byte) error
		value  string
		want   string // part of the error
	}{
		{"nothing", block, ``, "JSON"},
		{"null", block, `null`, "version"},
		{"no version", block, `{"cidr":"10.0.0.0/30"}`, "block.version: is missing"},
		{"version 0", block, `{"version":0,"cidr":"10.0.0.0/30"}`, "never written"},
		{"newer, with a key of its own", block, `{"version":2,"cidr":"10.0.0.0/30","zone":"b"}`, record.ErrNewer.Error()},
		{"unknown key", block, `{"version":1,"cidr":"10.0.0.0/30","ownr":"x"}`, `did you mean "owner"?`},
		{"unknown key in an entry", block, `{"version":1,"cidr":"10.0.0.0/30","given":{"10.0.0.1":{"nod":""}}}`, `block.given.10.0.0.1.nod`},
		{"host bits", block, `{"version":1,"cidr":"10.0.0.1/30"}`, "host bits"},
		{"no prefix", block, `{"version":1,"cidr":"10.0.0.0"}`, "not a prefix"},
		{"IPv4 in IPv6", block, `{"version":1,"cidr":"::ffff:10.0.0.0/126"}`, "IPv6 form"},
		{"too large", block, `{"version":1,"cidr":"10.0.0.0/16"}`, "more than 4096"},
		{"owner by name", block, `{"version":1,"cidr":"10.0.0.0/30","owner":"node-1"}`, "block.owner"},
		{"upper case", block, `{"version":1,"cidr":"10.0.0.0/30","owner":"` + strings.ToUpper(uuid) + `"}`, "block.owner"},
		{"given to a name", block, `{"version":1,"cidr":"10.0.0.0/30","given":{"10.0.0.1":{"node":"x"}}}`, "given.10.0.0.1.node"},
		{"given outside", block, `{"version":1,"cidr":"10.0.0.0/30","given":{"10.0.0.4":{}}}`, "outside"},
		{"second form of an address", block, `{"version":1,"cidr":"2001:db8::/126","given":{"2001:db8:0::1":{}}}`, "not an address"},
		{"parked with a node", block, `{"version":1,"cidr":"10.0.0.0/30","given":{"10.0.0.1":{"node":"` + n1 + `","since":"2026-01-02T03:04:05Z"}}}`, "since"},
		{"more after the end", block, `{"version":1,"cidr":"10.0.0.0/30"}{}`, "after top-level value"},

		{"pool without name", pool, `{"version":1,"kind":"shared",` + ranges + `}`, "pool.name"},
		{"pool with a slash", pool, `{"version":1,"name":"a/b","kind":"shared",` + ranges + `}`, "pool.name"},
		{"pool of no kind", pool, `{"version":1,"name":"a","kind":"flat",` + ranges + `}`, "pool.kind"},
		{"pool without ranges", pool, `{"version":1,"name":"a","kind":"shared"}`, "pool.ranges"},
		{"gateway elsewhere", pool, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.5.0.0/16","gateway":"10.6.0.1"}]]}`, "pool.ranges[0][0].gateway"},
		{"block too large", pool, `{"version":1,"name":"a","kind":"routed","blockPrefix":{"ipv4":19},` + ranges + `}`, "blockPrefix.ipv4"},
		{"block larger than its subnet", pool, `{"version":1,"name":"a","kind":"routed","blockPrefix":{"ipv4":24},"ranges":[[{"subnet":"10.5.0.0/25"}]]}`, "ranges[0]"},
		{"block without room for a container", pool, `{"version":1,"name":"a","kind":"routed","blockPrefix":{"ipv4":31},` + ranges + `}`, "blockPrefix.ipv4: a block of /31 has no address for a container beside its network address, its gateway and its broadcast address; a routed pool needs /30 or shorter"},
		{"block without room, IPv6", pool, `{"version":1,"name":"a","kind":"routed","blockPrefix":{"ipv6":127},"ranges":[[{"subnet":"fd00::/64"}]]}`, "blockPrefix.ipv6: a block of /127"},
		{"subnet without room for a block", pool, `{"version":1,"name":"a","kind":"routed","ranges":[[{"subnet":"10.5.0.0/24"},{"subnet":"10.6.0.0/31"}]]}`, "ranges[0]: a block of /31"},
		{"nothing left of a range", pool, `{"version":1,"name":"a","kind":"routed","ranges":[[{"subnet":"10.5.0.0/24"},{"subnet":"10.6.0.0/24","rangeStart":"10.6.0.64","rangeEnd":"10.6.0.65"}]]}`, "ranges[0][1]: no address of 10.6.0.64-10.6.0.65 is left"},
		{"gateway of a routed pool", pool, `{"version":1,"name":"a","kind":"routed","ranges":[[{"subnet":"10.5.0.0/16","gateway":"10.5.0.1"}]]}`, "pool.ranges[0][0].gateway: 10.5.0.1 has no meaning in a routed pool"},
		{"two sets in a block", pool, `{"version":1,"name":"a","kind":"shared","blockPrefix":{"ipv4":26},"ranges":[[{"subnet":"10.5.0.0/24","rangeEnd":"10.5.0.20"}],[{"subnet":"10.5.0.0/24","rangeStart":"10.5.0.21"}]]}`, "shares the block"},
		{"sticky and routed", pool, `{"version":1,"name":"a","kind":"routed","sticky":true,` + ranges + `}`, "pool.sticky"},
		{"sticky in words", pool, `{"version":1,"name":"a","kind":"shared","sticky":"yes",` + ranges + `}`, "pool.sticky"},
		{"no duration", pool, `{"version":1,"name":"a","kind":"shared","stickyFor":"1d",` + ranges + `}`, "pool.stickyFor"},
		{"zero nodes", pool, `{"version":1,"name":"a","kind":"shared","expectedNodes":0,` + ranges + `}`, "pool.expectedNodes"},
		{"no nodes", pool, `{"version":1,"name":"a","kind":"shared","expectedNodes":-1,` + ranges + `}`, "pool.expectedNodes"},
		{"unknown route key", pool, `{"version":1,"name":"a","kind":"shared","routes":[{"dest":"0.0.0.0/0"}],` + ranges + `}`, "pool.routes[0].dest"},
		{"stored without UUID", stored, `{"version":1,"name":"a","kind":"shared",` + ranges + `}`, "pool.uuid"},

		{"network of no pool", network, `{"version":1,"name":"a","backend":"hostgw"}`, "network.pool"},
		{"no such backend", network, `{"version":1,"name":"a","pool":"a","backend":"udp"}`, "network.backend"},
		{"VNI 0", network, `{"version":1,"name":"a","pool":"a","backend":"vxlan"}`, "network.vni"},
		{"VNI with hostgw", network, `{"version":1,"name":"a","pool":"a","backend":"hostgw","vni":1}`, "network.backend"},
		{"port", network, `{"version":1,"name":"a","pool":"a","backend":"vxlan","vni":1,"port":65536}`, "network.port"},

		{"node by name", node, `{"version":1,"node":"n1","name":"n1"}`, "node.node"},
		{"address with a zone", node, `{"version":1,"node":"` + n1 + `","addresses":["fe80::1%eth0"]}`, "node.addresses[0]"},
		{"cluster without epoch", cluster, `{"version":1,"id":"` + uuid + `"}`, "cluster.epoch"},
		{"VNIs with another key", tenant, `{"version":1,"name":"red","quota":0,"vnis":{"frist":5,"last":9}}`, "tenant.vnis.frist: unknown key"},
		{"VNIs from 0 on", tenant, `{"version":1,"name":"red","quota":0,"vnis":{"first":0,"last":9}}`, "tenant.vnis.first: 0 is not between 1 and"},
		{"VNIs beyond the last", tenant, `{"version":1,"name":"red","quota":0,"vnis":{"first":9,"last":16777216}}`, "tenant.vnis.last: 16777216 is not between the first, 9, and"},
		{"VNIs the wrong way round", tenant, `{"version":1,"name":"red","quota":0,"vnis":{"first":9,"last":8}}`, "tenant.vnis.last: 8 is not"},
		{"unknown key in an epoch", cluster, `{"version":1,"id":"` + uuid + `","epoch":{"number":1,"id":"` + uuid + `","by":""}}`, "cluster.epoch.by"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if err := tt.decode([]byte(tt.value)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if _, err := record.DecodeTenant([]byte(`{"version":9,"name":"a"}`)); !errors.Is(err, record.ErrNewer) {
		t.Errorf("%v, want ErrNewer", err)
	}
}

func TestSamples(t *testing.T) {
	t.Parallel()
	p, err := record.LoadPool([]byte(`{"version":1,"name":"pods","tenant":"","kind":"routed","ranges":[[{"subnet":"10.5.0.0/16"}]],"blockPrefix":{"ipv4":26,"ipv6":122},"expectedNodes":64,"sticky":false,"stickyFor":"24h"}`))
	if err != nil || p.Bits4 != 26 || p.Bits6 != 0 || p.Sticky != ipam.NotSticky || p.CoolDown != ipam.DefaultCoolDown {
		t.Errorf("pool: %+v, %v", p, err)
	}
	p.UUID = uuid
	back, err := record.DecodePool(record.EncodePool(p))
	if diff := cmp.Diff(p, back, opts...); err != nil || diff != "" {
		t.Errorf("pool: %v (-want +got)\n%s", err, diff)
	}
	var doc struct{ Pool record.Pool }
	if err := json.Unmarshal([]byte(`{"pool":`+string(record.EncodePool(p))+`}`), &doc); err != nil || cmp.Diff(p, doc.Pool, opts...) != "" {
		t.Errorf("in a document: %+v, %v", doc, err)
	}
	if form, err := json.Marshal(p); err != nil || string(form) != string(record.EncodePool(p)) {
		t.Errorf("%s, %v", form, err)
	}
	n, err := record.DecodeNetwork([]byte(`{"version":1,"name":"pods","tenant":"","pool":"pods","backend":"vxlan","vni":1,"port":8472,"directRouting":true}`))
	if want := (record.Network{Version: 1, Name: "pods", Pool: "pods", Backend: record.VXLAN, VNI: 1, Port: 8472, DirectRouting: true}); err != nil || n != want {
		t.Errorf("network: %+v, %v", n, err)
	}
}

func TestDefaultBlocks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		kind, subnet string
		nodes        int
		want4, want6 int
	}{
		{"shared", "10.0.0.0/24", 50, 31, 0}, // 2 addresses
		{"shared", "10.0.0.0/16", 1000, 27, 0},
		{"shared", "10.0.0.0/24", 0, 32, 0},
		{"shared", "10.0.0.0/8", 10, 26, 0}, // 64 at most
		{"shared", "2001:db8::/64", 1000, 0, 122},
		{"routed", "10.5.0.0/16", 1000, 26, 0},
		{"routed", "10.5.0.0/28", 0, 28, 0},
		{"routed", "2001:db8::/64", 0, 0, 122},
	} {
		nodes := ""
		if tt.nodes != 0 {
			nodes = fmt.Sprintf(`"expectedNodes":%d,`, tt.nodes)
		}
		p, err := record.LoadPool(fmt.Appendf(nil, `{"version":1,%s"name":"a","kind":%q,"ranges":[[{"subnet":%q}]]}`, nodes, tt.kind, tt.subnet))
		if err != nil || p.Bits4 != tt.want4 || p.Bits6 != tt.want6 {
			t.Errorf("%+v: /%d, /%d, %v", tt, p.Bits4, p.Bits6, err)
		}
	}
}

func TestOverlap(t *testing.T) {
	t.Parallel()
	load := func(kind, r string) record.Pool {
		p, err := record.LoadPool([]byte(`{"version":1,"name":"a","kind":"` + kind + `","ranges":[[` + r + `]]}`))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	low := `{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.99"}`
	high := `{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.100"}`
	for _, tt := range []struct {
		name string
		a, b record.Pool
		want bool
	}{
		{"the same", load("shared", low), load("shared", low), true},
		{"ranges side by side", load("shared", low), load("shared", high), false},
		{"a block of one that is routed", load("routed", low), load("shared", high), true},
		{"another family", load("shared", low), load("shared", `{"subnet":"2001:db8::/64"}`), false},
		{"elsewhere", load("routed", low), load("routed", `{"subnet":"10.0.1.0/24"}`), false},
	} {
		_, got := tt.a.Overlap(tt.b)
		if _, back := tt.b.Overlap(tt.a); got != tt.want || back != got {
			t.Errorf("%s: %v and %v, want %v", tt.name, got, back, tt.want)
		}
	}
}

func TestSame(t *testing.T) {
	t.Parallel()
	l := record.Live{Node: n1, Machine: "m", Boot: "b", Device: 1, Inode: 2}
	if !l.Same(l) {
		t.Error("not the same as itself")
	}
	for _, change := range []func(*record.Live){
		func(o *record.Live) { o.Node = n2 }, func(o *record.Live) { o.Machine = "x" }, func(o *record.Live) { o.Boot = "x" },
		func(o *record.Live) { o.Device = 9 }, func(o *record.Live) { o.Inode = 9 },
	} {
		o := l
		if change(&o); l.Same(o) {
			t.Errorf("the same: %+v", o)
		}
	}
}

func TestBlockKey(t *testing.T) {
	t.Parallel()
	for _, cidr := range []string{"10.5.0.64/26", "2001:db8::40/122"} {
		p := netip.MustParsePrefix(cidr)
		if pool, back, ok := record.ParseBlockKey(record.BlockKey(uuid, p)); !ok || pool != uuid || back != p {
			t.Errorf("%s: %q, %s, %v", cidr, pool, back, ok)
		}
	}
	for _, key := range []string{"", record.BlockFolder, record.BlockFolder + uuid, record.BlockFolder + uuid + "/10.0.0.0", record.BlockFolder + "pods/10.0.0.0_24", record.BlockFolder + uuid + "/10.0.0.0_024",
		record.BlockFolder + uuid + "/10.0.0.0_+24", record.BlockFolder + uuid + "/10.0.0.0_33", record.BlockFolder + uuid + "/10.0.0.0/24", record.BlockFolder + uuid + "/fd00:0::_64", record.BlockFolder + uuid + "/fe80::%1_64",
		record.NodeFolder + uuid + "/10.0.0.0_24"} {
		if _, _, ok := record.ParseBlockKey(key); ok {
			t.Errorf("%q is a block's", key)
		}
	}
	if a, b := record.NewUUID(), record.NewUUID(); a == b || !record.ValidUUID(a) {
		t.Errorf("%s, %s", a, b)
	}
}
