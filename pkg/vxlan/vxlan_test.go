package vxlan

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
	"github.com/underlay-cni/underlay/pkg/route"
)

// newHost is a namespace with an interface eth1, of MTU 1500, that ends in wire.
func newHost(t *testing.T) *netns.NS {
	t.Helper()
	n := netnstest.New(t)
	netnstest.Batch(t, n, "ip", `link set lo up
link add eth1 type veth peer name wire
link set eth1 up
link set wire up
addr add 192.0.2.1/24 dev eth1
addr add 2001:db8::1/64 dev eth1 nodad`)
	return n
}

func device() Device {
	return Device{VNI: 7, Port: 8472, Parent: "eth1", Local: netip.MustParseAddr("192.0.2.1"), MAC: MAC("node", "pods"),
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.5.0.1/32"), netip.MustParsePrefix("fd00:5::1/128")}}
}

func show(t *testing.T, n *netns.NS) string {
	t.Helper()
	return netnstest.Run(t, n, "ip", "-d", "addr", "show", "dev", "vx7")
}

func TestDevice(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	apply := func(d Device, made bool, want ...string) {
		t.Helper()
		got, err := d.Apply(n)
		if err != nil || got != made {
			t.Fatalf("made %v, %v; want %v", got, err, made)
		}
		is := show(t, n)
		for _, w := range append(want, "vxlan id 7", "nolearning", d.MAC.String(), "10.5.0.1/32", "fd00:5::1/128", "UP", "alias underlay") {
			if !strings.Contains(is, w) {
				t.Errorf("no %q in\n%s", w, is)
			}
		}
		if strings.Contains(is, "fe80::") || strings.Contains(is, "198.51.100.1") {
			t.Errorf("addresses that nobody wants:\n%s", is)
		}
	}
	d := device()
	apply(d, true, "mtu 1450", "dstport 8472", "local 192.0.2.1", "dev eth1")
	apply(d, false, "mtu 1450")
	for _, drift := range []string{
		"link set vx7 down", "link set vx7 mtu 1300", "link set vx7 address 02:00:00:00:00:09", "addr del 10.5.0.1/32 dev vx7",
		"addr add 198.51.100.1/32 dev vx7",
	} {
		netnstest.Batch(t, n, "ip", drift)
		apply(d, false, "mtu 1450")
	}
	netnstest.Batch(t, n, "ip", "link set eth1 mtu 1400")
	apply(d, false, "mtu 1350")
	netnstest.Batch(t, n, "ip", "link del vx7")
	apply(d, true)
	d.Port = 4789
	apply(d, true, "dstport 4789")
	d.Local = netip.MustParseAddr("2001:db8::1")
	apply(d, true, "mtu 1330", "local 2001:db8::1")
	for range 2 {
		if err := Remove(n, 7); err != nil {
			t.Fatal(err)
		}
	}
	if list := netnstest.Run(t, n, "ip", "-o", "link", "show", "type", "vxlan"); list != "" {
		t.Errorf("left: %s", list)
	}
}

func TestDeviceInTheWay(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, there, want string }{
		{"another device of the name", "link add vx7 type bridge", "the bridge that somebody else has made is in the way"},
		{"somebody else's of the name", "link add vx7 type vxlan id 7 dstport 8472 dev eth1", "the vxlan that somebody else has made"},
		{"the VNI and the port are taken", "link add theirs type vxlan id 7 dstport 8472 local 192.0.2.9", `"theirs", which has VNI 7 and port 8472, is in the way`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := newHost(t)
			netnstest.Batch(t, n, "ip", tt.there)
			// Of a link that has just come up the kernel finds out late that it has a carrier.
			links := func() string {
				return regexp.MustCompile(`NO-CARRIER,|,LOWER_UP| state \w+`).ReplaceAllString(netnstest.Run(t, n, "ip", "-o", "link"), "")
			}
			before := links()
			_, err := device().Apply(n)
			if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %s", err, tt.want)
			}
			if err := Remove(n, 7); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(before, links()); diff != "" {
				t.Errorf("links (-want +got):\n%s", diff)
			}
		})
	}
	d := device()
	d.Parent = "eth9"
	if _, err := d.Apply(newHost(t)); err == nil || !strings.Contains(err.Error(), `parent "eth9"`) {
		t.Errorf("no parent: %v", err)
	}
}

