package link

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// childKind is what containers, and so the sibling, may be.
type childKind struct {
	kind, mode, flag string
	create           func(*Handle, Target) (int, error)
}

var (
	bridged = childKind{"macvlan", ModeBridge, "", Macvlan{Mode: ModeBridge}.Create}
	ipvlans = []childKind{
		{"ipvlan", ModeL2, FlagBridge, Ipvlan{ModeL2, FlagBridge}.Create},
		{"ipvlan", ModeL3, FlagBridge, Ipvlan{ModeL3, FlagBridge}.Create},
		{"ipvlan", ModeL3S, FlagBridge, Ipvlan{ModeL3S, FlagBridge}.Create},
	}
)

func (k childKind) ensure(s *space) (Link, error) {
	parent, err := s.h.ByName("eth1")
	if err != nil {
		return Link{}, err
	}
	return s.h.EnsureSibling(parent, k.kind, k.create)
}

// newSibling is a host with an address, and the sibling on its eth1.
func newSibling(t testing.TB, k childKind) (s *space, sibling Link) {
	t.Helper()
	s = newHost(t)
	s.ip(t, "addr add 192.0.2.1/24 dev eth1")
	s.ip(t, "addr add 2001:db8::1/64 nodad dev eth1")
	sibling, err := k.ensure(s)
	must(t, err)
	return s, sibling
}

func TestEnsureSibling(t *testing.T) {
	t.Parallel()
	bridged.testEnsure(t)
}

func TestEnsureSiblingIpvlan(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "ipvlan")
	for _, k := range ipvlans {
		t.Run(k.mode, func(t *testing.T) {
			t.Parallel()
			k.testEnsure(t)
		})
	}
}

func (k childKind) testEnsure(t *testing.T) {
	t.Helper()
	s, sibling := newSibling(t, k)
	name := SiblingName("eth1")
	k.want(t, s, name)
	if got := s.show(t, name); got.AddrGen != "none" {
		t.Errorf("it makes addresses of its own: %q", got.AddrGen)
	}
	if diff := cmp.Diff([]string{}, s.addresses(t, name)); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(s.link(t, name), sibling, equate); diff != "" {
		t.Errorf("what is returned (-kernel +got):\n%s", diff)
	}

	again, err := k.ensure(s)
	must(t, err)
	if diff := cmp.Diff(sibling, again, equate); diff != "" {
		t.Errorf("second time (-first +second):\n%s", diff)
	}

	// The last one switches ARP on in mode l2.
	for _, spoil := range [][]string{{"down"}, {"arp on"}, {"down", "up"}} {
		for _, change := range spoil {
			s.ip(t, "link set "+name+" "+change)
		}
		again, err = k.ensure(s)
		must(t, err)
		k.want(t, s, name)
		if diff := cmp.Diff(s.link(t, name), again, equate); diff != "" {
			t.Errorf("what is returned after %q (-kernel +got):\n%s", spoil, diff)
		}
	}

	for range 2 { // none is success
		must(t, s.h.DeleteSibling("eth1"))
		if _, err := s.h.ByName(name); !errors.Is(err, ErrNotFound) {
			t.Errorf("after delete: %v", err)
		}
	}
}

func (k childKind) want(t *testing.T, s *space, name string) {
	t.Helper()
	got := s.show(t, name)
	if !got.up() || !slices.Contains(got.Flags, "NOARP") || got.Alias != "underlay" || got.Info.Kind != k.kind {
		t.Errorf("sibling %+v", got)
	}
	if l := s.link(t, name); l.Mode != k.mode || l.Flag != k.flag || l.Parent != s.link(t, "eth1").Index {
		t.Errorf("sibling %+v", l)
	}
}

func TestSiblingHalfMade(t *testing.T) {
	t.Parallel()
	bridged.testHalfMade(t)
}

func TestSiblingHalfMadeIpvlan(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "ipvlan")
	ipvlans[0].testHalfMade(t)
}

// A child of that name without alias is of an ADD that died: it is finished,
// and it is removed.
func (k childKind) testHalfMade(t *testing.T) {
	t.Helper()
	s := newHost(t)
	name := SiblingName("eth1")
	half := func() { s.ip(t, "link add "+name+" link eth1 type "+k.kind+" mode "+k.mode) }
	half()
	_, err := k.ensure(s)
	must(t, err)
	k.want(t, s, name)
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
			_, err := bridged.ensure(s)
			must(t, err)
			bridged.want(t, s, SiblingName("eth1"))
		})
	}
}

func TestSiblingInTheWay(t *testing.T) {
	t.Parallel()
	name := SiblingName("eth1")
	const taken = `host access: interface "ulh980816f3": an interface of that name exists, and it is no macvlan link on "eth1"`
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
			_, err := bridged.ensure(s)
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
	s, sibling := newSibling(t, bridged)
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
