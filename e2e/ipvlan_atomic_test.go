package e2e_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// Whatever step of an ADD fails, nothing of it stays, also on the parent: the
// next one may have another mode.
func TestIpvlanAtomic(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	byHand := on("ip link add link eth1 name foreign type ipvlan mode l2", "ip link set foreign up", "ip addr add 192.0.2.77/32 dev foreign")
	tests := []failure{
		{name: "ask: foreign IPAM fails", foreign: `[ $CNI_COMMAND != ADD ] || { echo '{"cniVersion": "1.1.0", "code": 77, "msg": "sold out"}'; exit 1; }`,
			calls: []string{"ADD", "DEL"}, code: 77, texts: []string{`ipam "spy"`, "sold out"}},
		{name: "ask: foreign IPAM gives no address", conf: keys{"mode": "l3", "vlan": 100}, foreign: answers(`{"cniVersion": "1.1.0"}`),
			calls: []string{"ADD", "DEL"}, code: codeIO, texts: []string{`ipam "spy"`, "no addresses"}},
		{name: "configure: address of a foreign IPAM in use on the wire", foreign: answers(spied), h2: []string{"ip addr add 192.0.2.77/24 dev eth1"},
			calls: []string{"ADD", "DEL"}, code: codeConflict, texts: []string{"192.0.2.77"}},
		{name: "configure: address of a foreign IPAM in use on the parent", foreign: answers(spied), make: byHand,
			calls: []string{"ADD", "DEL"}, code: codeConflict, texts: []string{"192.0.2.77", "another link"}},
		{name: "configure: requested address in use, with hostAccess", conf: keys{"hostAccess": true}, args: [][2]string{{"IP", "192.0.2.15"}},
			h2: []string{"ip addr add 192.0.2.15/24 dev eth1"}, code: codeConflict, texts: []string{"192.0.2.15"}, quarantined: []string{"192.0.2.15"}},
		{name: "configure: route without way, with VLAN and flag", code: codeConfig, texts: []string{"routes", "203.0.113.1"},
			conf: merged(subnet(`"routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]`), keys{"vlan": 100, "flag": "private"})},
		{name: "configure: second route of an address family that is not there, l3s", code: codeConfig, texts: []string{"routes", "2001:db8:7::/48"},
			conf: merged(subnet(`"routes": [{"dst": "2001:db8:7::/48", "mtu": 100}]`), keys{"mode": "l3s"}), make: on("ip netns exec NETNS sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")},
		{name: "reach: no IPv6 on the sibling", conf: keys{"hostAccess": true, "mode": "l3"}, code: codeIO, texts: []string{"host access", "2001:db8::10"},
			make: on("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			c1, rt := container(t, b.h1, "c1")
			all := []*lab.Namespace{c1}
			if test.make != nil {
				all = append(all, test.make(t, b.h1, c1)...)
			}
			for _, command := range test.h2 {
				mustDo(t, b.h2.Namespace, strings.Fields(command)...)
			}
			conf, cni, calls := merged(keys{"type": "ipvlan"}, test.conf), b.h1.CNI(ours), func() []string { return nil }
			if test.foreign != "" {
				var folder string
				folder, calls = spy(t, test.foreign)
				conf, cni = merged(conf, keys{"ipam": keys{"type": "spy"}}), b.h1.CNI(ours, folder)
			}
			rt.Args = test.args

			before := remainsOf(t, b.h1, all...)
			_, err := cni.Add(t.Context(), lan(t, b.h1, conf), rt)
			wantError(t, err, test.code, test.texts...)
			wantUndone(t, before, remainsOf(t, b.h1, all...), test.quarantined...)
			var want []string
			for _, verb := range test.calls {
				want = append(want, verb+" "+rt.ContainerID)
			}
			if diff := cmp.Diff(want, calls()); diff != "" {
				t.Errorf("calls of the IPAM plugin (-want +got):\n%s", diff)
			}
		})
	}
}

// The same ADD again has the same addresses, and one on another VLAN takes the
// place of the first.
func TestIpvlanAgain(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	h := oneHost(t)
	none := remainsOf(t, h)
	a := attach(t, h, "c1", ipvlan(t, h, "l2", "bridge", nil))
	addrs := texts(a.addrs)
	for _, conf := range []keys{
		{"mode": "l2", "flag": "bridge"},
		{"mode": "l3", "flag": "private", "vlan": 100},
		{"mode": "l3s", "flag": "private", "vlan": 200},
		{"mode": "l2", "flag": "bridge"},
	} {
		a.conf = lan(t, h, merged(keys{"type": "ipvlan"}, conf))
		a.add()
		if diff := cmp.Diff(addrs, texts(a.addrs)); diff != "" {
			t.Errorf("addresses (-first +again):\n%s", diff)
		}
		wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
		switch conf["vlan"] {
		case 100:
			there(t, h, on100)
		case 200:
			there(t, h, lab.Parent+".200")
		default:
			there(t, h)
		}
	}
	a.del()
	wantUndone(t, none, remainsOf(t, h))
}

// A parent inside the container has nothing to do with the host's of that name.
func TestIpvlanLinkInContainer(t *testing.T) {
	linktest.Need(t, "ipvlan")
	t.Parallel()
	h := oneHost(t)
	bystander := attach(t, h, "c0", ipvlan(t, h, "l3", "vepa", nil))
	for _, mode := range []string{"l2", "l3s"} {
		a := &attachment{t: t, cni: h.CNI(ours), conf: ipvlan(t, h, mode, "private", keys{"linkInContainer": true})}
		a.Namespace, a.rt = container(t, h, "c"+mode)
		ip(t, a.Namespace, "link add eth1 up type bridge")
		a.add()
		wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
		if shown := mustDo(t, a.Namespace, "ip", "-d", "link", "show", "dev", "eth0"); !strings.Contains(shown, "eth0@eth1") || !strings.Contains(shown, mode+" private") {
			t.Errorf("link is %s", shown)
		}
		wantOK(t, "DEL", a.cni.Del(t.Context(), a.conf, a.rt))
		if _, left, err := a.Link(t.Context(), "eth0"); left || err != nil {
			t.Errorf("eth0 is left: %v, %v", left, err)
		}
	}
	wantOK(t, "CHECK of the bystander", bystander.cni.Check(t.Context(), bystander.conf, bystander.rt))
	if held := readBooks(t, h).held(); len(held) != 1 {
		t.Errorf("held: %v", held)
	}
}
