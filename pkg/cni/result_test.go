package cni

import (
	"encoding/json"
	"net"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
)

// The library's own JSON says the same.
func TestEncode(t *testing.T) {
	t.Parallel()
	ip, subnet, _ := net.ParseCIDR("192.0.2.10/24")
	_, everywhere, _ := net.ParseCIDR("::/0")
	tests := []struct {
		name string
		res  current.Result
	}{
		{"least", current.Result{}},
		{"all", current.Result{
			Interfaces: []*current.Interface{
				{Name: "eth0", Mac: "02:00:00:00:00:01", Mtu: 1500, Sandbox: "/run/netns/a", SocketPath: "/s", PciID: "0000:00:1f.6"},
				{Name: "bare"},
			},
			IPs: []*current.IPConfig{
				{Interface: current.Int(0), Address: net.IPNet{IP: ip, Mask: subnet.Mask}, Gateway: net.ParseIP("192.0.2.1")},
				{Address: net.IPNet{IP: net.ParseIP("2001:db8::10"), Mask: net.CIDRMask(64, 128)}},
			},
			Routes: []*types.Route{
				{Dst: *everywhere, GW: net.ParseIP("2001:db8::1"), MTU: 1400, AdvMSS: 1340, Priority: 5, Table: current.Int(100), Scope: current.Int(0)},
				{Dst: *subnet},
			},
			DNS: types.DNS{Nameservers: []string{"192.0.2.53"}, Domain: "example.org", Search: []string{"a", "b"}, Options: []string{"ndots:1"}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.res.CNIVersion = current.ImplementedSpecVersion
			text, err := encode(&tt.res)
			if err != nil {
				t.Fatal(err)
			}
			library, err := json.Marshal(&tt.res)
			if err != nil {
				t.Fatal(err)
			}
			var got, want any
			if err := json.Unmarshal(text, &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(library, &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("differs from the library's (-want +got):\n%s", diff)
			}
		})
	}
}
