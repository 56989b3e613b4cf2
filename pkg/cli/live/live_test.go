package live

import (
	"net"
	"net/netip"
	"testing"

	"github.com/containernetworking/plugins/pkg/testutils"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/link"
)

func TestParseAlias(t *testing.T) {
	t.Parallel()
	tests := []struct {
		alias, network, container string
		ok                        bool
	}{
		{"underlay:lan:4f1c", "lan", "4f1c", true},
		{"underlay:a.b-c_d:x", "a.b-c_d", "x", true},
		{"underlay", "", "", false}, // shared on the host
		{"", "", "", false},
		{"uplink to sw1:lan:3", "", "", false},
		{"underlay::x", "", "", false},
		{"underlay:lan:", "", "", false},
		{"underlay:lan:x:y", "", "", false},
	}
	for _, tt := range tests {
		network, container, ok := ParseAlias(tt.alias)
		if network != tt.network || container != tt.container || ok != tt.ok {
			t.Errorf("%q: %q, %q, %v", tt.alias, network, container, ok)
		}
	}
}

func TestFromMAC(t *testing.T) {
	t.Parallel()
	mac := net.HardwareAddr{0x02, 0x49, 0xf6, 0x7b, 0x04, 0x6c}
	for s, want := range map[string]bool{
		"2001:db8::49:f6ff:fe7b:46c":   true,
		"2001:db8::249:f6ff:fe7b:46c":  false, // the bit is not flipped
		"2001:db8::49:f6ff:fe7b:46d":   false,
		"2001:db8::2":                  false,
		"192.0.2.10":                   false,
		"2001:db8:1::49:f6ff:fe7b:46c": true, // any prefix
		"2001:db8::249:f600:17b:46c":   true, // of the first ipvlan link of a parent
		"2001:db8::49:f600:17b:46c":    false,
	} {
		if got := fromMAC(netip.MustParseAddr(s), mac); got != want {
			t.Errorf("%s: %v", s, got)
		}
	}
	if fromMAC(netip.MustParseAddr("2001:db8::2"), nil) {
		t.Error("a link without MAC has an address of it")
	}
}

func TestState(t *testing.T) {
	named, err := testutils.NewNS()
	if err != nil {
		t.Fatal(err)
	}
	path := named.Path()
	there := client.Identify(path)
	all, err := List()
	if err != nil {
		t.Fatal(err)
	}
	self := client.Identify("/proc/self/ns/net")
	tests := []struct {
		name string
		ns   ipam.Netns
		boot string
		want State
	}{
		{"named", there, all.BootID(), Alive},
		{"by another path", ipam.Netns{Path: "/proc/1234567/ns/net", Dev: there.Dev, Inode: there.Inode}, all.BootID(), Alive},
		{"a process's", self, all.BootID(), Alive},
		{"of an earlier boot", there, "0d9bd2c0-0000-4000-8000-000000000000", Gone},
		{"the path is another's now", ipam.Netns{Path: path, Dev: there.Dev, Inode: 1}, all.BootID(), Gone},
		{"not told", ipam.Netns{Path: path}, all.BootID(), Unknown},
	}
	for _, tt := range tests {
		if got := all.State(tt.ns, tt.boot); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	if err := named.Close(); err != nil {
		t.Fatal(err)
	}
	if err := testutils.UnmountNS(named); err != nil {
		t.Fatal(err)
	}
	if all, err = List(); err != nil {
		t.Fatal(err)
	}
	if got := all.State(there, all.BootID()); got != Gone {
		t.Errorf("removed: %s", got)
	}
}

func TestUses(t *testing.T) {
	t.Parallel()
	addrs := []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("2001:db8::2/64")}
	reach := func(on string) map[string]map[netip.Addr]bool {
		return map[string]map[netip.Addr]bool{link.SiblingName(on): {addrs[1].Addr(): true}}
	}
	h := host{byIndex: map[int]link.Link{
		2: {Name: "eth1", Index: 2},
		3: {Name: "eth1.100", Index: 3, Kind: "vlan", VLAN: 100, Parent: 2, Alias: link.SharedAlias},
		4: {Name: "eth1.200", Index: 4, Kind: "vlan", VLAN: 200, Parent: 2}, // there before
	}}
	const port = "ipvlan mode l3, flag bridge"
	ipvlan := func(parent int) link.Link {
		return link.Link{Kind: "ipvlan", Mode: "l3", Flag: "bridge", Parent: parent}
	}
	macvlan := func(parent int) link.Link { return link.Link{Kind: "macvlan", Mode: "bridge", Parent: parent} }
	tests := []struct {
		name  string
		link  link.Link
		reach map[string]map[netip.Addr]bool
		want  ipam.Uses
	}{
		{"nothing", macvlan(2), nil, ipam.Uses{}},
		{"host access", macvlan(2), reach("eth1"), ipam.Uses{Parent: "eth1", HostAccess: true}},
		{"others have host access", macvlan(2), reach("eth2"), ipam.Uses{}},
		{"vlan", macvlan(3), nil, ipam.Uses{Parent: "eth1", VLAN: 100}},
		{"vlan and host access", macvlan(3), reach("eth1.100"), ipam.Uses{Parent: "eth1", VLAN: 100, HostAccess: true}},
		{"vlan of somebody else's", macvlan(4), nil, ipam.Uses{}},
		{"host access on somebody else's vlan", macvlan(4), reach("eth1.200"), ipam.Uses{Parent: "eth1.200", HostAccess: true}},
		{"parent gone", macvlan(9), nil, ipam.Uses{}},
		{"port", ipvlan(2), nil, ipam.Uses{Parent: "eth1", Port: port}},
		{"port and host access", ipvlan(2), reach("eth1"), ipam.Uses{Parent: "eth1", HostAccess: true, Port: port}},
		{"port and vlan", ipvlan(3), nil, ipam.Uses{Parent: "eth1", VLAN: 100, Port: port}},
		{"port on somebody else's vlan", ipvlan(4), nil, ipam.Uses{Parent: "eth1.200", Port: port}},
		{"port, parent gone", ipvlan(9), nil, ipam.Uses{}},
	}
	for _, tt := range tests {
		h.reach = tt.reach
		if got := h.uses(tt.link, addrs); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}
