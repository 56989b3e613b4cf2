package route

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is there before, of us and of others; what is wanted; what ip shows then.
func TestApply(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		there   string // commands of ip, whose batches mix up names of protocols
		want    string
		ours    string
		foreign string
		err     string
	}{
		{name: "nothing"},
		{
			name: "every kind of route",
			want: `10.1.0.0/24 via 192.0.2.2 dev eth1
10.2.0.0/24 via 198.51.100.2 dev eth2 src 192.0.2.1 mtu 1450
10.3.0.0/24 via 203.0.113.3 dev eth1 onlink
10.4.0.0/24 dev eth2
unreachable 10.5.0.0/16
0.0.0.0/0 via 192.0.2.254 dev eth1 metric 50
2001:db8:101::/64 via 2001:db8::2 dev eth1
2001:db8:102::/64 via 2001:db8:2::2 dev eth2 src 2001:db8::1 mtu 1450
2001:db8:103::/64 via 2001:db8:ffff::3 dev eth1 onlink
2001:db8:104::/64 dev eth2
unreachable 2001:db8:105::/48
::/0 via fe80::1 dev eth1 metric 50`,
			ours: `default via 192.0.2.254 dev eth1 metric 50
10.1.0.0/24 via 192.0.2.2 dev eth1
10.2.0.0/24 via 198.51.100.2 dev eth2 src 192.0.2.1 mtu 1450
10.3.0.0/24 via 203.0.113.3 dev eth1 onlink
10.4.0.0/24 dev eth2 scope link
unreachable 10.5.0.0/16
2001:db8:101::/64 via 2001:db8::2 dev eth1 metric 1024
2001:db8:102::/64 via 2001:db8:2::2 dev eth2 src 2001:db8::1 metric 1024 mtu 1450
2001:db8:103::/64 via 2001:db8:ffff::3 dev eth1 metric 1024 onlink
2001:db8:104::/64 dev eth2 metric 1024
unreachable 2001:db8:105::/48 dev lo metric 1024
default via fe80::1 dev eth1 metric 50
`,
		},
		{
			name: "an earlier life's go, those of others stay",
			there: `route add 10.9.0.0/24 via 192.0.2.9 proto 141
route add 10.1.0.0/24 via 192.0.2.2 proto 141
route add unreachable 10.9.1.0/24 proto 141
route add 10.9.2.0/24 proto 141 nexthop via 192.0.2.8 nexthop via 192.0.2.9
route add blackhole 10.9.3.0/24 proto 141
route add 10.9.4.0/24 tos 4 via 192.0.2.9 proto 141
route add 2001:db8:900::/64 via 2001:db8::9 proto 141
route add 2001:db8:901::/64 proto 141 nexthop via 2001:db8::8 nexthop via 2001:db8::9
route add prohibit 2001:db8:902::/64 proto 141
route add 10.9.0.0/24 via 192.0.2.9 proto 4 metric 7
route add 10.8.0.0/24 via 192.0.2.9 proto 142
route add 2001:db8:900::/64 via 2001:db8::9 proto 4 metric 7
route add 10.7.0.0/24 via 192.0.2.9 proto 141 table 100`,
			want: "10.1.0.0/24 via 192.0.2.2 dev eth1",
			ours: "10.1.0.0/24 via 192.0.2.2 dev eth1\n",
			foreign: `10.9.0.0/24 via 192.0.2.9 dev eth1 metric 7
2001:db8:900::/64 via 2001:db8::9 dev eth1 metric 7
`,
		},
		{
			name: "everything about a route changes",
			there: `route add 10.1.0.0/24 via 192.0.2.9 proto 141
route add 10.2.0.0/24 via 192.0.2.9 proto 141
route add 10.3.0.0/24 via 192.0.2.9 proto 141
route add 10.4.0.0/24 via 192.0.2.9 proto 141 mtu 1400
route add 10.5.0.0/24 via 192.0.2.9 proto 141
route add 10.6.0.0/24 proto 141 nexthop via 192.0.2.8 nexthop via 192.0.2.9
route add 2001:db8:101::/64 via 2001:db8::9 proto 141
route add 2001:db8:102::/64 dev eth1 proto 141
route add 2001:db8:103::/64 via 2001:db8::9 proto 141
route add 2001:db8:104::/64 via 2001:db8::9 mtu 1400 proto 141
route add 2001:db8:105::/64 via 2001:db8::9 proto 141
route add 2001:db8:106::/64 proto 141 nexthop via 2001:db8::8 nexthop via 2001:db8::9`,
			want: `10.1.0.0/24 via 198.51.100.9 dev eth2
10.2.0.0/24 dev eth1
unreachable 10.3.0.0/24
10.4.0.0/24 via 192.0.2.9 dev eth1 mtu 1450
10.5.0.0/24 via 192.0.2.9 dev eth1 src 198.51.100.1 onlink
10.6.0.0/24 via 192.0.2.9 dev eth1
2001:db8:101::/64 via 2001:db8:2::9 dev eth2
2001:db8:102::/64 via 2001:db8::9 dev eth1
unreachable 2001:db8:103::/64
2001:db8:104::/64 via 2001:db8::9 dev eth1 mtu 1450
2001:db8:105::/64 via 2001:db8::9 dev eth1 src 2001:db8:2::1 onlink
2001:db8:106::/64 via 2001:db8::9 dev eth1`,
			ours: `10.1.0.0/24 via 198.51.100.9 dev eth2
10.2.0.0/24 dev eth1 scope link
unreachable 10.3.0.0/24
10.4.0.0/24 via 192.0.2.9 dev eth1 mtu 1450
10.5.0.0/24 via 192.0.2.9 dev eth1 src 198.51.100.1 onlink
10.6.0.0/24 via 192.0.2.9 dev eth1
2001:db8:101::/64 via 2001:db8:2::9 dev eth2 metric 1024
2001:db8:102::/64 via 2001:db8::9 dev eth1 metric 1024
unreachable 2001:db8:103::/64 dev lo metric 1024
2001:db8:104::/64 via 2001:db8::9 dev eth1 metric 1024 mtu 1450
2001:db8:105::/64 via 2001:db8::9 dev eth1 src 2001:db8:2::1 metric 1024 onlink
2001:db8:106::/64 via 2001:db8::9 dev eth1 metric 1024
`,
		},
		{
			name: "the same prefix twice in the kernel",
			there: `route add 10.1.0.0/24 via 192.0.2.9 proto 141
route append 10.1.0.0/24 via 192.0.2.2 proto 141
route append 10.1.0.0/24 via 192.0.2.8 proto 141
route add 2001:db8:101::/64 via 2001:db8::2 proto 141
route append 2001:db8:101::/64 dev eth1 proto 141`,
			want: `10.1.0.0/24 via 192.0.2.2 dev eth1
2001:db8:101::/64 via 2001:db8::2 dev eth1`,
			ours: `10.1.0.0/24 via 192.0.2.2 dev eth1
2001:db8:101::/64 via 2001:db8::2 dev eth1 metric 1024
`,
		},
		{
			name: "what the kernel refuses holds up nothing",
			there: `route add 10.1.0.0/24 via 192.0.2.9 proto 4
route add 10.2.0.0/24 via 192.0.2.9 proto 141
route add 2001:db8:101::/64 via 2001:db8::9 proto 4
link set eth2 down`,
			want: `10.1.0.0/24 via 192.0.2.2 dev eth1
10.2.0.0/24 via 203.0.113.1 dev eth1
10.3.0.0/24 via 192.0.2.2 dev eth9
10.4.0.0/24 via 198.51.100.2 dev eth2 onlink
10.5.0.0/24 via 192.0.2.2 dev eth1 src 203.0.113.1
10.6.0.0/24 dev eth2
10.7.0.0/24 via 2001:db8::2 dev eth1
10.8.0.1/24 via 192.0.2.2 dev eth1
10.9.0.0/24 via 192.0.2.2 dev eth1
10.9.0.0/24 via 192.0.2.3 dev eth1
2001:db8:101::/64 via 2001:db8::2 dev eth1
2001:db8:102::/64 via 2001:db8:3::2 dev eth1
2001:db8:103::/64 via 2001:db8::2 dev eth1
2001:db8:104::/64 via 2001:db8::2 dev eth1 src 2001:db8::7
2001:db8:105::/64 via 2001:db8::1 dev eth1`,
			ours: `10.9.0.0/24 via 192.0.2.2 dev eth1
2001:db8:103::/64 via 2001:db8::2 dev eth1 metric 1024
`,
			foreign: `10.1.0.0/24 via 192.0.2.9 dev eth1
2001:db8:101::/64 via 2001:db8::9 dev eth1 metric 1024
`,
			err: `peer a: add route 10.1.0.0/24 via 192.0.2.2 dev eth1: a route of somebody else to the same prefix is in the way
peer b: add route 10.2.0.0/24 via 203.0.113.1 dev eth1: network is unreachable: Nexthop has invalid gateway
peer c: add route 10.3.0.0/24 via 192.0.2.2 dev eth9: look up interface "eth9": no such interface
peer d: add route 10.4.0.0/24 via 198.51.100.2 dev eth2 onlink: network is down: Nexthop device is not up
peer e: add route 10.5.0.0/24 via 192.0.2.2 dev eth1 src 203.0.113.1: invalid argument: Invalid prefsrc address
peer f: add route 10.6.0.0/24 dev eth2: network is down: Device for nexthop is not up
peer g: 10.7.0.0/24 via 2001:db8::2 dev eth1: the gateway is of another address family
peer h: 10.8.0.1/24 via 192.0.2.2 dev eth1: the prefix is that of 10.8.0.0/24
peer j: 10.9.0.0/24 via 192.0.2.3 dev eth1: peer i wants 10.9.0.0/24 via 192.0.2.2 dev eth1
peer k: add route 2001:db8:101::/64 via 2001:db8::2 dev eth1: a route of somebody else to the same prefix is in the way
peer l: add route 2001:db8:102::/64 via 2001:db8:3::2 dev eth1: no route to host
peer n: add route 2001:db8:104::/64 via 2001:db8::2 dev eth1 src 2001:db8::7: invalid argument: Invalid source address
peer o: add route 2001:db8:105::/64 via 2001:db8::1 dev eth1: invalid argument: Gateway can not be a local address`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newPeers(t)
			h.ip(t, tt.there)
			elsewhere := func() string {
				all := slices.Collect(strings.Lines(h.show(t, "route show table all")))
				return strings.Join(slices.DeleteFunc(all, func(line string) bool {
					return !strings.Contains(line, "table 100") && !strings.Contains(line, "proto 142")
				}), "")
			}
			there := elsewhere()
			r := h.reconciler(t, Config{})
			said := func(err error) string {
				if err == nil {
					return ""
				}
				return err.Error()
			}
			for _, time := range []string{"first", "second"} {
				err := r.Apply(t.Context(), wants(t, tt.want))
				if diff := cmp.Diff(tt.err, said(err)); diff != "" {
					t.Errorf("the %s time, errors (-want +got):\n%s", time, diff)
				}
				if diff := cmp.Diff(tt.ours, h.routes(t, "141")); diff != "" {
					t.Errorf("the %s time, our routes (-want +got):\n%s", time, diff)
				}
				if diff := cmp.Diff(tt.foreign, h.routes(t, "static")); diff != "" {
					t.Errorf("the %s time, routes of others (-want +got):\n%s", time, diff)
				}
			}
			if diff := cmp.Diff(there, elsewhere()); diff != "" {
				t.Errorf("other protocols and tables (-want +got):\n%s", diff)
			}
			// What is as wanted is left alone.
			counts := r.Counts()
			_ = r.Apply(t.Context(), wants(t, tt.want))
			if after := r.Counts(); after.Written != counts.Written || after.Refused != counts.Refused {
				t.Errorf("applied again, it writes: %+v, before %+v", after, counts)
			}
			must(t, r.Apply(t.Context(), nil))
			if got := h.routes(t, "141"); got != "" {
				t.Errorf("left behind:\n%s", got)
			}
		})
	}
}

