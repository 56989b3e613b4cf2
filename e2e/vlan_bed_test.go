package e2e_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// kinds are the plugins that sit on sub-interfaces.
var kinds = []string{"macvlan", "ipvlan"}

// on100 is VLAN 100 of eth1.
const on100 = lab.Parent + ".100"

// come is attach for any number of addresses. The folders of the plugins are
// ours by default.
func come(t *testing.T, h *lab.Host, name, conf string, bin ...string) (*attachment, *current.Result) {
	t.Helper()
	if len(bin) == 0 {
		bin = []string{ours}
	}
	a := &attachment{t: t, cni: h.CNI(bin...), conf: conf}
	a.Namespace, a.rt = container(t, h, name)
	result, err := a.cni.Add(t.Context(), conf, a.rt)
	if err != nil {
		t.Fatalf("ADD %s: %v", a.ID, err)
	}
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		a.addrs = append(a.addrs, addr.Unmap())
	}
	a.mac = mustLink(t, a.Namespace, "eth0").MAC
	return a, result
}

// denied: ADD fails with the code and the texts, and nothing has changed.
func denied(t *testing.T, h *lab.Host, name, conf string, code uint, texts ...string) {
	t.Helper()
	n, rt := container(t, h, name)
	before := remainsOf(t, h)
	_, err := h.CNI(ours, reference).Add(t.Context(), conf, rt)
	wantError(t, err, code, texts...)
	wantNoLink(t, n)
	wantUndone(t, before, remainsOf(t, h))
}

// there: the host has these links on others, sub-interfaces and siblings, and
// no more.
func there(t *testing.T, h *lab.Host, want ...string) {
	t.Helper()
	links, err := h.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range links {
		if l.Kind != "" && l.Kind != "veth" {
			got = append(got, l.Name)
			if !l.Up {
				t.Errorf("%s is down", l.Name)
			}
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("links on the host: %q, want %q", got, want)
	}
}

// secondWire lays another cable between the hosts; its ends have this name.
func secondWire(t *testing.T, b *bed, name string) {
	t.Helper()
	mustDo(t, b.h1.Namespace, "ip", "link", "add", name, "up", "type", "veth", "peer", "name", name, "netns", b.h2.ID)
	mustDo(t, b.h2.Namespace, "ip", "link", "set", name, "up")
}

// vlanOf is the id of a sub-interface, as iproute2 shows it.
func vlanOf(t *testing.T, h *lab.Host, name string) string {
	t.Helper()
	shown := strings.Fields(mustDo(t, h.Namespace, "ip", "-d", "link", "show", "dev", name))
	if i := slices.Index(shown, "vlan"); i >= 0 && len(shown) > i+4 {
		return shown[i+4] // vlan protocol 802.1Q id 100
	}
	return ""
}

// asBefore makes a host of oneHost one again: no other links, its addresses, and
// what it has up.
func asBefore(t *testing.T, h *lab.Host) {
	t.Helper()
	links, err := h.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lines := []string{"link set eth1 nomaster up", "addr replace 192.0.2.1/24 dev eth1", "addr replace 2001:db8::1/64 dev eth1 nodad"}
	slices.Reverse(links) // a child goes with its parent
	for _, l := range links {
		if l.Name != "lo" && l.Name != lab.Parent {
			lines = append(lines, "link delete "+l.Name)
		}
	}
	ip(t, h.Namespace, lines...)
}
