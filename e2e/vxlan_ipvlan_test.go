package e2e_test

import (
	"encoding/json"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// TestSegmentIpvlan: ipvlan links meet in a segment as macvlan links do, by the
// leg's MAC, in l2 and in l3.
func TestSegmentIpvlan(t *testing.T) {
	linktest.Need(t, "ipvlan")
	h := oneHost(t)
	before := hostLinks(t, h)
	for i, mode := range []string{"l2", "l3"} {
		conf := chain(t, "red", segment(5001+i, nil), keys{"type": "ipvlan", "mode": mode, "ipam": tenantRanges})
		a, b := attach(t, h, mode+"a", conf), attach(t, h, mode+"b", conf)
		meet(t, a.station, b.station)
		wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
		if leg := mustLink(t, h.Namespace, "lg500"+string(rune('1'+i))); a.mac != leg.MAC {
			t.Errorf("%s has MAC %s, the leg %s", mode, a.mac, leg.MAC)
		}
		a.del()
		b.del()
		wantNothing(t, h, before, a.Namespace, b.Namespace)
	}
}

// TestOverlayBehindIpvlan: what a layer 3 link sends leaves by its parent alone,
// whatever routes the host has through VXLAN, so the chain is refused.
func TestOverlayBehindIpvlan(t *testing.T) {
	linktest.Need(t, "ipvlan")
	h := oneHost(t)
	uplink(t, h, "pods", 1, 1430)
	for mode, text := range map[string]string{"l3": "ipvlan link in mode l3", "l3s": "ipvlan link in mode l3s", "l2": "ipvlan link"} {
		conf := chain(t, "pods", keys{"type": "ipvlan", "master": lab.Parent, "mode": mode,
			"ipam": json.RawMessage(`{"type": "underlay", "ranges": [[{"subnet": "10.5.1.0/24"}]]}`)}, overlay(nil))
		n, rt := container(t, h, "c"+mode)
		_, err := h.CNI(ours).Add(t.Context(), conf, rt)
		wantError(t, err, codeConfig, "mode: routed", text, "hostgw, bridge or ptp")
		wantOK(t, "DEL", h.CNI(ours).Del(t.Context(), conf, rt))
		wantNoLink(t, n)
		wantNothingHeld(t, h)
	}
}
