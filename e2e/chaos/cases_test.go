package chaos_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/e2e/cluster"
	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// The campaign's own eyes: what it would not see, nothing else here would.

func anyHost(name string, n int) *host {
	h := &host{Node: &cluster.Node{Process: &cluster.Process{Host: &lab.Host{Name: name}}}, n: n, live: map[*attachment]bool{}, lost: map[*attachment]bool{}}
	h.x = &campaign{journal: newJournal(), hosts: []*host{h}}
	return h
}

func anyAttachment(h *host, k *kind, addr string) *attachment {
	return &attachment{h: h, kind: k, box: &lab.Container{Name: addr}, addrs: []netip.Addr{netip.MustParseAddr(addr)}}
}

func TestHolders(t *testing.T) {
	lan, near := kinds[0], kinds[1]
	h1, h2 := anyHost("h1", 1), anyHost("h2", 2)
	s := newHolders()
	a := anyAttachment(h1, lan, "192.0.2.64")
	for _, tt := range []struct {
		name  string
		a     *attachment
		other *attachment
	}{
		{"the first", a, nil},
		{"again", a, nil},
		{"another address", anyAttachment(h2, lan, "192.0.2.65"), nil},
		{"another pool", anyAttachment(h2, near, "192.0.2.64"), nil},
		{"that pool of another host", anyAttachment(h1, near, "192.0.2.64"), nil},
		{"the same on another host", anyAttachment(h2, lan, "192.0.2.64"), a},
	} {
		if got := s.claim(tt.a); got != tt.other {
			t.Errorf("%s: %v has it, want %v", tt.name, got, tt.other)
		}
	}
	b := anyAttachment(h2, lan, "192.0.2.66")
	s.claim(b)
	s.leave(b)
	if got := s.claim(anyAttachment(h1, lan, "192.0.2.66")); got != nil {
		t.Errorf("%v has what it has left", got)
	}
}

// What a host has to have follows from what is attached and leased.
func TestWanted(t *testing.T) {
	h := anyHost("h1", 1)
	h2 := anyHost("h2", 2)
	h.x.hosts = []*host{h, h2}
	for _, k := range kinds {
		h.live[anyAttachment(h, k, "192.0.2.64")] = true
	}
	leases := []api.Lease{
		{Pool: "pods", CIDR: netip.MustParsePrefix("10.5.0.16/28"), Owner: &api.NodeName{Name: "h2"}},
		{Pool: "pods", CIDR: netip.MustParsePrefix("10.5.0.32/28"), Owner: &api.NodeName{Name: "h1"}},
		{Pool: "pods", CIDR: netip.MustParsePrefix("10.5.0.48/28")},
		{Pool: "far", CIDR: netip.MustParsePrefix("fd00:6::10/124"), Owner: &api.NodeName{Name: "h2"}},
		{Pool: "lan", CIDR: netip.MustParsePrefix("192.0.2.64/29"), Owner: &api.NodeName{Name: "h2"}},
	}
	want := strings.TrimSpace(`
fdb vx7 192.0.2.2
link br5001 bridge
link lg5001 veth
link lp5001 veth
link macvlan
link vx5001 vxlan
link vx7 vxlan
pairs 3
route 10.5.0.16/28 via 192.0.2.2 dev eth1
route fd00:6::10/124 dev vx7
table inet underlay`)
	if got := strings.Join(h.wanted(leases), "\n"); got != want {
		t.Errorf("wanted:\n%s\nwant:\n%s", got, want)
	}
}
