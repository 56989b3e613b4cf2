package network

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/pkg/agent/network/plan"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// TestGuardedPorts: as long as not all are known that send VXLAN to a port, it is
// open to all.
func TestGuardedPorts(t *testing.T) {
	t.Parallel()
	r := round{snapshot: &plan.Snapshot{}, plan: &plan.Plan{
		Overlays: []plan.Overlay{{Device: vxlan.Device{VNI: 1, Port: 8472}}}, Nodes: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
	}}
	for known, want := range map[bool]string{true: "[4789 8472]", false: "[4789]"} {
		task := &Task{conf: Config{Guard: func() ([]uint16, []netip.Addr, bool) { return []uint16{4789}, nil, known }}}
		if got := fmt.Sprint(task.ruleset(r).Ports); got != want {
			t.Errorf("known %v: ports %s, want %s", known, got, want)
		}
	}
	// A node of which no address is known may send to any port of a network.
	r.snapshot.Nodes = map[lease.Node]plan.Node{"a": {Why: "a newer version of underlay wrote it"}}
	task := &Task{conf: Config{Guard: func() ([]uint16, []netip.Addr, bool) { return []uint16{4789, 8472}, nil, true }}}
	if got := fmt.Sprint(task.ruleset(r).Ports); got != "[4789]" {
		t.Errorf("a node that cannot be read: ports %s", got)
	}
	r.snapshot.Nodes["a"] = plan.Node{Why: "as above", Addresses: r.plan.Nodes}
	if got := fmt.Sprint(task.ruleset(r).Ports); got != "[4789 8472]" {
		t.Errorf("a node that could be read before: ports %s", got)
	}
}
