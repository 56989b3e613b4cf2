package e2e_test

import (
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// TestHostgwGC: what is valid stays as it is, and of the rest nothing does.
func TestHostgwGC(t *testing.T) {
	t.Parallel()
	for name, more := range hostgwModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newBed(t).h1
			before := hostLinks(t, h)
			masq := keys{"ipMasq": true}
			stays, goes := attach(t, h, "c1", pods(t, h, merged(masq, more))), attach(t, h, "c2", pods(t, h, merged(masq, more)))
			other := attach(t, h, "c3", pods(t, h, merged(keys{"name": "other", "peers": []keys{}, "ipam": keys{"type": "underlay", "ranges": [][]keys{
				{{"subnet": "10.6.1.0/24"}}, {{"subnet": "fd06:0:0:1::/64"}}}}}, more)))
			wantOK(t, "GC", stays.cni.GC(t.Context(), stays.conf, types.GCAttachment{ContainerID: stays.ID, IfName: "eth0"}))
			wantNoLink(t, goes.Namespace)
			for _, a := range []*attachment{stays, other} {
				wantOK(t, "CHECK of the valid", a.cni.Check(t.Context(), a.conf, a.rt))
				meet(t, a.station, hostStation(t, h))
			}
			meet(t, stays.station, other.station)
			if held := readBooks(t, h).held(); len(held) != 2 || len(held[stays.ID]) != 2 || len(held[other.ID]) != 2 {
				t.Errorf("held: %v, want those of %s and %s", held, stays.ID, other.ID)
			}
			rules := mustDo(t, h.Namespace, "nft", "list", "ruleset")
			if gone := goes.addrs[0].String(); more["bridge"] == nil && strings.Contains(rules, gone) || !strings.Contains(rules, "chain postrouting") {
				t.Errorf("rules after GC of %s:\n%s", gone, rules)
			}
			wantOK(t, "GC", stays.cni.GC(t.Context(), stays.conf))
			wantNoLink(t, stays.Namespace)
			wantOK(t, "CHECK of the other network", other.cni.Check(t.Context(), other.conf, other.rt))
			if rules := mustDo(t, h.Namespace, "nft", "list", "ruleset"); strings.Contains(rules, "chain postrouting") {
				t.Errorf("rules without the network that is masqueraded:\n%s", rules)
			}
			other.del()
			wantNothing(t, h, before)
		})
	}
}

// TestHostgwStatus: STATUS says why an ADD would fail.
func TestHostgwStatus(t *testing.T) {
	t.Parallel()
	h := newBed(t).h1
	cni, conf := h.CNI(ours), pods(t, h, nil)
	wantOK(t, "STATUS", cni.Status(t.Context(), conf))
	stranger := pods(t, h, keys{"peers": []keys{{"prefix": "10.5.9.0/24", "via": "203.0.113.9"}}})
	wantError(t, cni.Status(t.Context(), stranger), codeStatus, "peers[0].via: 203.0.113.9 is on no segment")
	mustDo(t, h.Namespace, "ip", "link", "set", "eth1", "down")
	wantError(t, cni.Status(t.Context(), conf), codeStatus, "eth1")
}

// TestHostgwDrop: where somebody else drops what is forwarded, the way out is
// told, and taken on request.
func TestHostgwDrop(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c2 := attach(t, b.h2, "c2", pods(t, b.h2, nil))
	for _, chain := range []string{"add table inet strict", "add chain inet strict guard { type filter hook forward priority 0; policy drop; }"} {
		mustDo(t, b.h1.Namespace, append([]string{"nft"}, strings.Fields(chain)...)...)
	}
	c1 := attach(t, b.h1, "c1", pods(t, b.h1, nil))
	if out, err := c1.Exec(t.Context(), "ping", "-n", "-c", "1", "-W", "1", c2.addrs[0].String()); err == nil {
		t.Errorf("forwarded in spite of the policy:\n%s", out)
	}
	c1.again(pods(t, b.h1, keys{"fixForwardDrop": true}))
	meet(t, c1.station, c2.station)
}
