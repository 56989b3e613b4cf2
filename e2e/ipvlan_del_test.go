package e2e_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// DEL succeeds whatever is gone by then, and leaves no link, no address and
// nobody whose mode the parent would still be bound to.
func TestIpvlanDel(t *testing.T) {
	linktest.Need(t, "ipvlan")
	t.Parallel()
	reconfigured := func(conf keys) func(*testing.T, *lab.Host, *attachment) {
		return func(t *testing.T, h *lab.Host, a *attachment) {
			a.forget(h)
			a.conf = lan(t, h, merged(keys{"type": "ipvlan"}, conf))
		}
	}
	tests := []struct {
		name  string
		conf  keys
		spoil func(t *testing.T, h *lab.Host, a *attachment)
		gone  bool // the container's namespace
	}{
		// The reference fails here.
		{name: "no master, no default route, no prevResult", spoil: reconfigured(keys{"master": ""})},
		{name: "netns gone", conf: keys{"mode": "l3s"}, gone: true, spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			mustDo(t, h.Namespace, "ip", "netns", "delete", a.ID)
		}},
		{name: "netns not told, no prevResult", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			a.forget(h)
			a.rt.NetNS = ""
		}},
		{name: "netns is no namespace", conf: keys{"flag": "vepa"}, spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			a.rt.NetNS = filepath.Join(h.DataDir, "ledger.lock")
		}},
		{name: "link gone", spoil: func(t *testing.T, h *lab.Host, a *attachment) { ip(t, a.Namespace, "link delete eth0") }},
		{name: "l3 without ipam by now", conf: keys{"mode": "l3"}, spoil: reconfigured(keys{"mode": "l3", "ipam": nil})},
		{name: "no ipam", conf: keys{"ipam": nil}, spoil: reconfigured(keys{"ipam": nil})},
		{name: "all invalid by now", spoil: reconfigured(keys{"mode": "l4", "flag": "x", "mac": "x", "mtu": 99999, "vlan": -1})},
		{name: "host-local", conf: keys{"mode": "l3", "ipam": hostLocal}, spoil: func(*testing.T, *lab.Host, *attachment) {}},
		{name: "parent gone", conf: keys{"mode": "l3"}, spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			ip(t, h.Namespace, "link delete eth1")
		}},
	}
	h := oneHost(t)
	for i, test := range tests { // the last one takes the parent away
		t.Run(test.name, func(t *testing.T) {
			a, _ := come(t, h, fmt.Sprintf("c%d", i), lan(t, h, merged(keys{"type": "ipvlan"}, test.conf)), ours, reference)
			if n := len(readBooks(t, h).Attachments); n != 1 {
				t.Errorf("%d attachments are on record after ADD, want 1", n)
			}
			test.spoil(t, h, a)
			for _, nth := range []string{"first", "second"} {
				wantOK(t, nth+" DEL", a.cni.Del(t.Context(), a.conf, a.rt))
				if !test.gone {
					wantNoLink(t, a.Namespace)
				}
				wantNothingHeld(t, h)
				wantFiles(t, h, 0)
			}
		})
	}
}

// GC takes the links and records of ipvlan's attachments alone, and of its own
// network; also those without addresses, which bind the parent's mode.
func TestIpvlanGC(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	h := oneHost(t)
	conf := keys{"type": "ipvlan", "mode": "l2", "flag": "private"}
	stays := attach(t, h, "c1", lan(t, h, conf))
	goes := attach(t, h, "c2", lan(t, h, conf))
	bare, _ := come(t, h, "c3", lan(t, h, merged(conf, keys{"ipam": nil})))
	other, _ := come(t, h, "c4", lan(t, h, merged(conf, keys{"name": "other", "ipam": nil})))
	gc := func(valid ...*attachment) {
		t.Helper()
		list := []types.GCAttachment{}
		for _, a := range valid {
			list = append(list, types.GCAttachment{ContainerID: a.ID, IfName: "eth0"})
		}
		_, err := call{verb: "GC", plugin: "ipvlan"}.run(t, h, placed(t, h, merged(conf, keys{"cni.dev/valid-attachments": list})))
		wantOK(t, "GC", err)
	}
	gc(stays)
	wantNoLink(t, goes.Namespace)
	wantNoLink(t, bare.Namespace)
	wantOK(t, "CHECK of the valid", stays.cni.Check(t.Context(), stays.conf, stays.rt))
	mustLink(t, other.Namespace, "eth0")
	if held := readBooks(t, h).held(); len(held) != 1 || len(held[stays.ID]) != 2 {
		t.Errorf("held: %v, want those of %s alone", held, stays.ID)
	}
	gc()
	wantNoLink(t, stays.Namespace)
	// The other network's still binds the parent.
	denied(t, h, "c5", lan(t, h, merged(conf, keys{"mode": "l3"})), codeParent, other.ID)
	wantOK(t, "DEL", other.cni.Del(t.Context(), other.conf, other.rt))
	attach(t, h, "c6", lan(t, h, merged(conf, keys{"mode": "l3"})))
}

// STATUS says why an ADD would fail.
func TestIpvlanStatus(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	h := oneHost(t)
	cni := h.CNI(ours)
	wantOK(t, "STATUS", cni.Status(t.Context(), ipvlan(t, h, "l3s", "private", nil)))
	wantOK(t, "STATUS with a VLAN", cni.Status(t.Context(), ipvlan(t, h, "l3s", "private", keys{"vlan": 100})))
	there(t, h) // it makes nothing
	wantError(t, cni.Status(t.Context(), ipvlan(t, h, "l2", "bridge", keys{"master": "nosuch0"})), codeStatus, `"nosuch0"`)
	wantError(t, cni.Status(t.Context(), ipvlan(t, h, "l2", "bridge", keys{"master": "nosuch0.100"})), codeStatus, `"nosuch0"`)
	ip(t, h.Namespace, "link set eth1 down")
	wantError(t, cni.Status(t.Context(), ipvlan(t, h, "l2", "bridge", nil)), codeStatus, `"eth1"`, "down")
}
