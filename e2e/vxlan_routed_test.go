package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// overlay is vxlan's part of a chain, behind who makes the interface.
func overlay(more keys) keys {
	return merged(keys{"type": "vxlan", "mode": "routed", "network": "pods"}, more)
}

// onOverlay is a chain of hostgw, without an agent, and vxlan.
func onOverlay(t *testing.T, h *lab.Host, hostgw, vxlan keys) string {
	t.Helper()
	var first keys
	if err := json.Unmarshal([]byte(pods(t, h, merged(keys{"peers": nil}, hostgw))), &first); err != nil {
		t.Fatal(err)
	}
	return chain(t, "pods", first, overlay(vxlan))
}

// TestOverlayMTU: both ends of the pair, and routes that have an MTU of their own,
// come down to what VXLAN leaves, whoever has made them, and nothing goes up.
func TestOverlayMTU(t *testing.T) {
	t.Parallel()
	foreign := func(kind string, more keys) func(*testing.T, *lab.Host) string {
		return func(t *testing.T, _ *lab.Host) string {
			ipam := json.RawMessage(`{"type": "host-local", "dataDir": "` + t.TempDir() + `",
				"ranges": [[{"subnet": "10.9.1.0/24"}], [{"subnet": "fd09:0:0:1::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}`)
			return chain(t, "pods", merged(keys{"type": kind, "ipam": ipam}, more), overlay(nil))
		}
	}
	after := func(hostgw, vxlan keys) func(*testing.T, *lab.Host) string {
		return func(t *testing.T, h *lab.Host) string { return onOverlay(t, h, hostgw, vxlan) }
	}
	routes := json.RawMessage(`{"type": "underlay", "ranges": [[{"subnet": "10.5.1.0/24"}], [{"subnet": "fd05:0:0:1::/64"}]],
		"routes": [{"dst": "203.0.113.0/24", "mtu": 1490}, {"dst": "198.51.100.0/24", "mtu": 1300}]}`)
	tests := []struct {
		name string
		conf func(*testing.T, *lab.Host) string
		mtu  int
	}{
		{"hostgw", after(nil, nil), 1430},
		{"hostgw on a bridge", after(keys{"bridge": "ul0"}, nil), 1430},
		{"hostgw with a larger MTU", after(keys{"mtu": 1480}, nil), 1430},
		{"hostgw with a larger MTU, results without", func(t *testing.T, h *lab.Host) string {
			return strings.Replace(onOverlay(t, h, keys{"mtu": 1480}, nil), `{"cniVersion":"1.1.0"`, `{"cniVersion":"1.0.0"`, 1)
		}, 1430},
		{"hostgw with a smaller MTU", after(keys{"mtu": 1400}, nil), 1400},
		{"MTU of the configuration", after(nil, keys{"mtu": 1390}), 1390},
		{"routes with an MTU", after(keys{"ipam": routes}, nil), 1430},
		{"bridge", foreign("bridge", keys{"bridge": "cni0", "isGateway": true}), 1430},
		{"ptp", foreign("ptp", nil), 1430},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			uplink(t, h, "pods", 1, 1430)
			a := &attachment{t: t, cni: h.CNI(ours, reference), conf: test.conf(t, h)}
			a.Namespace, a.rt = container(t, h, "c1")
			res, err := a.cni.Add(t.Context(), a.conf, a.rt)
			if err != nil {
				t.Fatal(err)
			}
			if mtu := mustLink(t, a.Namespace, "eth0").MTU; mtu != test.mtu {
				t.Errorf("MTU of the container's end is %d, want %d", mtu, test.mtu)
			}
			ends := 0
			for _, i := range res.Interfaces {
				switch {
				case i.Sandbox != "":
					ends++
					if i.Mtu != test.mtu && i.Mtu != 0 {
						t.Errorf("result: %+v", i)
					}
				case mustLink(t, h.Namespace, i.Name).Kind == "veth":
					ends++
					if is := mustLink(t, h.Namespace, i.Name).MTU; is != test.mtu || i.Mtu != 0 && i.Mtu != is {
						t.Errorf("the host's end has MTU %d, result: %+v", is, i)
					}
				}
			}
			if ends != 2 {
				t.Errorf("result has %d ends: %+v", ends, res.Interfaces)
			}
			for _, r := range res.Routes {
				if r.MTU > test.mtu {
					t.Errorf("result: route %s has MTU %d", r.Dst.String(), r.MTU)
				}
				if r.MTU != 0 {
					if is := mustDo(t, a.Namespace, "ip", "route", "show", r.Dst.String()); !strings.Contains(is, "mtu "+strconv.Itoa(r.MTU)) || strings.Count(is, "\n") != 1 {
						t.Errorf("routes to %s, with MTU %d: %q", r.Dst.String(), r.MTU, is)
					}
				}
			}
			wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
			wantRecord(t, h, a.ID, "pods")
			if _, err := a.cni.Add(t.Context(), a.conf, a.rt); err != nil && !strings.Contains(test.conf(t, h), "host-local") {
				t.Errorf("ADD again: %v", err)
			}
			mustDo(t, a.Namespace, "ip", "link", "set", "eth0", "mtu", "1480")
			wantError(t, a.cni.Check(t.Context(), a.conf, a.rt), codeCheck, "MTU 1480")
			a.del()
			wantNothingHeld(t, h)
		})
	}
}