func TestRouted(t *testing.T) {
	t.Parallel()
	mac := MAC("n2", "pods")
	peers := []Peer{
		{Name: "n2", VTEP: netip.MustParseAddr("192.0.2.2"), MAC: mac, Blocks: []netip.Prefix{
			netip.MustParsePrefix("10.5.0.64/26"), netip.MustParsePrefix("10.5.1.0/26"), netip.MustParsePrefix("fd00:5::40/122")}},
		{Name: "n3", VTEP: netip.MustParseAddr("192.0.2.3"), MAC: MAC("n3", "pods")},
	}
	routes, entries := Routed("vx7", peers, [2]netip.Addr{netip.MustParseAddr("10.5.0.1")})
	var got []string
	for _, r := range routes {
		got = append(got, r.Peer+": "+r.Object.String())
	}
	for _, e := range entries {
		got = append(got, e.Peer+": "+e.Object.String())
	}
	want := []string{
		"n2: 10.5.0.64/26 via 10.5.0.65 dev vx7 src 10.5.0.1 onlink",
		"n2: 10.5.1.0/26 via 10.5.0.65 dev vx7 src 10.5.0.1 onlink",
		"n2: fd00:5::40/122 via fd00:5::41 dev vx7 onlink",
		fmt.Sprintf("n2: 10.5.0.65 dev vx7 lladdr %s", mac),
		fmt.Sprintf("n2: fd00:5::41 dev vx7 lladdr %s", mac),
		fmt.Sprintf("n2: self %s dev vx7 dst 192.0.2.2", mac),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestReach: two hosts on one cable reach each other's blocks through VXLAN, over
// IPv4 and over IPv6.
func TestReach(t *testing.T) {
	t.Parallel()
	for _, underlay := range []string{"192.0.2.%d/24", "2001:db8::%d/64"} {
		t.Run(underlay, func(t *testing.T) {
			t.Parallel()
			hosts := [2]*netns.NS{netnstest.New(t), netnstest.New(t)}
			netnstest.Batch(t, hosts[0], "ip", fmt.Sprintf("link add eth1 type veth peer name eth1 netns /proc/%d/fd/%d", os.Getpid(), hosts[1].Fd()))
			local := func(i int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf(underlay, i+1)) }
			own := func(i int) (p Peer, gateways [2]netip.Addr) {
				name := fmt.Sprint("n", i)
				p = Peer{Name: name, VTEP: local(i).Addr(), MAC: MAC(name, "pods"), Blocks: []netip.Prefix{
					netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/26", i)), netip.MustParsePrefix(fmt.Sprintf("fd00:5:0:%d::/122", i))}}
				return p, [2]netip.Addr{Gateway(p.Blocks[0]), Gateway(p.Blocks[1])}
			}
			for i, n := range hosts {
				me, gateways := own(i)
				peer, _ := own(1 - i)
				netnstest.Batch(t, n, "ip", fmt.Sprintf("link set eth1 up\naddr add %s dev eth1 %s", local(i), map[bool]string{true: "nodad"}[local(i).Addr().Is6()]))
				d := Device{VNI: 7, Port: 8472, Parent: "eth1", Local: local(i).Addr(), MAC: me.MAC}
				for _, g := range gateways {
					d.Addrs = append(d.Addrs, netip.PrefixFrom(g, g.BitLen()))
				}
				if _, err := d.Apply(n); err != nil {
					t.Fatal(err)
				}
				routes, entries := Routed(Name(7), []Peer{peer}, gateways)
				r, err := route.New(route.Config{Netns: n})
				if err == nil {
					err = errors.Join(r.Apply(t.Context(), routes), r.Close())
				}
				if err != nil {
					t.Fatal(err)
				}
				e, err := neigh.New(neigh.Config{Netns: n, Devices: []string{Name(7)}})
				if err == nil {
					err = errors.Join(e.Apply(t.Context(), entries), e.Close())
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			_, far := own(1)
			for _, g := range far {
				netnstest.Run(t, hosts[0], "ping", "-n", "-c", "1", "-i", "0.2", "-w", "10", g.String())
			}
		})
	}
}

func command(name string, args ...string) error { return exec.Command(name, args...).Run() }
