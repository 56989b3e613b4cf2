package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// route is "dst", or "dst gateway", with a scope that fits.
func route(dst, gw string, more Route) Route {
	more.Dst = netip.MustParsePrefix(dst)
	if gw != "" {
		more.GW = netip.MustParseAddr(gw)
	}
	if more.Scope == 0 {
		more.Scope = -1
	}
	return more
}

// newRouter is a host whose eth1 is in two subnets.
func newRouter(t testing.TB) (s *space, index int) {
	t.Helper()
	s = newHost(t)
	s.ip(t, "addr add 192.0.2.1/24 dev eth1")
	s.ip(t, "addr add 2001:db8::1/64 nodad dev eth1")
	return s, s.link(t, "eth1").Index
}

func TestAddRoute(t *testing.T) {
	t.Parallel()
	const v6 = "2001:db8::/64 dev eth1 proto kernel metric 256 pref medium"
	tests := []struct {
		name   string
		routes []Route
		show   string // what of ip's list to look at
		want   []string
	}{
		{"default", []Route{route("0.0.0.0/0", "192.0.2.254", Route{})}, "default", []string{"default via 192.0.2.254 dev eth1"}},
		{"without gateway", []Route{route("198.51.100.0/24", "", Route{})}, "198.51.100.0/24", []string{"198.51.100.0/24 dev eth1 scope link"}},
		// The kernel refuses a route to a subnet with bits of a host.
		{"address in its subnet", []Route{route("198.51.100.7/24", "", Route{})}, "198.51.100.0/24", []string{"198.51.100.0/24 dev eth1 scope link"}},
		{"source", []Route{route("198.51.100.7/32", "", Route{Src: netip.MustParseAddr("192.0.2.1")})}, "198.51.100.7", []string{"198.51.100.7 dev eth1 scope link src 192.0.2.1"}},
		{"metrics", []Route{route("198.51.100.0/24", "192.0.2.254", Route{MTU: 1400, AdvMSS: 1360})}, "198.51.100.0/24", []string{"198.51.100.0/24 via 192.0.2.254 dev eth1 mtu 1400 advmss 1360"}},
		{"MTU alone", []Route{route("198.51.100.0/24", "192.0.2.254", Route{MTU: 1400})}, "198.51.100.0/24", []string{"198.51.100.0/24 via 192.0.2.254 dev eth1 mtu 1400"}},
		{"priority", []Route{route("0.0.0.0/0", "192.0.2.254", Route{Priority: 50})}, "default", []string{"default via 192.0.2.254 dev eth1 metric 50"}},
		{"small table", []Route{route("0.0.0.0/0", "192.0.2.254", Route{Table: 100})}, "table 100", []string{"default via 192.0.2.254 dev eth1"}},
		{"large table", []Route{route("0.0.0.0/0", "192.0.2.254", Route{Table: 1000})}, "table 1000", []string{"default via 192.0.2.254 dev eth1"}},
		{"large table is not its last octet", []Route{route("0.0.0.0/0", "192.0.2.254", Route{Table: 1000})}, "table 232", []string{}},
		{"scope", []Route{route("198.51.100.0/24", "", Route{Scope: unix.RT_SCOPE_HOST})}, "198.51.100.0/24", []string{"198.51.100.0/24 dev eth1 scope host"}},
		{
			// The newest goes first, as the reference plugins have it.
			"two defaults", []Route{route("0.0.0.0/0", "192.0.2.254", Route{}), route("0.0.0.0/0", "192.0.2.253", Route{})},
			"default", []string{"default via 192.0.2.253 dev eth1", "default via 192.0.2.254 dev eth1"},
		},
		{"IPv6", []Route{route("::/0", "2001:db8::fe", Route{})}, "default", []string{"default via 2001:db8::fe dev eth1 metric 1024 pref medium"}},
		{"IPv6 link-local gateway", []Route{route("::/0", "fe80::1", Route{Priority: 50})}, "default", []string{"default via fe80::1 dev eth1 metric 50 pref medium"}},
		{
			"IPv6 all", []Route{route("2001:db8:1::/48", "2001:db8::fe", Route{MTU: 1400, AdvMSS: 1340, Priority: 5, Src: netip.MustParseAddr("2001:db8::1")})},
			"2001:db8:1::/48", []string{"2001:db8:1::/48 via 2001:db8::fe dev eth1 src 2001:db8::1 metric 5 mtu 1400 advmss 1340 pref medium"},
		},
		{"IPv6 table", []Route{route("2001:db8:1::7/128", "", Route{Table: 1000})}, "table 1000", []string{"2001:db8:1::7 dev eth1 metric 1024 pref medium"}},
		{
			"two IPv6 defaults", []Route{route("::/0", "2001:db8::fe", Route{}), route("::/0", "2001:db8::fd", Route{})},
			"", []string{
				v6, "default metric 1024 pref medium",
				"nexthop via 2001:db8::fe dev eth1 weight 1", "nexthop via 2001:db8::fd dev eth1 weight 1",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, index := newRouter(t)
			show := "-4 route show " + tt.show
			if !tt.routes[0].Dst.Addr().Is4() {
				show = "-6 route show " + tt.show
			}
			for range 2 { // one that is there is success
				for _, r := range tt.routes {
					must(t, s.h.AddRoute(index, r))
				}
				out, _ := s.run("", strings.Fields(show)...) // a table without routes is an error to ip
				if diff := cmp.Diff(tt.want, split(out)); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestRouteRefused(t *testing.T) {
	t.Parallel()
	s, index := newRouter(t)
	before := slices.Concat(s.lines(t, "-4 route"), s.lines(t, "-6 route"))
	tests := []struct {
		index int
		route Route
		want  string
	}{
		// The kernel's words say more than its number.
		{index, route("0.0.0.0/0", "203.0.113.1", Route{}), "0.0.0.0/0 via 203.0.113.1: network is unreachable: Nexthop has invalid gateway"},
		{index, route("::/0", "2001:db8:9::1", Route{}), "::/0 via 2001:db8:9::1: no route to host"},
		{index, route("0.0.0.0/0", "2001:db8::fe", Route{}), "0.0.0.0/0 via 2001:db8::fe: the gateway is of another address family"},
		{index, route("::/0", "192.0.2.254", Route{}), "::/0 via 192.0.2.254: the gateway is of another address family"},
		{index, route("198.51.100.0/24", "", Route{Src: netip.MustParseAddr("192.0.2.9")}), "198.51.100.0/24: invalid argument: Invalid prefsrc address"},
		{1 << 20, route("198.51.100.0/24", "", Route{}), "198.51.100.0/24: no such device"},
	}
	for _, tt := range tests {
		wantError(t, s.h.AddRoute(tt.index, tt.route), "add route "+tt.want)
		wantError(t, s.h.ReplaceRoute(tt.index, tt.route), "replace route "+tt.want)
	}
	if err := s.h.AddRoute(index, tests[0].route); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("%v is not %v", err, unix.ENETUNREACH)
	}
	if diff := cmp.Diff(before, slices.Concat(s.lines(t, "-4 route"), s.lines(t, "-6 route"))); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

func TestReplaceRoute(t *testing.T) {
	t.Parallel()
	s, _ := newRouter(t)
	s.veth(t, "eth2", "wire2")
	for _, family := range []struct{ show, dst, suffix string }{
		{"-4 route show 198.51.100.7", "198.51.100.7/32", " scope link"},
		{"-6 route show 2001:db8:1::7", "2001:db8:1::7/128", " metric 1024 pref medium"},
	} {
		to := netip.MustParsePrefix(family.dst).Addr()
		for _, name := range []string{"eth1", "eth1", "eth2"} { // made, kept, moved
			must(t, s.h.ReplaceRoute(s.link(t, name).Index, route(family.dst, "", Route{})))
			if diff := cmp.Diff([]string{fmt.Sprintf("%s dev %s%s", to, name, family.suffix)}, s.lines(t, family.show)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
	}
}

func TestDeleteRoute(t *testing.T) {
	t.Parallel()
	s, index := newRouter(t)
	s.veth(t, "eth2", "wire2")
	before := slices.Concat(s.lines(t, "-4 route"), s.lines(t, "-6 route"))
	other := s.link(t, "eth2").Index
	for _, dst := range []string{"198.51.100.7/32", "198.51.100.0/24", "0.0.0.0/0", "2001:db8:1::7/128", "::/0"} {
		p := netip.MustParsePrefix(dst)
		s.ip(t, fmt.Sprintf("route add %s dev eth1", dst))
		must(t, s.h.DeleteRoute(other, p)) // not that of another link
		if after := slices.Concat(s.lines(t, "-4 route"), s.lines(t, "-6 route")); len(after) != len(before)+1 {
			t.Errorf("%s out of another link: %q", dst, after)
		}
		for range 2 { // none is success
			must(t, s.h.DeleteRoute(index, p))
			if diff := cmp.Diff(before, slices.Concat(s.lines(t, "-4 route"), s.lines(t, "-6 route"))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", dst, diff)
			}
		}
		must(t, s.h.DeleteRoute(1<<20, p))
	}
}

// What ip made is read with ours.
func TestRoutes(t *testing.T) {
	t.Parallel()
	s, index := newRouter(t)
	s.veth(t, "eth2", "wire2")
	for _, command := range []string{
		"addr add 203.0.113.1/24 dev eth2",
		"addr add 2001:db8:9::1/64 nodad dev eth2",
		"route add default via 192.0.2.254 dev eth1 metric 50",
		"route add 198.51.100.0/24 nexthop via 192.0.2.253 dev eth1 nexthop via 203.0.113.254 dev eth2 nexthop dev eth1",
		"route add 198.51.101.0/24 dev eth1 scope link src 192.0.2.1",
		"route add 198.51.102.0/24 via inet6 2001:db8::fe dev eth1",
		"-6 route add default via 2001:db8::fe dev eth1",
		"-6 route add 2001:db8:1::/48 nexthop via 2001:db8::fd dev eth1 nexthop via 2001:db8:9::fe dev eth2",
		// None of these is out of eth1 in the main table.
		"route add 198.51.103.0/24 dev eth2",
		"route add default via 192.0.2.252 dev eth1 table 100",
		"-6 route add default via 2001:db8::fc dev eth1 table 1000",
		"route add unreachable 198.51.104.0/24",
		"-6 route add unreachable 2001:db8:2::/48",
		"-6 route add blackhole 2001:db8:3::/48 dev lo",
	} {
		s.ip(t, command)
	}
	want := []string{
		"0.0.0.0/0 192.0.2.254  50",
		"192.0.2.0/24  192.0.2.1 0",
		"198.51.100.0/24   0", "198.51.100.0/24 192.0.2.253  0",
		"198.51.101.0/24  192.0.2.1 0",
		"198.51.102.0/24   0", // the gateway is of another family, which Route cannot say
		"2001:db8:1::/48 2001:db8::fd  1024",
		"2001:db8::/64   256",
		"::/0 2001:db8::fe  1024",
	}
	list, err := s.h.Routes(index)
	must(t, err)
	var got []string
	for _, r := range list {
		got = append(got, fmt.Sprintf("%s %s %s %d", r.Dst, text(r.GW), text(r.Src), r.Priority))
		if r.Table != unix.RT_TABLE_MAIN {
			t.Errorf("%s is in table %d", r, r.Table)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	all, err := s.h.RoutesOfTables(index)
	must(t, err)
	var elsewhere []string
	for _, r := range all {
		if r.Table != unix.RT_TABLE_MAIN {
			elsewhere = append(elsewhere, fmt.Sprintf("%s in table %d", r, r.Table))
		}
	}
	if diff := cmp.Diff([]string{"0.0.0.0/0 via 192.0.2.252 in table 100", "::/0 via 2001:db8::fc in table 1000"}, elsewhere); diff != "" {
		t.Errorf("in other tables (-want +got):\n%s", diff)
	}
	if n := len(all) - len(elsewhere); n != len(list) {
		t.Errorf("%d routes are in the main table, and %d of all", len(list), n)
	}
	for _, of := range []int{s.link(t, "wire").Index, 1, 1 << 20} {
		if list, err := s.h.Routes(of); err != nil || len(list) > 0 {
			t.Errorf("out of link %d: %v, %v", of, list, err)
		}
	}
}

// text is "" for no address.
func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