// wantRecord: the ledger has the container as one of the network, by the chain's
// own record.
func wantRecord(t *testing.T, h *lab.Host, id, network string) {
	t.Helper()
	for _, a := range readBooks(t, h).Attachments {
		if a.Attachment.Network == "pods/vxlan" && a.Attachment.ContainerID == id && a.Uses.Network == network {
			return
		}
	}
	t.Errorf("%s is not on record: %+v", id, readBooks(t, h).Attachments)
}

// TestOverlayRefused: what cannot work is refused, names what is to be changed,
// and leaves nothing.
func TestOverlayRefused(t *testing.T) {
	t.Parallel()
	macvlan := func(t *testing.T, h *lab.Host) string {
		return chain(t, "pods", keys{"type": "macvlan", "master": lab.Parent, "ipam": tenantRanges}, overlay(nil))
	}
	with := func(more keys) func(*testing.T, *lab.Host) string {
		return func(t *testing.T, h *lab.Host) string { return onOverlay(t, h, nil, more) }
	}
	tests := []struct {
		name   string
		conf   func(*testing.T, *lab.Host) string
		device bool
		mtu    int
		code   uint
		texts  []string
	}{
		{name: "no agent has made the device", conf: with(nil), code: codeTryAgain, texts: []string{"network:", `"pods"`, "underlayd"}},
		{name: "of another network", conf: with(keys{"network": "others"}), device: true, code: codeTryAgain, texts: []string{`"others"`, "underlayd"}},
		{name: "another VNI", conf: with(keys{"vni": 7}), device: true, code: codeConfig, texts: []string{"vni: 7", `"pods" has 1`}},
		{name: "another port", conf: with(keys{"port": 4789}), device: true, code: codeConfig, texts: []string{"port: 4789", "8472"}},
		{name: "an MTU that VXLAN does not leave", conf: with(keys{"mtu": 1440}), device: true, code: codeConfig, texts: []string{"mtu: 1440", "1430"}},
		{name: "too little for IPv6", conf: with(nil), device: true, mtu: 1270, code: codeConfig, texts: []string{"mtu: 1270", "1280"}},
		{name: "behind macvlan", conf: macvlan, device: true, code: codeConfig, texts: []string{"mode: routed", "macvlan", "hostgw, bridge or ptp"}},
		{name: "alone", conf: func(t *testing.T, _ *lab.Host) string { return chain(t, "pods", overlay(nil)) }, device: true, code: codeConfig, texts: []string{"prevResult: is missing", "hostgw"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			if test.device {
				mtu := test.mtu
				if mtu == 0 {
					mtu = 1430
				}
				uplink(t, h, "pods", 1, mtu)
			}
			n, rt := container(t, h, "c1")
			conf := test.conf(t, h)
			cni := h.CNI(ours)
			_, err := cni.Add(t.Context(), conf, rt)
			wantError(t, err, test.code, test.texts...)
			for _, a := range readBooks(t, h).Attachments {
				if strings.HasSuffix(a.Attachment.Network, "/vxlan") {
					t.Errorf("left on record: %+v", a)
				}
			}
			wantOK(t, "DEL", cni.Del(t.Context(), conf, rt))
			wantNoLink(t, n)
			wantNothingHeld(t, h)
		})
	}
}

// TestOverlayLife: STATUS wants the device, GC takes records that the runtime does
// not know.
func TestOverlayLife(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	conf := onOverlay(t, h, nil, nil)
	wantError(t, h.CNI(ours).Status(t.Context(), conf), codeStatus, `"pods"`, "underlayd")
	uplink(t, h, "pods", 1, 1430)
	wantOK(t, "STATUS", h.CNI(ours).Status(t.Context(), conf))
	a, b := attach(t, h, "c1", conf), attach(t, h, "c2", conf)
	gc, err := json.Marshal(overlay(keys{"cniVersion": "1.1.0", "name": "pods", "dataDir": h.DataDir, "runDir": h.RunDir,
		"cni.dev/valid-attachments": []types.GCAttachment{{ContainerID: b.ID, IfName: "eth0"}}}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = call{verb: "GC", plugin: "vxlan"}.run(t, h, string(gc))
	wantOK(t, "GC", err)
	wantRecord(t, h, b.ID, "pods")
	wantError(t, a.cni.Check(t.Context(), a.conf, a.rt), codeCheck, `network "pods"`)
	a.del()
	mustDo(t, h.Namespace, "ip", "link", "delete", "vx1")
	b.del()
	wantNothingHeld(t, h)
}

// TestSampleObjects loads the pools and networks of the samples.
func TestSampleObjects(t *testing.T) {
	root, err := binaries.Root()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "conf", "*", "*.json"))
	if err != nil || len(files) < 4 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(filepath.Base(path), "network") {
			_, err = record.DecodeNetwork(data)
		} else {
			_, err = record.LoadPool(data)
		}
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}
