package e2e_test

import (
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// A sub-interface has one set of users, whichever way they spell it.

// A VLAN on one that goes with its last user would go with it.
func TestVLANOnOneOnDemand(t *testing.T) {
	linktest.Need(t, "vlan")
	h := oneHost(t)
	c1 := attach(t, h, "c1", lan(t, h, keys{"vlan": 100}))
	denied(t, h, "c2", lan(t, h, keys{"master": "eth1.100.200"}), codeConfig, "200", `"eth1.100"`, "made on demand")
	denied(t, h, "c3", lan(t, h, keys{"master": "eth1.100", "vlan": 200}), codeConfig, "200", `"eth1.100"`, "made on demand")
	c1.del()
}

// One that was there before is a parent like any other by either spelling: the
// access of one container from the host does not end with that of another.
func TestVLANOfSomebodyElse(t *testing.T) {
	linktest.Need(t, "vlan")
	h := oneHost(t)
	ip(t, h.Namespace, "link add link eth1 name eth1.300 type vlan id 300", "link set eth1.300 up",
		"addr add 192.0.2.9/24 dev eth1.300", "addr add 2001:db8::9/64 dev eth1.300 nodad")
	ip(t, h.Namespace, "addr flush dev "+lab.Parent)
	onIt := stationOn(t, h, "eth1.300")
	c1 := attach(t, h, "c1", lan(t, h, keys{"vlan": 300, "hostAccess": true}))
	c2 := attach(t, h, "c2", lan(t, h, keys{"master": "eth1.300", "hostAccess": true}))
	meet(t, c1.station, onIt)
	meet(t, c2.station, onIt)
	c2.del()
	meet(t, c1.station, onIt)
	c1.del()
	mustLink(t, h.Namespace, "eth1.300")
}

// What a repeated ADD no longer shares goes, and what it still does stays.
func TestVLANChanges(t *testing.T) {
	linktest.Need(t, "vlan")
	h := oneHost(t)
	c1 := attach(t, h, "c1", lan(t, h, keys{"vlan": 11, "hostAccess": true}))
	again := func(more keys, has, hasNot string) {
		t.Helper()
		c1.conf = lan(t, h, more)
		c1.add()
		for name, want := range map[string]bool{has: true, hasNot: false} {
			if _, ok, err := h.Link(t.Context(), name); name != "" && (ok != want || err != nil) {
				t.Errorf("%s is there: %v, %v; want %v", name, ok, err, want)
			}
		}
	}
	again(keys{"vlan": 12}, "eth1.12", "eth1.11")
	again(keys{"vlan": 12, "hostAccess": true}, "eth1.12", "")
	again(keys{"vlan": 12}, "eth1.12", "")
	links, err := h.Links(t.Context())
	if err != nil || len(links) != 3 { // lo, eth1, eth1.12
		t.Errorf("links %v, %v: the sibling has not gone", links, err)
	}
	again(nil, lab.Parent, "eth1.12")
	c1.del()
	wantNothingHeld(t, h)
}
