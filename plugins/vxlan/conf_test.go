package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/cni"
)

func TestParse(t *testing.T) {
	t.Parallel()
	in := func(mode, more string) string {
		text := `{"cniVersion":"1.1.0","name":"n","type":"vxlan","mode":"` + mode + `"`
		if more != "" {
			text += "," + more
		}
		return text + "}"
	}
	segment := func(more string) string { return in("segment", `"vni":5001`+more) }
	tests := []struct{ name, conf, want string }{
		{"segment", segment(""), ""},
		{"segment with all", segment(`,"master":"eth1","port":4789,"mtu":1400,"dataDir":"/d","runDir":"/r"`), ""},
		{"highest VNI", in("segment", `"vni":16777215`), ""},
		{"routed", in("routed", ""), ""},
		{"routed with all", in("routed", `"network":"pods","vni":1,"port":8472,"mtu":1400`), ""},
		{"ipam that says nothing", in("routed", `"ipam":{}`), ""},
		{"no mode", `{"name":"n"}`, "mode: is missing"},
		{"another mode", in("overlay", ""), `mode: "overlay" is none of segment, routed`},
		{"no VNI", in("segment", ""), `vni: is missing, and so is "tenant"`},
		{"VNI of a tenant", in("segment", `"tenant":"red"`), ""},
		{"no tenant's name", in("segment", `"tenant":"a/b"`), `tenant: "a/b" may hold`},
		{"VNI and tenant", segment(`,"tenant":"red"`), `tenant: "red": its range is for segments without a vni, and vni is 5001`},
		{"tenant, routed", in("routed", `"tenant":"red"`), `tenant: "red": it is for segments`},
		{"VNI too high", in("segment", `"vni":16777216`), "vni: 16777216 is not a VNI from 1 to 16777215"},
		{"VNI negative", in("routed", `"vni":-1`), "vni: -1 is not a VNI"},
		{"VNI as text", in("segment", `"vni":"5001"`), "vni: a string cannot stand here"},
		{"port", segment(`,"port":65536`), "port: 65536 is not a UDP port"},
		{"MTU", segment(`,"mtu":67`), "mtu: 67 is less than the 68"},
		{"MTU negative", in("routed", `"mtu":-1`), "mtu: -1 is less than the 68"},
		{"ipam in a segment", segment(`,"ipam":{"type":"underlay"}`), "ipam: vxlan gives no addresses; ipam is a key of the plugin after this one"},
		{"ipam, routed", in("routed", `"ipam":{"type":"host-local"}`), "ipam: vxlan gives no addresses; ipam is a key of the plugin before this one"},
		{"ipam without type", in("routed", `"ipam":{"pool":"p"}`), "ipam: vxlan gives no addresses"},
		{"ipam is no object", in("routed", `"ipam":[]`), "ipam: a array cannot stand here"},
		{"vlan", segment(`,"vlan":100`), "name PARENT.100 type vlan id 100"},
		{"linkInContainer", segment(`,"linkInContainer":true`), "linkInContainer: VXLAN devices are on the host"},
		{"mac", segment(`,"mac":"02:00:00:00:00:01"`), "mac: is a key of the plugin after this one"},
		{"macPrefix", segment(`,"macPrefix":"02"`), "macPrefix: is a key of the plugin after"},
		{"hostAccess", in("routed", `"hostAccess":true`), "hostAccess: is a key of the plugin before this one"},
		{"conflictDetection", segment(`,"conflictDetection":"off"`), "conflictDetection: is a key of the plugin after"},
		{"network of a segment", segment(`,"network":"pods"`), `network: "pods": there is none in mode segment`},
		{"directRouting of a segment", segment(`,"directRouting":false`), "directRouting: a segment is not routed"},
		{"directRouting", in("routed", `"directRouting":true`), "directRouting: the network in the registry says"},
		{"master, routed", in("routed", `"master":"eth1"`), `master: "eth1": the agent has`},
		{"no JSON", `{"name":`, "network configuration: unexpected end"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := parse([]byte(tt.conf))
			switch {
			case tt.want == "" && err != nil:
				t.Fatal(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			var told *cni.Error
			if errors.As(err, &told) && told.Code != types.ErrInvalidNetworkConfig && told.Code != types.ErrDecodingFailure {
				t.Errorf("code %d", told.Code)
			}
		})
	}
}

// What an attachment has on record is told by its configuration, also by one that
// has become invalid.
func TestUses(t *testing.T) {
	t.Parallel()
	for conf, want := range map[string]ipam.Uses{
		`{"name":"n","mode":"routed"}`:                                          {Network: "n"},
		`{"name":"n","mode":"routed","network":"pods","vni":7}`:                 {Network: "pods"},
		`{"name":"n","mode":"segment","vni":7,"master":"eth1"}`:                 {Parent: "eth1", Segment: ipam.Segment{VNI: 7, Port: 8472}},
		`{"name":"n","mode":"segment","vni":7,"port":4789,"vlan":5}`:            {Segment: ipam.Segment{VNI: 7, Port: 4789}},
		`{"name":"n","mode":"?","vni":7}`:                                       {Segment: ipam.Segment{VNI: 7, Port: 8472}},
		`{"name":"n","mode":"segment","vni":16777216,"port":4789}`:              {},
		`{"name":"n","mode":"segment","vni":"x","port":4789,"master":"eth1"}`:   {Parent: "eth1"},
		`{"name":"n","mode":"segment","vni":-7,"port":4789,"network":"others"}`: {},
	} {
		c, _ := parse([]byte(conf))
		if got := c.uses(); got != want {
			t.Errorf("%s: %+v, want %+v", conf, got, want)
		}
	}
}

// TestOwn: the attachment's interface is the one in the container.
func TestOwn(t *testing.T) {
	t.Parallel()
	req := &cni.Request{IfName: "eth0", Netns: "/run/netns/c"}
	prev := &current.Result{Interfaces: []*current.Interface{{Name: "eth0"}, {Name: "eth1", Sandbox: req.Netns}, {Name: "eth0", Sandbox: req.Netns, Mtu: 7}}}
	if got := own(prev, req); got == nil || got.Mtu != 7 {
		t.Errorf("%+v", got)
	}
	prev.Interfaces = prev.Interfaces[:2]
	if got := own(prev, req); got != nil {
		t.Errorf("%+v", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"name":"n","mode":"segment","vni":5001,"master":"eth1","port":8472,"mtu":1400}`))
	f.Add([]byte(`{"name":"n","mode":"routed","network":"pods","prevResult":{"cniVersion":"1.1.0"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(data)
		if s := c.segment(); (s.VNI == 0) != (s.Port == 0) || s.VNI < 0 || s.VNI >= 1<<24 {
			t.Fatalf("segment %+v", s)
		}
		if err != nil {
			return
		}
		switch c.Mode {
		case modeSegment:
			if c.VNI == 0 || c.Port < 0 || c.Port > 65535 || c.Network != "" {
				t.Fatalf("loaded: %+v", c)
			}
		case modeRouted:
			if c.Master != "" || c.VNI < 0 {
				t.Fatalf("loaded: %+v", c)
			}
		default:
			t.Fatalf("loaded with mode %q", c.Mode)
		}
		if c.MTU != 0 && c.MTU < minMTU {
			t.Fatalf("loaded with MTU %d", c.MTU)
		}
	})
}
