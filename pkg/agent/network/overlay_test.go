package network

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// newRoutedBed has a second switch, br1, and a router between the two, whose MACs
// do not change with the ports: hosts that move there have other addresses.
func newRoutedBed(t *testing.T, direct bool) *bed {
	t.Helper()
	b := newBed(t, func(n *record.Network) {
		n.Backend, n.VNI, n.Port, n.DirectRouting = record.VXLAN, 7, record.DefaultPort, direct
	})
	netnstest.Batch(t, b.wire, "ip", `link add br1 type bridge mcast_snooping 0
link set br1 addrgenmode none up
link set br0 address 02:00:00:00:00:fe
link set br1 address 02:00:00:00:01:fe
addr add 192.0.2.254/24 dev br0
addr add 198.51.100.254/24 dev br1`)
	netnstest.Run(t, b.wire, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
	return b
}

// move puts a host on a switch, with the address that it has there.
func (b *bed) move(h *host, bridge, addr string) {
	b.t.Helper()
	netnstest.Batch(b.t, b.wire, "ip", fmt.Sprintf("link set %s master %s", h.name, bridge))
	router := strings.Join(strings.Split(addr, ".")[:3], ".") + ".254"
	h.ip(fmt.Sprintf(`addr flush dev eth1 scope global
addr add %s/24 dev eth1
route add default via %s`, addr, router))
}

// ping goes from the host's address in its own block.
func (h *host) ping(to string) {
	h.t.Helper()
	netnstest.Run(h.t, h.ns, "ping", "-n", "-c", "1", "-i", "0.2", "-w", "10", to)
}

// leases gives each host a block of each family, and starts its agent.
func (b *bed) leases() {
	b.t.Helper()
	for i, h := range b.hosts {
		b.lease(h.id(), fmt.Sprintf("10.5.0.%d/26", 64*i))
		b.lease(h.id(), fmt.Sprintf("2001:db8:5::%x/122", 64*i))
	}
	for _, h := range b.hosts {
		h.start(noDrops)
	}
}

// states are how a host reaches its peers, in IPv4 and in IPv6.
func (h *host) states() string {
	var out strings.Builder
	for _, p := range h.Peers("pods") {
		fmt.Fprintf(&out, "%s %s %s %s\n", p.Name, p.State, p.Address, p.Dev)
	}
	return out.String()
}

func (h *host) awaitStates(what, want string) {
	h.t.Helper()
	await(h.t, h.name+": "+what, want, h.states)
}

// TestVXLAN: hosts of two switches, which have IPv4 alone, reach each other,
// directly where they share one, and go on to when one moves to the other.
func TestVXLAN(t *testing.T) {
	t.Parallel()
	b := newRoutedBed(t, true)
	one, two, three := b.host(), b.host(), b.host()
	b.move(one, "br0", "192.0.2.1")
	b.move(two, "br0", "192.0.2.2")
	b.move(three, "br1", "198.51.100.3")
	b.leases()
	one.awaitStates("at first", "n2 direct 192.0.2.2 eth1\nn2 vxlan 192.0.2.2 vx7\nn3 vxlan 198.51.100.3 vx7\nn3 vxlan 198.51.100.3 vx7\n")
	two.awaitStates("at first", "n1 direct 192.0.2.1 eth1\nn1 vxlan 192.0.2.1 vx7\nn3 vxlan 198.51.100.3 vx7\nn3 vxlan 198.51.100.3 vx7\n")
	three.awaitStates("at first", "n1 vxlan 192.0.2.1 vx7\nn1 vxlan 192.0.2.1 vx7\nn2 vxlan 192.0.2.2 vx7\nn2 vxlan 192.0.2.2 vx7\n")
	one.awaitRoutes("at first", `unreachable 10.5.0.0/26 metric 1048576
10.5.0.64/26 via 192.0.2.2 dev eth1
10.5.0.128/26 via 10.5.0.129 dev vx7 src 10.5.0.1 onlink
unreachable 2001:db8:5::/122 dev lo metric 1048576
2001:db8:5::40/122 via 2001:db8:5::41 dev vx7 src 2001:db8:5::1 metric 1024 onlink
2001:db8:5::80/122 via 2001:db8:5::81 dev vx7 src 2001:db8:5::1 metric 1024 onlink
`)
	reach := func() {
		t.Helper()
		for _, h := range b.hosts {
			for i := range b.hosts {
				h.ping(fmt.Sprintf("10.5.0.%d", 64*i+1))
				h.ping(fmt.Sprintf("2001:db8:5::%x", 64*i+1))
			}
		}
	}
	reach()
	if got := netnstest.Run(t, one.ns, "ip", "link", "show", "dev", vxlan.AltName("pods")); !strings.Contains(got, "vx7") || !strings.Contains(got, "mtu 1450") {
		t.Errorf("the device: %s", got)
	}
	if got := netnstest.Run(t, one.ns, "nft", "list", "table", "inet", "underlay"); !strings.Contains(got, "8472") || !strings.Contains(got, "198.51.100.3") {
		t.Errorf("VXLAN is not taken from nodes alone:\n%s", got)
	}

	two.ip("link set eth1 mtu 1400")
	b.move(two, "br1", "198.51.100.2")
	one.awaitStates("n2 moves", "n2 vxlan 198.51.100.2 vx7\nn2 vxlan 198.51.100.2 vx7\nn3 vxlan 198.51.100.3 vx7\nn3 vxlan 198.51.100.3 vx7\n")
	two.awaitStates("it moves", "n1 vxlan 192.0.2.1 vx7\nn1 vxlan 192.0.2.1 vx7\nn3 direct 198.51.100.3 eth1\nn3 vxlan 198.51.100.3 vx7\n")
	three.awaitStates("n2 moves", "n1 vxlan 192.0.2.1 vx7\nn1 vxlan 192.0.2.1 vx7\nn2 direct 198.51.100.2 eth1\nn2 vxlan 198.51.100.2 vx7\n")
	reach()
	await(t, "the MTU follows the parent's", "1350", func() string {
		_, after, _ := strings.Cut(netnstest.Run(t, two.ns, "ip", "link", "show", "dev", "vx7"), "mtu ")
		mtu, _, _ := strings.Cut(after, " ")
		return mtu
	})
	b.move(two, "br0", "192.0.2.2")
	one.awaitStates("n2 moves back", "n2 direct 192.0.2.2 eth1\nn2 vxlan 192.0.2.2 vx7\nn3 vxlan 198.51.100.3 vx7\nn3 vxlan 198.51.100.3 vx7\n")
	reach()
}

// TestVXLANRepair: what somebody does to a device, its entries or the routes
// through it is mended, and an agent that starts leaves all as it is.
func TestVXLANRepair(t *testing.T) {
	t.Parallel()
	b := newRoutedBed(t, false)
	one, two := b.host(), b.host()
	b.leases()
	const state = "n2 vxlan 192.0.2.2 vx7\nn2 vxlan 192.0.2.2 vx7\n"
	one.awaitStates("at first", state)
	two.awaitStates("at first", "n1 vxlan 192.0.2.1 vx7\nn1 vxlan 192.0.2.1 vx7\n")
	// All that there is, but for the index of the device, which may be missing.
	const show = `ip -d addr show dev vx7 | sed 's/^[0-9]*://'
ip neigh show dev vx7 nud permanent
bridge fdb show dev vx7
ip route show proto 141
ip link show dev vxlan-pods | wc -l`
	all := func() string { return netnstest.Run(t, one.ns, "sh", "-c", "{ "+show+"\n} 2>&1") }
	one.ping("10.5.0.65")
	want := all()
	for _, harm := range []struct{ with, commands string }{
		{"ip", "link del vx7"},
		{"ip", "link set vx7 down"},
		{"ip", "link set vx7 address 02:00:00:00:00:77"},
		{"ip", "link set vx7 mtu 1300"},
		{"ip", "addr flush dev vx7"},
		{"ip", "neigh flush dev vx7 nud permanent"},
		{"bridge", "fdb flush dev vx7"},
		{"bridge", "fdb add 02:00:00:00:00:05 dev vx7 dst 192.0.2.99"},
		{"ip", "route flush proto 141"},
		{"ip", "link property del dev vx7 altname vxlan-pods"},
	} {
		netnstest.Batch(t, one.ns, harm.with, harm.commands)
		began := time.Now()
		await(t, harm.commands, want, all)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: mended after %s", harm.commands, took)
		}
		one.ping("10.5.0.65")
		one.ping("2001:db8:5::41")
	}
	one.stop()
	if got := all(); got != want {
		t.Errorf("after the agent's end:\n%s", got)
	}
	must(t, b.reg.DeleteNetwork(t.Context(), "pods"))
	one.start(noDrops)
	one.awaitRoutes("the network is gone", "")
	await(t, "the device is gone", "", func() string {
		return netnstest.Run(t, one.ns, "ip", "-o", "link", "show", "type", "vxlan")
	})
}
