package e2e_test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// tenantRanges are the same for every tenant, and none of the hosts' segment.
var tenantRanges = json.RawMessage(`{"type": "underlay", "ranges": [
	[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd07::/64"}]]}`)

// otherTenantRanges are for another host, whose ledger knows nothing of this one's.
var otherTenantRanges = json.RawMessage(`{"type": "underlay", "ranges": [
	[{"subnet": "10.7.0.0/24", "rangeStart": "10.7.0.128"}], [{"subnet": "fd07::/64", "rangeStart": "fd07::8000"}]]}`)

// chain is a network of several plugins.
func chain(t *testing.T, name string, plugins ...keys) string {
	t.Helper()
	text, err := json.Marshal(keys{"cniVersion": "1.1.0", "name": name, "plugins": plugins})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// segment is vxlan's part of a chain, first, on the host's segment.
func segment(vni int, more keys) keys {
	return merged(keys{"type": "vxlan", "mode": "segment", "master": lab.Parent, "vni": vni}, more)
}

// tenant is a segment of its own, with macvlan on it.
func tenant(t *testing.T, name string, vni int, more keys) string {
	t.Helper()
	return chain(t, name, segment(vni, nil), merged(keys{"type": "macvlan", "mode": "bridge", "ipam": tenantRanges}, more))
}

// uplink is the path of a device on the host as the agent makes it for a network
// whose peers are behind VXLAN.
func uplink(t *testing.T, h *lab.Host, network string, vni, mtu int) {
	t.Helper()
	name := "vx" + strconv.Itoa(vni)
	mustDo(t, h.Namespace, "ip", "link", "add", name, "mtu", strconv.Itoa(mtu), "type", "vxlan", "id", strconv.Itoa(vni),
		"dstport", "8472", "dev", lab.Parent, "nolearning")
	mustDo(t, h.Namespace, "ip", "link", "set", name, "up", "alias", "underlay")
	mustDo(t, h.Namespace, "ip", "link", "property", "add", "dev", name, "altname", "vxlan-"+network)
}

// segmentLinks are the names of what the host has of segments.
func segmentLinks(t *testing.T, h *lab.Host) (names []string) {
	t.Helper()
	for _, l := range hostLinks(t, h) {
		if l.Name != lab.Parent && l.Name != "lo" {
			names = append(names, l.Name)
		}
	}
	slices.Sort(names)
	return names
}

// onlyOf is segmentLinks for these VNIs.
func wantSegments(t *testing.T, h *lab.Host, vnis ...int) {
	t.Helper()
	want := []string{}
	for _, vni := range vnis {
		for _, kind := range []string{"br", "lg", "lp", "vx"} {
			want = append(want, kind+strconv.Itoa(vni))
		}
	}
	slices.Sort(want)
	if got := segmentLinks(t, h); !slices.Equal(got, want) {
		t.Errorf("the host has %v, want %v", got, want)
	}
}

// nobodys is an address of the tenants' that nobody has.
var nobodys = netip.MustParseAddr("10.7.0.200")

// asked reports whether a capture has an ARP request for an address.
func asked(c *lab.Capture, addr netip.Addr) bool {
	return slices.ContainsFunc(c.Frames(), func(f lab.Frame) bool { return strings.Contains(f.String(), "who-has "+addr.String()) })
}
