package plan

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/hostnet"
)

// TestOverlay: who is reached through VXLAN, and why.
func TestOverlay(t *testing.T) {
	t.Parallel()
	const subnets = `[[{"subnet":"10.5.0.0/16"}],[{"subnet":"2001:db8:5::/112"}]]`
	base := func(n record.Network, more ...registry.Item) []registry.Item {
		n.Name, n.Pool, n.Backend = "pods", "pods", record.VXLAN
		return append([]registry.Item{
			pool(t, "pods", pods, record.Routed, subnets), item(record.NetworkFolder+"pods", record.EncodeNetwork(n)),
			node(me, "n1", "192.0.2.1"), node(two, "n2", "192.0.2.2", "2001:db8::2"), node(three, "n3", "203.0.113.3", "192.0.2.3"),
			block(pods, "10.5.0.0/26", me), block(pods, "2001:db8:5::/122", me), block(pods, "10.5.3.0/26", me),
			block(pods, "10.5.0.64/26", two), block(pods, "2001:db8:5::40/122", two), block(pods, "10.5.0.128/26", three),
		}, more...)
	}
	lan := link("eth1", true, true, "192.0.2.1/24", "2001:db8::1/64")
	const own = `unreachable 10.5.0.0/26 metric 1048576 # 
unreachable 10.5.3.0/26 metric 1048576 # 
unreachable 2001:db8:5::/122 metric 1048576 # 
`
	const device = `pods: vni 7 port 8472 on eth1 from 192.0.2.1, [10.5.0.1/32 10.5.3.1/32 2001:db8:5::1/128]
  10.5.0.65 dev vx7 lladdr b6:fb:05:b1:15:66 # n2
  2001:db8:5::41 dev vx7 lladdr b6:fb:05:b1:15:66 # n2
  self b6:fb:05:b1:15:66 dev vx7 dst 192.0.2.2 # n2
  10.5.0.129 dev vx7 lladdr e6:e1:2b:80:6e:c9 # n3
  self e6:e1:2b:80:6e:c9 dev vx7 dst 203.0.113.3 # n3
`
	found := func(n hostnet.Neighbour) hostnet.Answer {
		if n.Addr.String() == "192.0.2.3" {
			return hostnet.Silent
		}
		return hostnet.Found
	}
	tests := []struct {
		name   string
		items  []registry.Item
		links  []hostnet.Link
		answer func(hostnet.Neighbour) hostnet.Answer
		want   string
	}{
		{"all", base(record.Network{VNI: 7, Port: 8472}), []hostnet.Link{lan}, found, own + `10.5.0.64/26 via 10.5.0.65 dev vx7 src 10.5.0.1 onlink # n2
2001:db8:5::40/122 via 2001:db8:5::41 dev vx7 src 2001:db8:5::1 onlink # n2
10.5.0.128/26 via 10.5.0.129 dev vx7 src 10.5.0.1 onlink # n3
` + device},
		{"direct where it answers", base(record.Network{VNI: 7, Port: 8472, DirectRouting: true}), []hostnet.Link{lan}, found, own + `10.5.0.64/26 via 192.0.2.2 dev eth1 # n2
2001:db8:5::40/122 via 2001:db8::2 dev eth1 # n2
10.5.0.128/26 via 10.5.0.129 dev vx7 src 10.5.0.1 onlink # n3
` + device + `pods n3 [10.5.0.128/26]: nobody answers at 192.0.2.3 on "eth1"
`},
		{"direct, nobody has answered", base(record.Network{VNI: 7, Port: 8472, DirectRouting: true}), []hostnet.Link{link("eth1", true, true, "192.0.2.1/25")}, unknown, own + `10.5.0.64/26 via 10.5.0.65 dev vx7 src 10.5.0.1 onlink # n2
2001:db8:5::40/122 via 2001:db8:5::41 dev vx7 src 2001:db8:5::1 onlink # n2
10.5.0.128/26 via 10.5.0.129 dev vx7 src 10.5.0.1 onlink # n3
` + device + `pods n2 [10.5.0.64/26]: 192.0.2.2 has not answered yet on "eth1"
pods n2 [2001:db8:5::40/122]: 2001:db8::2 is on no subnet that this node is on
pods n3 [10.5.0.128/26]: 192.0.2.3 has not answered yet on "eth1"
`},
		{"no address to send from", base(record.Network{VNI: 7, Port: 8472}), nil, found, own + `pods n2 [10.5.0.64/26]: this node has no address that VXLAN could be sent from
pods n2 [2001:db8:5::40/122]: this node has no address that VXLAN could be sent from
pods n3 [10.5.0.128/26]: this node has no address that VXLAN could be sent from
`},
		{"an underlay of IPv6", base(record.Network{VNI: 7, Port: 8472}), []hostnet.Link{link("eth1", true, true, "2001:db8::1/64")}, found, own + `10.5.0.64/26 via 10.5.0.65 dev vx7 src 10.5.0.1 onlink # n2
2001:db8:5::40/122 via 2001:db8:5::41 dev vx7 src 2001:db8:5::1 onlink # n2
pods: vni 7 port 8472 on eth1 from 2001:db8::1, [10.5.0.1/32 10.5.3.1/32 2001:db8:5::1/128]
  10.5.0.65 dev vx7 lladdr b6:fb:05:b1:15:66 # n2
  2001:db8:5::41 dev vx7 lladdr b6:fb:05:b1:15:66 # n2
  self b6:fb:05:b1:15:66 dev vx7 dst 2001:db8::2 # n2
pods n3 [10.5.0.128/26]: the node has told no IPv6 address
`},
		{"a VNI that another network has", base(record.Network{VNI: 7, Port: 8472},
			item(record.NetworkFolder+"a", record.EncodeNetwork(record.Network{Name: "a", Pool: "none", Backend: record.VXLAN, VNI: 8, Port: 8472})),
			item(record.NetworkFolder+"zz", record.EncodeNetwork(record.Network{Name: "zz", Pool: "pods", Backend: record.VXLAN, VNI: 7, Port: 4789})),
			item(record.GoneFolder+string(two), record.EncodeGone(record.Gone{Node: two})), item(record.GoneFolder+string(three), record.EncodeGone(record.Gone{Node: three}))),
			[]hostnet.Link{lan}, found, own + `pods: vni 7 port 8472 on eth1 from 192.0.2.1, [10.5.0.1/32 10.5.3.1/32 2001:db8:5::1/128]
network a: the registry has no pool "none"
network zz: vni 7 is that of network "pods", too; give one of them another
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := Take(view(tt.items...), me, nil, nil)
			if diff := cmp.Diff(tt.want, golden(s, Make(s, hostnet.State{Links: tt.links}, []string{"eth1"}, tt.answer))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
