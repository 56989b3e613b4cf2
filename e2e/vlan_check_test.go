package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// CHECK notices what has changed since ADD of a link on a sub-interface, and
// of an ipvlan link.
func TestVLANCheck(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	inside := func(lines ...string) func(*testing.T, *lab.Host, *attachment) {
		return func(t *testing.T, h *lab.Host, a *attachment) {
			own := strings.NewReplacer("V4", a.addrs[0].String()+"/24", "V6", a.addrs[1].String()+"/64")
			ip(t, a.Namespace, own.Replace(strings.Join(lines, "\n")))
		}
	}
	outside := func(lines ...string) func(*testing.T, *lab.Host, *attachment) {
		return func(t *testing.T, h *lab.Host, a *attachment) { ip(t, h.Namespace, lines...) }
	}
	// configured is another value of a key by now.
	configured := func(old, by string) func(*testing.T, *lab.Host, *attachment) {
		return func(t *testing.T, _ *lab.Host, a *attachment) {
			conf := strings.Replace(a.conf, old, by, 1)
			if conf == a.conf {
				t.Fatalf("%s is not in %s", old, conf)
			}
			a.conf = conf
		}
	}
	const moved = "link set eth1.100 down\nlink set eth1.100 name moved\nlink set moved up"
	macvlan, l2, l3 := keys{"type": "macvlan", "vlan": 100}, keys{"type": "ipvlan", "vlan": 100}, keys{"type": "ipvlan", "vlan": 100, "mode": "l3"}
	tests := []struct {
		name   string
		conf   keys
		change func(t *testing.T, h *lab.Host, a *attachment)
		code   uint
		texts  []string
	}{
		{"mode", l2, inside("link set eth0 type ipvlan mode l3"), codeCheck, []string{"eth0", "mode l3", "l2"}},
		{"mode, by another link", l3, outside("link add link eth1.100 name other type ipvlan mode l3s"), codeCheck, []string{"eth0", "mode l3s", "l3"}},
		{"flag", l2, inside("link set eth0 type ipvlan mode l2 private"), codeCheck, []string{"eth0", "flag private", "bridge"}},
		{"another mode is wanted", l3, configured(`"l3"`, `"l3s"`), codeCheck, []string{"eth0", "mode l3", "l3s"}},
		{"another VLAN is wanted, which is not there", l2, configured("100", "200"), codeCheck, []string{"vlan", "eth1.200"}},
		{"another VLAN is wanted", macvlan, func(t *testing.T, h *lab.Host, a *attachment) {
			outside("link add link eth1 name eth1.200 up type vlan id 200")(t, h, a)
			configured("100", "200")(t, h, a)
		}, codeCheck, []string{"eth0", "eth1.200"}},
		{"no VLAN is wanted", l2, configured(`"vlan":100`, `"vlan":0`), codeCheck, []string{"eth0", `"eth1"`}},
		{"its sub-interface is another VLAN", l2, outside(moved, "link add link eth1 name eth1.100 up type vlan id 7"), codeCheck, []string{"vlan", "eth1.100", "100"}},
		{"its sub-interface is of another parent", macvlan, outside(moved, "link add br1 up type bridge", "link add link br1 name eth1.100 up type vlan id 100"),
			codeCheck, []string{"vlan", "eth1.100", "100"}},
		{"its sub-interface is gone, and it with it", l2, outside("link delete eth1.100"), codeCheck, []string{"vlan", "eth1.100"}},
		{"its sub-interface is down", l2, outside("link set eth1.100 down"), codeCheck, []string{"eth1.100", "down"}},
		{"down", l3, inside("link set eth0 down"), codeCheck, []string{"eth0", "down"}},
		{"IPv4 address deleted", l2, inside("addr del V4 dev eth0"), codeCheck, []string{"eth0", "address 192.0.2."}},
		{"IPv6 address deleted", l3, inside("addr del V6 dev eth0"), codeCheck, []string{"eth0", "address 2001:db8::"}},
		{"MTU", merged(l2, keys{"mtu": 1500}), inside("link set eth0 mtu 1400"), codeCheck, []string{"eth0", "MTU 1400", "1500"}},
		{"of another kind", l2, inside("link delete eth0", "link add eth0 up type bridge"), codeCheck, []string{"eth0", "bridge", "ipvlan"}},
		{"ledger record missing", l3, func(t *testing.T, h *lab.Host, a *attachment) { steal(t, h, a, "") }, codeCheck, []string{"ledger", "/eth0"}},
		{"parent gone", l2, outside("link delete eth1"), codeParent, []string{"master", "eth1"}},
	}
	h := oneHost(t)
	for i, test := range tests { // the last one takes the parent away
		t.Run(test.name, func(t *testing.T) {
			a := attach(t, h, fmt.Sprintf("c%d", i), lan(t, h, test.conf))
			wantOK(t, "CHECK before", a.cni.Check(t.Context(), a.conf, a.rt))
			test.change(t, h, a)
			wantError(t, a.cni.Check(t.Context(), a.conf, a.rt), test.code, test.texts...)
			wantOK(t, "DEL", a.cni.Del(t.Context(), a.conf, a.rt))
			wantNothingHeld(t, h)
			if i < len(tests)-1 {
				asBefore(t, h)
			}
		})
	}
}
