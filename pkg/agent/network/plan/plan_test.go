package plan

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/hostnet"
)

const (
	me    = lease.Node("10000000-0000-4000-8000-000000000000")
	two   = lease.Node("20000000-0000-4000-8000-000000000000")
	three = lease.Node("30000000-0000-4000-8000-000000000000")
	pods  = "a0000000-0000-4000-8000-000000000000"
	red   = "b0000000-0000-4000-8000-000000000000"
)

func item(key string, value []byte) registry.Item {
	return registry.Item{Key: key, Value: value, Rev: 5}
}

func node(n lease.Node, name string, addrs ...string) registry.Item {
	rec := record.Node{Node: n, Name: name}
	for _, a := range addrs {
		rec.Addresses = append(rec.Addresses, netip.MustParseAddr(a))
	}
	return item(record.NodeFolder+string(n), record.EncodeNode(rec))
}

func block(pool, cidr string, owner lease.Node) registry.Item {
	p := netip.MustParsePrefix(cidr)
	value, err := record.EncodeBlock(lease.Block{CIDR: p, Owner: owner})
	if err != nil {
		panic(err)
	}
	return item(record.BlockKey(pool, p), value)
}

func pool(t testing.TB, name, uuid, kind, ranges string) registry.Item {
	t.Helper()
	p, err := record.LoadPool(fmt.Appendf(nil, `{"version":1,"name":%q,"uuid":%q,"kind":%q,"ranges":%s}`, name, uuid, kind, ranges))
	if err != nil {
		t.Fatal(err)
	}
	return item(record.PoolFolder+name, record.EncodePool(p))
}

func network(name, pool string) registry.Item {
	return item(record.NetworkFolder+name, record.EncodeNetwork(record.Network{Name: name, Pool: pool, Backend: record.HostGW}))
}

func odd(key string) registry.Item { return item(key, []byte(`{"version":9}`)) }

func view(items ...registry.Item) *registry.View {
	return registry.NewView(registry.List{Rev: 5, Items: items})
}

func link(name string, up, broadcast bool, addrs ...string) hostnet.Link {
	l := hostnet.Link{Name: name, Up: up, Broadcast: broadcast}
	for _, a := range addrs {
		l.Addrs = append(l.Addrs, hostnet.Addr{Prefix: netip.MustParsePrefix(a)})
	}
	return l
}

func unknown(hostnet.Neighbour) hostnet.Answer { return hostnet.Unknown }

// golden is a plan for people: routes, then peers that have none.
func golden(s *Snapshot, p *Plan) string {
	var b strings.Builder
	for _, w := range p.Wants {
		fmt.Fprintf(&b, "%s # %s\n", w.Object, w.Peer)
	}
	for _, o := range p.Overlays {
		fmt.Fprintf(&b, "%s: vni %d port %d on %s from %s, %v\n", o.Device.Network, o.Device.VNI, o.Device.Port, o.Device.Parent, o.Device.Local, o.Device.Addrs)
		for _, e := range o.Entries {
			fmt.Fprintf(&b, "  %s # %s\n", e.Object, e.Peer)
		}
	}
	for _, peer := range p.Peers {
		if peer.Reason != "" {
			fmt.Fprintf(&b, "%s %s %s: %s\n", peer.Network, peer.Name, peer.Blocks, peer.Reason)
		}
	}
	for _, n := range s.Networks {
		if n.Why != "" {
			fmt.Fprintf(&b, "network %s: %s\n", n.Name, n.Why)
		}
	}
	for _, o := range s.Odd {
		fmt.Fprintf(&b, "skipped %s %.8s %s: %s\n", o.Network, o.Node, o.Block, o.Why)
	}
	return b.String()
}