// A reconciler of another table, and one that shares table and protocol.
func TestScope(t *testing.T) {
	t.Parallel()
	h := newPeers(t)
	inside := func(p string) func(Route) bool {
		return func(r Route) bool { return prefix(p).Overlaps(r.Dst) }
	}
	one := h.reconciler(t, Config{Owns: inside("10.1.0.0/16")})
	two := h.reconciler(t, Config{Owns: inside("10.2.0.0/16")})
	far := h.reconciler(t, Config{Table: 1000, Protocol: 7})
	must(t, one.Apply(t.Context(), wants(t, "10.1.1.0/24 via 192.0.2.2 dev eth1")))
	must(t, two.Apply(t.Context(), wants(t, "10.2.1.0/24 via 192.0.2.2 dev eth1")))
	must(t, far.Apply(t.Context(), nil)) // there is no such table
	must(t, far.Apply(t.Context(), wants(t, "10.1.1.0/24 via 192.0.2.3 dev eth1\n2001:db8:100::/64 via 2001:db8::3 dev eth1")))
	must(t, one.Apply(t.Context(), wants(t, "10.1.2.0/24 via 192.0.2.2 dev eth1")))
	want := "10.1.2.0/24 via 192.0.2.2 dev eth1\n10.2.1.0/24 via 192.0.2.2 dev eth1\n"
	if diff := cmp.Diff(want, h.routes(t, "141")); diff != "" {
		t.Errorf("main table (-want +got):\n%s", diff)
	}
	got := h.show(t, "route show table 1000 proto 7") + h.show(t, "-6 route show table 1000 proto 7")
	if !strings.HasPrefix(got, "10.1.1.0/24 via 192.0.2.3 dev eth1") || strings.Count(got, "\n") != 2 {
		t.Errorf("table 1000:\n%s", got)
	}
}

