package e2e_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// Within one VLAN everyone meets, on one host and on two; across two, or
// between one and the untagged network, nobody does.
func TestVLANReach(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			at := func(h *lab.Host, name string, vlan int) station {
				return attach(t, h, name, lan(t, h, keys{"type": kind, "vlan": vlan})).station
			}
			red1, red2, red3 := at(b.h1, "red1", 100), at(b.h1, "red2", 100), at(b.h2, "red3", 100)
			blue1, blue3 := at(b.h1, "blue1", 200), at(b.h2, "blue3", 200)
			plain1, plain3 := at(b.h1, "plain1", 0), at(b.h2, "plain3", 0)

			meet(t, red1, red3)
			meet(t, red1, red2)
			meet(t, red2, red3)
			meet(t, blue1, blue3)
			meet(t, plain1, plain3)
			quiet(t, [][2]station{
				{red1, blue1}, {red1, blue3}, {red1, plain1}, {red1, plain3}, {red1, hostStation(t, b.h2)},
				{blue1, red1}, {blue1, red3}, {blue1, plain3}, {plain1, red1}, {plain1, red3}, {hostStation(t, b.h2), red1},
			}...)
			if id := vlanOf(t, b.h1, on100); id != "100" {
				t.Errorf("VLAN of %s is %q", on100, id)
			}
		})
	}
}

// In l3 it is the same between siblings; the other host is asked through an
// address that each host has on the sub-interface, which is there before.
func TestVLANReachL3(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	b := newBed(t)
	for h, n := range map[*lab.Host]string{b.h1: "1", b.h2: "2"} {
		ip(t, h.Namespace, "link add link eth1 name "+on100+" up type vlan id 100",
			"addr add 10.0.0."+n+"/24 dev "+on100, "addr add fd00::"+n+"/64 dev "+on100+" nodad")
	}
	leadsTo(t, b.h2, b.h1, "via 10.0.0.1", "via fd00::1")
	leadsTo(t, b.h1, b.h2, "via 10.0.0.2", "via fd00::2")
	at := func(h *lab.Host, name string, vlan int) station {
		return attach(t, h, name, ipvlan(t, h, "l3", "bridge", keys{"vlan": vlan})).station
	}
	red1, red2, red3 := at(b.h1, "red1", 100), at(b.h1, "red2", 100), at(b.h2, "red3", 100)
	blue1, blue2 := at(b.h1, "blue1", 200), at(b.h1, "blue2", 200)
	meet(t, red1, red2)
	meet(t, red1, red3)
	meet(t, blue1, blue2)
	quiet(t, [2]station{red1, blue1}, [2]station{blue1, red1})
}

// One VLAN id on two parents is two networks, each with a sub-interface and a
// life of its own; also where names are so long that those of the
// sub-interfaces have to be made up.
func TestVLANTwoParents(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	tests := []struct{ name, kind, second, carrier, alias string }{
		{"short names", "macvlan", "eth2", "eth2.100", ""},
		{"long name", "ipvlan", "enp101s0f0np0v1", "ul92d1a6.100", "enp101s0f0np0v1.100"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			secondWire(t, b, test.second)
			at := func(h *lab.Host, name, parent string) *attachment {
				return attach(t, h, name, lan(t, h, keys{"type": test.kind, "master": parent, "vlan": 100}))
			}
			first1, first2 := at(b.h1, "first1", lab.Parent), at(b.h2, "first2", lab.Parent)
			second1, second2 := at(b.h1, "second1", test.second), at(b.h2, "second2", test.second)
			meet(t, first1.station, first2.station)
			meet(t, second1.station, second2.station)
			quiet(t, [][2]station{{first1.station, second1.station}, {first1.station, second2.station}, {second1.station, first2.station}}...)
			there(t, b.h1, on100, test.carrier)
			wantOK(t, "CHECK", second1.cni.Check(t.Context(), second1.conf, second1.rt))

			first1.del()
			there(t, b.h1, test.carrier)
			meet(t, second1.station, second2.station)
			if test.alias != "" {
				// Both names lead to it.
				byName := attach(t, b.h1, "byname", lan(t, b.h1, keys{"type": test.kind, "master": test.alias}))
				meet(t, byName.station, second2.station)
				second1.del()
				there(t, b.h1, test.carrier)
				mustDo(t, b.h1.Namespace, "ip", "link", "show", "dev", test.alias)
				reaches(t, byName.station, second2.station)
				byName.del()
			} else {
				second1.del()
			}
			there(t, b.h1)
		})
	}
}

// Two hosts whose ledgers know nothing of each other find out on the VLAN that
// they give out the same addresses.
func TestVLANSameRanges(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			// Answers take their time in a guest.
			conf := lan(t, b.h1, keys{"type": kind, "vlan": 100, "conflictDetection": "thorough"})
			c1, c2 := attach(t, b.h1, "c1", conf), attach(t, b.h2, "c2", conf)
			got := append(texts(c1.addrs), texts(c2.addrs)...)
			if diff := cmp.Diff([]string{"192.0.2.10", "2001:db8::10", "192.0.2.11", "2001:db8::11"}, got); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
			meet(t, c1.station, c2.station)
		})
	}
}
