package e2e_test

import (
	"fmt"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// What ipvlan cannot do, or may not, it says with the code of its kind and the
// place, and leaves all as it was.
func TestIpvlanInput(t *testing.T) {
	linktest.Need(t, "ipvlan")
	t.Parallel()
	l3 := func(more keys) keys { return merged(keys{"mode": "l3"}, more) }
	tests := []input{
		{name: "mode", conf: keys{"mode": "l4"}, code: codeConfig, at: "mode", texts: []string{`"l4"`, "l3s"}},
		{name: "mode of macvlan", conf: keys{"mode": "bridge"}, code: codeConfig, at: "mode", texts: []string{`"bridge"`, "l2"}},
		{name: "flag", conf: keys{"flag": "passthru"}, code: codeConfig, at: "flag", texts: []string{`"passthru"`, "vepa"}},

		{name: "mac", conf: keys{"mac": mac1}, code: codeConfig, at: "mac", texts: []string{"MAC of its parent"}},
		{name: "macPrefix", conf: keys{"macPrefix": "02:42"}, code: codeConfig, at: "macPrefix", texts: []string{"MAC of its parent"}},
		{name: "MAC", args: [][2]string{{"MAC", mac1}}, code: codeConfig, at: "CNI_ARGS MAC", texts: []string{"MAC of its parent"}},
		{name: "runtimeConfig.mac", conf: keys{"runtimeConfig": keys{"mac": mac1}}, code: codeConfig, at: "runtimeConfig.mac", texts: []string{"MAC of its parent"}},

		{name: "MTU above the parent's", conf: keys{"mtu": 1501}, code: codeConfig, at: "mtu", texts: []string{"1501", "1500", `"eth1"`}},
		{name: "MTU below the least", conf: keys{"mtu": 67}, code: codeConfig, at: "mtu", texts: []string{"67", "68"}},
		{name: "MTU too small for IPv6", conf: l3(keys{"mtu": 1279}), code: codeConfig, at: "mtu", texts: []string{"1279", "1280"}},

		{name: "l3 without ipam", conf: l3(keys{"ipam": nil}), code: codeConfig, at: "ipam", texts: []string{"missing"}},
		{name: "l3s with empty ipam", conf: keys{"mode": "l3s", "ipam": keys{}}, code: codeConfig, at: "ipam", texts: []string{"missing"}},
		{name: "l3 behind a chain without addresses", conf: l3(keys{"ipam": nil, "prevResult": keys{"cniVersion": "1.1.0", "interfaces": []keys{{"name": "eth1"}}}}),
			code: codeConfig, at: "ipam", texts: []string{"missing"}},
		{name: "l3 asks the wire", conf: l3(keys{"conflictDetection": "fast"}), code: codeConfig, at: "conflictDetection", texts: []string{`"fast"`, "off"}},
		{name: "l3 does not", conf: l3(keys{"conflictDetection": "off"})},

		{name: "hostAccess, private", conf: keys{"hostAccess": true, "flag": "private"}, code: codeConfig, at: "hostAccess", texts: []string{"private", "bridge"}},
		{name: "hostAccess, vepa", conf: l3(keys{"hostAccess": true, "flag": "vepa"}), code: codeConfig, at: "hostAccess", texts: []string{"vepa", "bridge"}},
		{name: "hostAccess without ipam", conf: keys{"hostAccess": true, "ipam": nil}, code: codeConfig, at: "hostAccess", texts: []string{"ipam"}},
		{name: "hostAccess with foreign ipam", conf: keys{"hostAccess": true, "ipam": hostLocal}, code: codeConfig, at: "hostAccess", texts: []string{`"underlay"`}},
		{name: "hostAccess in the container", conf: keys{"hostAccess": true, "linkInContainer": true}, code: codeConfig, at: "hostAccess", texts: []string{"linkInContainer"}},
		{name: "hostAccess, host without address", conf: l3(keys{"hostAccess": true}), make: on("ip addr flush dev eth1"),
			code: codeConfig, at: "hostAccess", texts: []string{`"eth1"`, "address"}},
		{name: "hostAccess, name of the sibling taken", conf: keys{"hostAccess": true}, make: on("ip link add " + sibling + " type bridge"),
			code: codeParent, texts: []string{"host access", sibling}},

		{name: "no master", conf: keys{"master": ""}, code: codeParent, at: "master", texts: []string{"default route"}},
		{name: "master down", conf: l3(nil), make: on("ip link set eth1 down"), code: codeParent, at: "master", texts: []string{`"eth1"`, "down"}},
		{name: "master is a port of a bridge", make: on("ip link add br1 up type bridge", "ip link set eth1 master br1"),
			code: codeParent, at: "master", texts: []string{`"eth1"`, `"br1"`}},
		{name: "master is no Ethernet interface", conf: keys{"master": "lo"}, code: codeParent, at: "master", texts: []string{`"lo"`}},
		{name: "name taken", make: on("ip -n NETNS link add eth0 type bridge"), code: codeLink, at: "CNI_IFNAME", texts: []string{`"eth0"`, "bridge"}},
		{name: "name taken by a sibling", make: on("ip link add link eth1 name other type ipvlan mode l2 bridge", "ip link set other netns NETNS name eth0"),
			code: codeLink, at: "CNI_IFNAME", texts: []string{`"eth0"`, "ipvlan"}},
		{name: "netns is the host's", rt: func(h *lab.Host, rt *libcni.RuntimeConf) { rt.NetNS = h.Path },
			code: codeEnvironment, at: "CNI_NETNS", texts: []string{"itself"}},

		{name: "gateway out of reach in l2", conf: subnet(`"routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]`),
			code: codeConfig, at: "routes", texts: []string{"198.51.100.0/24", "203.0.113.1"}},
		{name: "gateway out of reach in l3", conf: l3(subnet(`"routes": [{"dst": "203.0.113.0/24", "gw": "10.0.0.1"}]`))},
		{name: "exhausted", conf: l3(keys{"ipam": oneAddress("")}), make: beside(keys{"type": "ipvlan", "mode": "l3", "ipam": oneAddress("")}),
			code: codeTryAgain, texts: []string{"1 usable, 1 held"}},
		{name: "IP is held", args: [][2]string{{"IP", "192.0.2.10"}}, make: beside(keys{"type": "ipvlan"}), code: codeTaken, texts: []string{"192.0.2.10", "c0/eth0"}},
		{name: "IP is the host's", conf: l3(subnet(`"gateway": "192.0.2.254"`)), args: [][2]string{{"IP", "192.0.2.1"}}, code: codeTaken, texts: []string{"192.0.2.1", "host"}},
		{name: "foreign ipam gives nothing to go on with", conf: l3(keys{"ipam": keys{"type": "nosuch"}}), code: codeIO, texts: []string{`"nosuch"`}},
	}
	common := oneHost(t)
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := common // of those that change nothing
			if test.make != nil || test.code == 0 {
				t.Parallel()
				h = oneHost(t)
			}
			c1, rt := container(t, h, fmt.Sprintf("c%d", i+1))
			all := []*lab.Namespace{c1}
			if test.make != nil {
				all = append(all, test.make(t, h, c1)...)
			}
			conf := placed(t, h, merged(keys{"type": "ipvlan"}, test.conf))
			rt.Args = test.args
			if test.rt != nil {
				test.rt(h, rt)
			}
			before := stateOf(t, h, all...)
			_, err := call{verb: "ADD", plugin: "ipvlan", rt: rt}.run(t, h, conf)
			if test.code != 0 {
				wantError(t, err, test.code, test.texts...)
				wantPlace(t, err, test.at)
				wantState(t, before, stateOf(t, h, all...))
				return
			}
			wantOK(t, "ADD", err)
			mustLink(t, c1, "eth0")
			_, err = call{verb: "DEL", plugin: "ipvlan", rt: rt}.run(t, h, conf)
			wantOK(t, "DEL", err)
			wantNoLink(t, c1)
			wantNothingHeld(t, h)
		})
	}
}