// Routes to peers are of many scopes, or the kernel looks at all next hops for
// each; one that is written without a scope is in the way of ours all the same,
// and ours goes by a deletion without one.
func TestInterior(t *testing.T) {
	t.Parallel()
	h := newPeers(t)
	r := h.reconciler(t, Config{})
	h.ip(t, "route add 10.3.0.0/24 via 192.0.2.9 dev eth1")
	err := r.Apply(t.Context(), wants(t, `10.1.0.0/24 via 192.0.2.2 dev eth1
10.2.0.0/24 via 192.0.2.3 dev eth1
10.2.0.64/26 via 192.0.2.4 dev eth1
10.3.0.0/24 via 192.0.2.5 dev eth1
0.0.0.0/0 via 192.0.2.254 dev eth1
10.4.0.0/24 dev eth1`))
	if !errors.Is(err, ErrForeign) {
		t.Errorf("a foreign route in the way: %v", err)
	}
	want := `default via 192.0.2.254 dev eth1 scope 1
10.1.0.0/24 via 192.0.2.2 dev eth1 scope 1
10.2.0.0/24 via 192.0.2.3 dev eth1 scope 1
10.2.0.64/26 via 192.0.2.4 dev eth1 scope 2
10.4.0.0/24 dev eth1 scope link
`
	show := func() string {
		return strings.ReplaceAll(h.show(t, "route show proto 141"), " \n", "\n")
	}
	if diff := cmp.Diff(want, show()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	h.ip(t, "route del 10.2.0.64/26")
	if err := r.Apply(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if left := show(); left != "" {
		t.Errorf("left:\n%s", left)
	}
}
