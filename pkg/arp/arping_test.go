package arp

import (
	"errors"
	"net"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"github.com/j-keck/arping"
)

// TestConflictsWithArping has an ARP of other make talk to ours: its question
// shows who has the address it asks from, and its Ping hears nobody at ours.
func TestConflictsWithArping(t *testing.T) {
	here, there := siblings(t)
	here.up(t)
	there.up(t)
	as := addrs("192.0.2.10", "192.0.2.11")
	there.assign(t, as[0])
	p := here.open(t, as...)
	must(t, there.ns.Do(func(ns.NetNS) error {
		_, _, err := arping.PingOverIface(as[1].AsSlice(), net.Interface{Index: there.ifc.Index, Name: "eth0", HardwareAddr: there.ifc.MAC})
		if !errors.Is(err, arping.ErrTimeout) {
			t.Errorf("ping of an address that nobody has: %v", err)
		}
		return nil
	}))
	got, err := p.Conflicts(soon)
	must(t, err)
	if diff := cmp.Diff([]Conflict{{as[0], there.ifc.MAC}}, got, compareAddrs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
