package link

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

func TestParent(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	s.ip(t, "link property add dev eth1 altname a-name-longer-than-15")
	s.ip(t, "link add name low type veth peer name wire2")
	tests := []struct {
		name string
		is   error
		want string
	}{
		{"eth1", nil, ""},
		{"a-name-longer-than-15", nil, ""},
		{"eth9", ErrNotFound, `"eth9": no such interface`},
		{"low", ErrDown, `"low" is down; bring it up: ip link set low up`},
	}
	for _, tt := range tests {
		l, err := s.h.Parent(tt.name)
		wantError(t, err, tt.want)
		if !errors.Is(err, tt.is) || tt.is == nil && l.Name != "eth1" {
			t.Errorf("%s is %q, %v", tt.name, l.Name, err)
		}
	}
}

func TestDefaultRouteLink(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		routes []string
		want   string // "" for none
	}{
		{"none", nil, ""},
		{"other routes only", []string{"route add 198.51.100.0/24 dev eth1", "-6 route add 2001:db8:1::/48 dev eth1"}, ""},
		{"one", []string{"route add default via 192.0.2.254"}, "eth1"},
		{"on the link", []string{"route add default dev eth2"}, "eth2"},
		{"lowest metric last", []string{"route add default dev eth1 metric 200", "route add default dev eth2 metric 100"}, "eth2"},
		{"lowest metric first", []string{"route add default dev eth1 metric 100", "route add default dev eth2 metric 200"}, "eth1"},
		{"no metric is the lowest", []string{"route add default dev eth1 metric 1", "route add default dev eth2"}, "eth2"},
		{"IPv6 only", []string{"-6 route add default via 2001:db8::fe"}, "eth1"},
		{"IPv6, lowest metric", []string{"-6 route add default dev eth1 metric 2000", "-6 route add default dev eth2"}, "eth2"},
		{"IPv4 first", []string{"-6 route add default dev eth1 metric 1", "route add default dev eth2 metric 1000"}, "eth2"},
		{"multipath", []string{"route add default nexthop via 203.0.113.254 dev eth2 nexthop via 192.0.2.254 dev eth1"}, "eth2"},
		{"another table", []string{"route add default dev eth1 table 100"}, ""},
		// IPv6 hangs these on lo, and IPv4 on nothing.
		{"unreachable", []string{"route add unreachable default", "-6 route add unreachable default"}, ""},
		{"unreachable with a low metric", []string{"route add unreachable default metric 1", "route add default dev eth1 metric 50"}, "eth1"},
		{"nexthop object", []string{"nexthop add id 7 via 203.0.113.254 dev eth2", "route add default nhid 7"}, "eth2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, _ := newRouter(t)
			s.veth(t, "eth2", "wire2")
			s.ip(t, "addr add 203.0.113.1/24 dev eth2")
			s.ip(t, "link set lo up")
			for _, command := range tt.routes {
				s.ip(t, command)
			}
			got, err := s.h.DefaultRouteLink()
			if tt.want == "" {
				wantError(t, err, "no default route to take the interface of: no such interface")
				if !errors.Is(err, ErrNotFound) {
					t.Errorf("%v is not ErrNotFound", err)
				}
			} else if got != tt.want || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestHolder(t *testing.T) {
	t.Parallel()
	const unseen = "children of another kind (macvlan or ipvlan) in some container sit on it, or a bridge or bond holds it"
	tests := []struct {
		name    string
		prepare func(t *testing.T, s *space)
		want    string
	}{
		{"nothing", func(*testing.T, *space) {}, unseen},
		{
			"bridge", func(t *testing.T, s *space) {
				s.ip(t, "link add br0 type bridge")
				s.ip(t, "link set eth1 master br0")
			}, `it is a port of bridge "br0"; use "br0" as master instead`,
		},
		{
			"macvlan", func(t *testing.T, s *space) { s.ip(t, "link add child link eth1 type macvlan mode vepa") },
			`macvlan link "child" sits on it; macvlan and ipvlan cannot share a parent`,
		},
		{"child of another parent", func(t *testing.T, s *space) { s.ip(t, "link add child link wire type macvlan") }, unseen},
		{"the other end of its cable", func(t *testing.T, s *space) { s.ip(t, "link set wire up") }, unseen},
		{
			// Its parent has the same index, but elsewhere.
			"child of elsewhere", func(t *testing.T, s *space) {
				outer := newSpace(t)
				attrs := netlink.NewLinkAttrs()
				attrs.Name, attrs.Index = "eth1", s.link(t, "eth1").Index
				must(t, outer.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire"}))
				_, err := Macvlan{Mode: ModeBridge}.Create(outer.h, Target{Name: "child", NetnsFd: s.fd(), Parent: attrs.Index})
				must(t, err)
				if got := s.link(t, "child"); got.Parent != attrs.Index {
					t.Fatalf("child %+v sits on link %d", got, got.Parent)
				}
			}, unseen,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newHost(t)
			tt.prepare(t, s)
			if got := s.h.Holder(s.link(t, "eth1")); got != tt.want {
				t.Errorf("got\n%q, want\n%q", got, tt.want)
			}
		})
	}
}

// Root's own user namespace is no rootless one.
func TestInUserNamespace(t *testing.T) {
	t.Parallel()
	if inUserNamespace() {
		t.Error("this is taken for a rootless runtime")
	}
}

// Who is in the way in a container is told by name too, whichever came first.
func TestHolderElsewhere(t *testing.T) {
	t.Parallel()
	host, container := newHost(t), newSpace(t)
	eth1 := host.link(t, "eth1")
	_, err := Macvlan{Mode: ModeBridge}.Create(host.h, Target{Name: "eth0", NetnsFd: container.fd(), Parent: eth1.Index})
	must(t, err)
	want := fmt.Sprintf(`macvlan link "eth0" in %s sits on it; macvlan and ipvlan cannot share a parent`, container.live(t))
	if got := host.h.Holder(eth1); got != want {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
}

func TestHolderIpvlan(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "ipvlan")
	macvlan, ipvlan := Macvlan{Mode: ModeBridge}.Create, Ipvlan{ModeL2, FlagBridge}.Create
	tests := []struct {
		name, want    string
		first, second func(*Handle, Target) (int, error)
	}{
		{"macvlan on ipvlan's", `ipvlan link "eth0" in %s sits on it; macvlan and ipvlan cannot share a parent`, ipvlan, macvlan},
		{"ipvlan on macvlan's", `macvlan link "eth0" in %s sits on it; macvlan and ipvlan cannot share a parent`, macvlan, ipvlan},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host, container := newHost(t), newSpace(t)
			eth1 := host.link(t, "eth1")
			_, err := tt.first(host.h, Target{Name: "eth0", NetnsFd: container.fd(), Parent: eth1.Index})
			must(t, err)
			if _, err := tt.second(host.h, Target{Name: "eth7", NetnsFd: container.fd(), Parent: eth1.Index}); !errors.Is(err, ErrBusy) {
				t.Errorf("got %v, want %v", err, ErrBusy)
			}
			want := fmt.Sprintf(tt.want, container.live(t))
			if got := host.h.Holder(eth1); got != want {
				t.Errorf("got\n%q, want\n%q", got, want)
			}
		})
	}
}