func TestPlan(t *testing.T) {
	t.Parallel()
	const subnets = `[[{"subnet":"10.5.0.0/16"}],[{"subnet":"2001:db8:5::/112"}]]`
	host := hostnet.State{Links: []hostnet.Link{
		link("eth1", true, true, "192.0.2.1/24", "2001:db8::1/64"),
		link("eth2", true, true, "198.51.100.1/24"),
		link("ul0", true, true, "10.5.0.1/26"),
	}}
	base := func(more ...registry.Item) []registry.Item {
		return append([]registry.Item{
			pool(t, "pods", pods, record.Routed, subnets), network("pods", "pods"),
			node(me, "n1", "192.0.2.1"), node(two, "n2", "192.0.2.2", "2001:db8::2"), node(three, "n3", "203.0.113.3", "198.51.100.3"),
			block(pods, "10.5.0.0/26", me), block(pods, "10.5.0.64/26", two), block(pods, "2001:db8:5::40/122", two), block(pods, "10.5.0.128/26", three),
		}, more...)
	}
	tests := []struct {
		name   string
		items  []registry.Item
		host   hostnet.State
		follow []string
		want   string
	}{
		{"routes", base(), host, nil, `unreachable 10.5.0.0/26 metric 1048576 # 
10.5.0.64/26 via 192.0.2.2 dev eth1 # n2
2001:db8:5::40/122 via 2001:db8::2 dev eth1 # n2
10.5.0.128/26 via 198.51.100.3 dev eth2 # n3
`},
		{"nothing is followed", base(), host, []string{}, ""},
		{"another is followed", base(network("other", "pods")), host, []string{"nosuch"}, ""},
		{"two networks of a pool have the same routes", base(network("other", "pods")), host, nil, `unreachable 10.5.0.0/26 metric 1048576 # 
10.5.0.64/26 via 192.0.2.2 dev eth1 # n2
2001:db8:5::40/122 via 2001:db8::2 dev eth1 # n2
10.5.0.128/26 via 198.51.100.3 dev eth2 # n3
`},
		{"a node that says nothing of IPv6", base(block(pods, "2001:db8:5::80/122", three)), host, nil, `unreachable 10.5.0.0/26 metric 1048576 # 
10.5.0.64/26 via 192.0.2.2 dev eth1 # n2
2001:db8:5::40/122 via 2001:db8::2 dev eth1 # n2
10.5.0.128/26 via 198.51.100.3 dev eth2 # n3
pods n3 [2001:db8:5::80/122]: the node has told no IPv6 address
`},
		{"links that will not do", base(), hostnet.State{Links: []hostnet.Link{
			link("eth1", false, true, "192.0.2.1/24"), link("tun0", true, false, "198.51.100.1/24"),
		}}, nil, `unreachable 10.5.0.0/26 metric 1048576 # 
pods n2 [10.5.0.64/26]: 192.0.2.2 is on the subnet of "eth1", which is down
pods n2 [2001:db8:5::40/122]: 2001:db8::2 is on no subnet that this node is on
pods n3 [10.5.0.128/26]: 198.51.100.3 is on the subnet of "tun0", on which no neighbour can be asked for
`},
		{"a single address is no subnet", base(), hostnet.State{Links: []hostnet.Link{link("eth1", true, true, "192.0.2.1/32", "192.0.2.2/32")}}, nil, `unreachable 10.5.0.0/26 metric 1048576 # 
pods n2 [10.5.0.64/26]: 192.0.2.2 is on no subnet that this node is on
pods n2 [2001:db8:5::40/122]: 2001:db8::2 is on no subnet that this node is on
pods n3 [10.5.0.128/26]: 203.0.113.3 is on no subnet that this node is on
`},
		{"an address that this node has too", base(), hostnet.State{Links: []hostnet.Link{link("eth1", true, true, "192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64")}}, nil, `unreachable 10.5.0.0/26 metric 1048576 # 
2001:db8:5::40/122 via 2001:db8::2 dev eth1 # n2
pods n2 [10.5.0.64/26]: 192.0.2.2 is an address of this node, too
pods n3 [10.5.0.128/26]: 203.0.113.3 is on no subnet that this node is on
`},
		{"a block of nobody known, one of a dead node, and one of nobody", base(
			block(pods, "10.5.1.0/26", "40000000-0000-4000-8000-000000000000"), block(pods, "10.5.2.0/26", ""),
			item(record.GoneFolder+string(three), record.EncodeGone(record.Gone{Node: three}))), host, nil, `unreachable 10.5.0.0/26 metric 1048576 # 
10.5.0.64/26 via 192.0.2.2 dev eth1 # n2
2001:db8:5::40/122 via 2001:db8::2 dev eth1 # n2
pods  [10.5.1.0/26]: the registry has no record of the node
`},
		{"a block outside the pool", base(block(pods, "192.0.2.64/26", two)), host, nil, `unreachable 10.5.0.0/26 metric 1048576 # 
10.5.0.64/26 via 192.0.2.2 dev eth1 # n2
2001:db8:5::40/122 via 2001:db8::2 dev eth1 # n2
10.5.0.128/26 via 198.51.100.3 dev eth2 # n3
skipped pods 20000000 192.0.2.64/26: it is in no subnet of the pool
`},
		{"pools that are shared or missing", base(pool(t, "lan", red, record.Shared, `[[{"subnet":"192.0.2.0/24"}]]`), network("lan", "lan"), network("no", "no")), host, []string{"lan", "no"},
			`network lan: pool "lan" is shared: its addresses are on the hosts' own network, and need no routes
network no: the registry has no pool "no"
`},
		{"records that cannot be read", base(odd(record.NodeFolder+string(two)), odd(record.BlockKey(pods, netip.MustParsePrefix("10.5.0.128/26"))), odd(record.NetworkFolder+"odd")), host, nil,
			`unreachable 10.5.0.0/26 metric 1048576 # 
pods  [10.5.0.64/26]: the record of the node cannot be read: node.version: 9: a newer version of underlay wrote it
pods  [2001:db8:5::40/122]: the record of the node cannot be read: node.version: 9: a newer version of underlay wrote it
skipped  20000000 invalid Prefix: node.version: 9: a newer version of underlay wrote it
skipped odd  invalid Prefix: network.version: 9: a newer version of underlay wrote it
skipped pods  10.5.0.128/26: block.version: 9: a newer version of underlay wrote it
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := Take(view(tt.items...), me, tt.follow, nil)
			if diff := cmp.Diff(tt.want, golden(s, Make(s, tt.host, []string{"eth1"}, unknown))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestParents: the parents' subnets come first, whatever address a peer prefers.
func TestParents(t *testing.T) {
	t.Parallel()
	host := hostnet.State{Links: []hostnet.Link{
		link("a", true, true, "192.0.2.1/24"), link("b", true, true, "198.51.100.1/24"), link("c", true, true, "192.0.2.2/28"),
	}}
	for _, tt := range []struct {
		parents []string
		addrs   []string
		want    string
	}{
		{[]string{"b", "a"}, []string{"192.0.2.9", "198.51.100.9"}, "192.0.2.9 a"},
		{[]string{"b"}, []string{"192.0.2.9", "198.51.100.9"}, "198.51.100.9 b"},
		{nil, []string{"192.0.2.9", "198.51.100.9"}, "192.0.2.9 c"},
		{nil, []string{"192.0.2.99", "198.51.100.9"}, "192.0.2.99 a"},
		{[]string{"nosuch"}, []string{"203.0.113.1", "198.51.100.9"}, "198.51.100.9 b"},
	} {
		s := Take(view(pool(t, "pods", pods, record.Routed, `[[{"subnet":"10.5.0.0/16"}]]`), network("pods", "pods"), node(two, "n2", tt.addrs...), block(pods, "10.5.0.0/26", two)), me, nil, nil)
		p := Make(s, host, tt.parents, unknown).Peers[0]
		if got := fmt.Sprint(p.Address, " ", p.Dev); got != tt.want {
			t.Errorf("parents %q, addresses %q: %s, want %s", tt.parents, tt.addrs, got, tt.want)
		}
	}
}

// TestUnread: what a record said holds while it cannot be read, and as long as
// nothing else says that it is over.
func TestUnread(t *testing.T) {
	t.Parallel()
	items := []registry.Item{
		pool(t, "pods", pods, record.Routed, `[[{"subnet":"10.5.0.0/16"}]]`), network("pods", "pods"),
		node(two, "n2", "192.0.2.2"), node(three, "n3", "192.0.2.3"), block(pods, "10.5.0.64/26", two), block(pods, "10.5.0.128/26", three),
	}
	host := hostnet.State{Links: []hostnet.Link{link("eth1", true, true, "192.0.2.1/24")}}
	routes := func(s *Snapshot) (out string) {
		for _, w := range Make(s, host, nil, unknown).Wants {
			out += w.Object.String() + "\n"
		}
		return out
	}
	first := Take(view(items...), me, nil, nil)
	const all = "10.5.0.64/26 via 192.0.2.2 dev eth1\n10.5.0.128/26 via 192.0.2.3 dev eth1\n"
	for _, key := range []string{
		record.NetworkFolder + "pods", record.PoolFolder + "pods", record.NodeFolder + string(two), record.BlockKey(pods, netip.MustParsePrefix("10.5.0.64/26")),
	} {
		s := Take(view(append(items, odd(key))...), me, nil, first)
		if got := routes(s); got != all || len(s.Odd) != 1 || s.Partial {
			t.Errorf("%s: %d skipped, partial %v, routes\n%s", key, len(s.Odd), s.Partial, got)
		}
		// It cannot be read from the start, and is found to be so again.
		blind := Take(view(append(items, odd(key))...), me, nil, nil)
		again := Take(view(append(items, odd(key))...), me, nil, blind)
		if !blind.Partial || len(blind.Odd) != 1 || !again.Partial || Take(view(items...), me, nil, again).Partial {
			t.Errorf("%s: partial at first %v, %d skipped, again %v, or also after it", key, blind.Partial, len(blind.Odd), again.Partial)
		}
		// Another time, and for another node of the same ledger's making.
		if got := routes(Take(view(append(items, odd(key))...), me, nil, s)); got != all {
			t.Errorf("%s, again: routes\n%s", key, got)
		}
		if got := routes(Take(view(append(items, odd(key))...), "other", nil, s)); strings.Count(got, "\n") > 1 {
			t.Errorf("%s, as another node: routes\n%s", key, got)
		}
	}
	if s := Take(view(append(items, odd(record.BlockKey(pods, netip.MustParsePrefix("10.5.0.64/27"))))...), me, nil, nil); s.Partial {
		t.Error("what can be no block of the pool is missed")
	}
	gone := item(record.GoneFolder+string(two), record.EncodeGone(record.Gone{Node: two}))
	s := Take(view(append(items, odd(record.NodeFolder+string(two)), odd(record.BlockKey(pods, netip.MustParsePrefix("10.5.0.64/26"))), gone)...), me, nil, first)
	if got := routes(s); got != "10.5.0.128/26 via 192.0.2.3 dev eth1\n" {
		t.Errorf("a removed node that cannot be read: routes\n%s", got)
	}
}
