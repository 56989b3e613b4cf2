package link

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// newSibling is a host with an address, and the sibling on its eth1.
func newSibling(t testing.TB) (s *space, sibling Link) {
	t.Helper()
	s = newHost(t)
	s.ip(t, "addr add 192.0.2.1/24 dev eth1")
	s.ip(t, "addr add 2001:db8::1/64 nodad dev eth1")
	sibling, err := s.h.EnsureSibling(s.link(t, "eth1"))
	must(t, err)
	return s, sibling
}

func TestEnsureSibling(t *testing.T) {
	t.Parallel()
	s, sibling := newSibling(t)
	parent := s.link(t, "eth1")
	name := SiblingName("eth1")
	wantSibling(t, s, name)
	if got := s.show(t, name); got.AddrGen != "none" {
		t.Errorf("it makes addresses of its own: %q", got.AddrGen)
	}
	if diff := cmp.Diff([]string{}, s.addresses(t, name)); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(s.link(t, name), sibling, equate); diff != "" {
		t.Errorf("what is returned (-kernel +got):\n%s", diff)
	}

	again, err := s.h.EnsureSibling(parent)
	must(t, err)
	if diff := cmp.Diff(sibling, again, equate); diff != "" {
		t.Errorf("second time (-first +second):\n%s", diff)
	}

	s.ip(t, "link set "+name+" down")
	_, err = s.h.EnsureSibling(parent)
	must(t, err)
	wantSibling(t, s, name)

	for range 2 { // none is success
		must(t, s.h.DeleteSibling("eth1"))
		if _, err := s.h.ByName(name); !errors.Is(err, ErrNotFound) {
			t.Errorf("after delete: %v", err)
		}
	}
}

func wantSibling(t *testing.T, s *space, name string) {
	t.Helper()
	got := s.show(t, name)
	if !got.up() || !slices.Contains(got.Flags, "NOARP") || got.Alias != "underlay" || got.Info.Kind != "macvlan" {
		t.Errorf("sibling %+v", got)
	}
	if l := s.link(t, name); l.Mode != ModeBridge || l.Parent != s.link(t, "eth1").Index {
		t.Errorf("sibling %+v", l)
	}
}

// A macvlan of that name without alias is of an ADD that died: it is finished,
// and it is removed.
func TestSiblingHalfMade(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	name := SiblingName("eth1")
	half := func() { s.ip(t, "link add "+name+" link eth1 type macvlan mode bridge") }
	half()
	_, err := s.h.EnsureSibling(s.link(t, "eth1"))
	must(t, err)
	wantSibling(t, s, name)
	must(t, s.h.DeleteSibling("eth1"))
	half()
	must(t, s.h.DeleteSibling("eth1"))
	if _, err := s.h.ByName(name); !errors.Is(err, ErrNotFound) {
		t.Errorf("after delete: %v", err)
	}
}

// Some hosts have no IPv6; a link whose MTU is below 1280 has none either.
func TestSiblingWithoutIPv6(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"mtu", "sysctl"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			s := newHost(t)
			if command == "mtu" {
				s.ip(t, "link set eth1 mtu 1000")
			} else {
				s.sysctl(t, "net/ipv6/conf/default/disable_ipv6", "1")
			}
			_, err := s.h.EnsureSibling(s.link(t, "eth1"))
			must(t, err)
			wantSibling(t, s, SiblingName("eth1"))
		})
	}
}

func TestSiblingInTheWay(t *testing.T) {
	t.Parallel()
	name := SiblingName("eth1")
	const taken = `host access: interface "ulh980816f3": an interface of that name exists, and it is not a child of "eth1"`
	tests := []struct {
		name    string
		prepare []string
		is      error
		want    string
	}{
		{"another kind", []string{"link add " + name + " type bridge"}, ErrExists, taken},
		{"child of another", []string{"link add " + name + " link wire type macvlan mode bridge", "link set " + name + " alias foreign"}, ErrExists, taken},
		{
			"passthru sits there", []string{"link add child link eth1 type macvlan mode passthru"}, ErrPassthru,
			`host access: create macvlan "ulh980816f3": a passthru link must be the only child of its parent`,
		},
		{
			"parent is a bridge port", []string{"link add br0 type bridge", "link set eth1 master br0"}, ErrBusy,
			`host access: create macvlan "ulh980816f3": parent is busy`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newHost(t)
			for _, command := range tt.prepare {
				s.ip(t, command)
			}
			before := s.showAll(t, "")
			_, err := s.h.EnsureSibling(s.link(t, "eth1"))
			wantError(t, err, tt.want)
			if !errors.Is(err, tt.is) {
				t.Errorf("%v is not %v", err, tt.is)
			}
			must(t, s.h.DeleteSibling("eth1")) // what is foreign stays, as it was
			if diff := cmp.Diff(before, s.showAll(t, "")); diff != "" {
				t.Errorf("links (-before +after):\n%s", diff)
			}
		})
	}
}

func TestReach(t *testing.T) {
	t.Parallel()
	s, sibling := newSibling(t)
	name := sibling.Name
	state := func() []string {
		neighbours := s.lines(t, "neigh show dev "+name+" nud permanent")
		slices.Sort(neighbours)
		return slices.Concat(s.lines(t, "-4 route show dev "+name), s.lines(t, "-6 route show dev "+name), neighbours)
	}
	empty := state()
	c4, c6 := netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")
	h4, h6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	want := slices.Concat(
		[]string{"192.0.2.10 scope link src 192.0.2.1"},
		[]string{"2001:db8::10 src 2001:db8::1 metric 1024 pref medium"},
		[]string{"192.0.2.10 lladdr 02:00:00:00:00:02 PERMANENT", "2001:db8::10 lladdr 02:00:00:00:00:02 PERMANENT"},
	)
	for _, last := range []byte{1, 2, 2} { // the container came back with another MAC
		must(t, s.h.Reach(sibling, c4, h4, mac(last)))
		must(t, s.h.Reach(sibling, c6, h6, mac(last)))
	}
	if diff := cmp.Diff(want, state()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := s.lines(t, "route get 192.0.2.10"); len(got) == 0 || got[0] != "192.0.2.10 dev "+name+" src 192.0.2.1 uid 0" {
		t.Errorf("the way to the container: %q", got)
	}
	for range 2 { // nothing left is success
		must(t, s.h.Unreach(sibling, c4))
		must(t, s.h.Unreach(sibling, c6))
		if diff := cmp.Diff(empty, state()); diff != "" {
			t.Errorf("after Unreach (-want +got):\n%s", diff)
		}
	}

	// An address that the host has not is no source.
	wantError(t, s.h.Reach(sibling, c4, netip.MustParseAddr("192.0.2.9"), mac(1)), "host access: replace route 192.0.2.10/32: invalid argument: Invalid prefsrc address")
	must(t, s.h.Delete(sibling.Index))
	must(t, s.h.Unreach(sibling, c4))
}
