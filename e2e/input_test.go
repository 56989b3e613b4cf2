package e2e_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// input is one ADD of the attachment c1/eth0.
type input struct {
	name  string
	conf  keys        // besides those of lan
	stdin string      // in place of a configuration
	args  [][2]string // CNI_ARGS
	// rt has the runtime say something else of c1.
	rt func(h *lab.Host, rt *libcni.RuntimeConf)
	// make is what happens before. It returns the containers that it makes.
	make  func(t *testing.T, h *lab.Host, c1 *lab.Namespace) []*lab.Namespace
	code  uint     // 0 means that ADD succeeds
	at    string   // the place that the error begins with; none where the CNI library writes it
	texts []string // that the error has besides
}

// pool is an ipam object.
func pool(object string) keys {
	return keys{"ipam": json.RawMessage(`{"type": "underlay", ` + object + `}`)}
}

// subnet is an ipam object of one subnet.
func subnet(more string) keys { return pool(`"subnet": "192.0.2.0/24", ` + more) }

// on runs programs on the host.
func on(commands ...string) func(*testing.T, *lab.Host, *lab.Namespace) []*lab.Namespace {
	return func(t *testing.T, h *lab.Host, c1 *lab.Namespace) []*lab.Namespace {
		t.Helper()
		for _, command := range commands {
			mustDo(t, h.Namespace, strings.Fields(strings.ReplaceAll(command, "NETNS", c1.ID))...)
		}
		return nil
	}
}

// beside attaches a container c0.
func beside(conf keys, args ...[2]string) func(*testing.T, *lab.Host, *lab.Namespace) []*lab.Namespace {
	return func(t *testing.T, h *lab.Host, _ *lab.Namespace) []*lab.Namespace {
		t.Helper()
		n, rt := container(t, h, "c0")
		rt.Args = args
		if _, err := h.CNI(ours).Add(t.Context(), lan(t, h, conf), rt); err != nil {
			t.Fatal(err)
		}
		return []*lab.Namespace{n}
	}
}

// without8021q is for what is said where the kernel has none.
func without8021q(t *testing.T, _ *lab.Host, _ *lab.Namespace) []*lab.Namespace {
	t.Helper()
	linktest.Lack(t, "vlan")
	return nil
}

func netns(path string) func(*lab.Host, *libcni.RuntimeConf) {
	return func(_ *lab.Host, rt *libcni.RuntimeConf) { rt.NetNS = path }
}

func containerID(id string) func(*lab.Host, *libcni.RuntimeConf) {
	return func(_ *lab.Host, rt *libcni.RuntimeConf) { rt.ContainerID = id }
}

func ifName(name string) func(*lab.Host, *libcni.RuntimeConf) {
	return func(_ *lab.Host, rt *libcni.RuntimeConf) { rt.IfName = name }
}

const mac1 = "02:00:00:00:00:01"

var inputs = []input{
	// Keys of ipam.
	{name: "unknown key", conf: subnet(`"gatewya": "192.0.2.1"`), code: codeUnsupported, at: "ipam.gatewya", texts: []string{`"gateway"`}},
	{name: "unknown key in a range", conf: pool(`"ranges": [[{"subnet": "192.0.2.0/25"}, {"subnet": "192.0.2.128/25", "rangestart": "192.0.2.130"}]]`),
		code: codeUnsupported, at: "ipam.ranges[0][1].rangestart", texts: []string{`"rangeStart"`}},
	{name: "unknown key in a route", conf: subnet(`"routes": [{"dst": "0.0.0.0/0"}, {"dts": "198.51.100.0/24"}]`),
		code: codeUnsupported, at: "ipam.routes[1].dts", texts: []string{`"dst"`}},
	{name: "ipRange outside of a range", conf: subnet(`"ipRange": "192.0.2.128/25"`), code: codeUnsupported, at: "ipam.ipRange"},
	// nerdctl keeps its --ip-range beside the range that it makes of it.
	{name: "ipRange of nerdctl", conf: pool(`"ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.128", "rangeEnd": "192.0.2.255",
		"gateway": "192.0.2.1", "ipRange": "192.0.2.128/25"}]]`)},
	{name: "cluster pool that nobody has told of", conf: pool(`"pool": "red"`), code: codeTryAgain, at: "ipam.pool", texts: []string{`"red"`, "may be new", "underlayd"}},
	{name: "cluster pool and a subnet", conf: subnet(`"pool": "red"`), code: codeConfig, at: "ipam.subnet", texts: []string{`"red"`, "ipam.pool"}},
	{name: "cluster pool and a range of the runtime", conf: keys{"ipam": keys{"type": "underlay", "pool": "red"},
		"runtimeConfig": json.RawMessage(`{"ipRanges": [[{"subnet": "198.51.100.0/24"}]]}`)}, code: codeConfig, at: "runtimeConfig.ipRanges", texts: []string{`"red"`, "ipam.pool"}},
	{name: "cluster pool and sticky", conf: pool(`"pool": "red", "sticky": true`), code: codeConfig, at: "ipam.sticky", texts: []string{`"red"`, "underlayctl pool update"}},

	// Ranges.
	{name: "no ranges", conf: pool(`"routes": []`), code: codeConfig, at: "ipam.ranges", texts: []string{"missing"}},
	{name: "empty range set", conf: pool(`"ranges": [[{"subnet": "192.0.2.0/24"}], []]`), code: codeConfig, at: "ipam.ranges[1]"},
	{name: "range without subnet", conf: pool(`"ranges": [[{"rangeStart": "192.0.2.10"}]]`), code: codeConfig, at: "ipam.ranges[0][0].subnet", texts: []string{"missing"}},
	{name: "no subnet", conf: pool(`"subnet": "192.0.2.0"`), code: codeConfig, at: "ipam.subnet", texts: []string{`"192.0.2.0"`}},
	{name: "subnet with host bits", conf: pool(`"subnet": "192.0.2.1/24"`), code: codeConfig, at: "ipam.subnet", texts: []string{"192.0.2.1/24", "192.0.2.0/24"}},
	{name: "range ends swapped", conf: subnet(`"rangeStart": "192.0.2.20", "rangeEnd": "192.0.2.10"`),
		code: codeConfig, at: "ipam.rangeEnd", texts: []string{"192.0.2.10", "192.0.2.20"}},
	{name: "range start outside", conf: pool(`"ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.3.10"}]]`),
		code: codeConfig, at: "ipam.ranges[0][0].rangeStart", texts: []string{"192.0.3.10", "192.0.2.0/24"}},
	{name: "gateway outside", conf: pool(`"ranges": [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8::/64", "gateway": "2001:db8:1::1"}]]`),
		code: codeConfig, at: "ipam.ranges[1][0].gateway", texts: []string{"2001:db8:1::1", "2001:db8::/64"}},
	{name: "overlap", conf: pool(`"ranges": [[{"subnet": "192.0.2.0/24", "rangeEnd": "192.0.2.99"}], [{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.90"}]]`),
		code: codeConfig, at: "ipam.ranges[1][0]", texts: []string{"overlaps", "ipam.ranges[0][0]"}},
	{name: "two families in a set", conf: pool(`"ranges": [[{"subnet": "192.0.2.0/24"}, {"subnet": "2001:db8::/64"}]]`),
		code: codeConfig, at: "ipam.ranges[0][1].subnet", texts: []string{"family"}},
	{name: "exclude outside", conf: subnet(`"exclude": ["192.0.2.9", "192.0.3.0/28"]`), code: codeConfig, at: "ipam.exclude[1]", texts: []string{"192.0.3.0/28"}},
	{name: "all excluded", conf: subnet(`"exclude": ["192.0.2.0/24"]`), code: codeConfig, at: "ipam", texts: []string{"no address"}},
	{name: "range of the runtime", conf: keys{"runtimeConfig": json.RawMessage(`{"ipRanges": [[{"subnet": "198.51.100.0/24", "gateway": "192.0.2.1"}]]}`)},
		code: codeConfig, at: "runtimeConfig.ipRanges[0][0].gateway", texts: []string{"198.51.100.0/24"}},

	// The rest of ipam.
	{name: "coolDown", conf: subnet(`"coolDown": "5 minutes"`), code: codeConfig, at: "ipam.coolDown", texts: []string{`"5 minutes"`}},
	{name: "sticky", conf: subnet(`"sticky": "yes"`), code: codeConfig, at: "ipam.sticky", texts: []string{`"yes"`}},
	{name: "stickyFor alone", conf: subnet(`"stickyFor": "1h"`), code: codeConfig, at: "ipam.stickyFor"},
	{name: "resolvConf missing", conf: subnet(`"resolvConf": "/nosuch/resolv.conf"`), code: codeConfig, at: "ipam.resolvConf", texts: []string{"/nosuch/resolv.conf"}},
	{name: "route without dst", conf: subnet(`"routes": [{"gw": "192.0.2.1"}]`), code: codeConfig, at: "ipam.routes[0].dst"},
	{name: "route with host bits", conf: subnet(`"routes": [{"dst": "198.51.100.1/24"}]`), code: codeConfig, at: "ipam.routes[0].dst", texts: []string{"198.51.100.0/24"}},
	{name: "gw of another family", conf: subnet(`"routes": [{"dst": "198.51.100.0/24"}, {"dst": "::/0", "gw": "192.0.2.1"}]`),
		code: codeConfig, at: "ipam.routes[1].gw", texts: []string{"192.0.2.1", "::/0"}},
	{name: "gw out of reach", conf: subnet(`"routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]`),
		code: codeConfig, at: "routes", texts: []string{"198.51.100.0/24", "203.0.113.1", "unreachable"}},
	{name: "exhausted", conf: keys{"ipam": oneAddress("")}, make: beside(keys{"ipam": oneAddress("")}),
		code: codeTryAgain, texts: []string{`"lan"`, "192.0.2.10", "1 usable, 1 held, 0 cooling, 0 quarantined, 0 reserved, 0 used by others"}},
	{name: "no plugin of that type", conf: keys{"ipam": keys{"type": "nosuch"}}, code: codeIO, texts: []string{`ipam "nosuch"`}},
	{name: "type is a path", conf: keys{"ipam": keys{"type": "../bin/true"}}, code: codeIO, texts: []string{`ipam "../bin/true"`, "invalid plugin name"}},

	// Addresses asked for.
	{name: "IP is none", args: [][2]string{{"IP", "192.0.2.256"}}, code: codeConfig, at: "CNI_ARGS IP[0]", texts: []string{`"192.0.2.256"`}},
	{name: "args.cni.ips is none", conf: keys{"args": keys{"cni": keys{"ips": []string{"192.0.2.10", "x"}}}}, code: codeConfig, at: "args.cni.ips[1]", texts: []string{`"x"`}},
	{name: "runtimeConfig.ips is none", conf: keys{"runtimeConfig": keys{"ips": []string{"192.0.2.10/33"}}},
		code: codeConfig, at: "runtimeConfig.ips[0]", texts: []string{`"192.0.2.10/33"`}},
	{name: "IP outside", args: [][2]string{{"IP", "198.51.100.9"}}, code: codeConfig, at: "CNI_ARGS IP[0]", texts: []string{"198.51.100.9", "outside", `"lan"`}},
	{name: "second IP outside", args: [][2]string{{"IP", "192.0.2.10,192.0.2.99"}}, code: codeConfig, at: "CNI_ARGS IP[1]", texts: []string{"192.0.2.99", "outside"}},
	{name: "IP is the gateway", conf: subnet(`"gateway": "192.0.2.254"`), args: [][2]string{{"IP", "192.0.2.254"}},
		code: codeConfig, at: "CNI_ARGS IP[0]", texts: []string{"192.0.2.254", "gateway"}},
	{name: "IP is excluded", conf: subnet(`"exclude": ["192.0.2.64/28"]`), args: [][2]string{{"IP", "192.0.2.70"}},
		code: codeConfig, at: "CNI_ARGS IP[0]", texts: []string{"192.0.2.70", "excluded"}},
	{name: "IP is the host's", conf: subnet(`"gateway": "192.0.2.254"`), args: [][2]string{{"IP", "192.0.2.1"}}, code: codeTaken, texts: []string{"192.0.2.1", "host"}},
	{name: "IP is held", args: [][2]string{{"IP", "192.0.2.10"}}, make: beside(nil), code: codeTaken, texts: []string{"192.0.2.10", "held", "lan/", "c0/eth0"}},
	{name: "two IPs of one set", args: [][2]string{{"IP", "192.0.2.10,192.0.2.11"}}, code: codeConfig, at: "CNI_ARGS IP[1]", texts: []string{"192.0.2.11", "second"}},
	{name: "two IPs of two sets", args: [][2]string{{"IP", "192.0.2.200,192.0.2.10"}},
		conf: pool(`"ranges": [[{"subnet": "192.0.2.0/24", "rangeEnd": "192.0.2.99"}], [{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100"}]]`)},

	// The parent.
	{name: "master is a path", conf: keys{"master": "../eth1"}, code: codeParent, at: "master", texts: []string{`"../eth1"`}},
	{name: "master missing", conf: keys{"master": "nosuch0"}, code: codeParent, at: "master", texts: []string{`"nosuch0"`}},
	{name: "master down", make: on("ip link set eth1 down"), code: codeParent, at: "master", texts: []string{`"eth1"`, "down"}},
	{name: "no master", conf: keys{"master": ""}, code: codeParent, at: "master", texts: []string{"default route"}},
	{name: "master is a port of a bridge", make: on("ip link add br1 up type bridge", "ip link set eth1 master br1"),
		code: codeParent, at: "master", texts: []string{`"eth1"`, `"br1"`}},
	{name: "master on the host alone", conf: keys{"linkInContainer": true}, code: codeParent, at: "master", texts: []string{`"eth1"`}},
	{name: "passthru beside others", conf: keys{"mode": "passthru"}, make: beside(nil), code: codeParent, at: "master", texts: []string{`"eth1"`, "passthru"}},
	{name: "beside passthru", make: beside(keys{"mode": "passthru"}), code: codeParent, at: "master", texts: []string{`"eth1"`, "passthru"}},
	{name: "vlan negative", conf: keys{"vlan": -1}, code: codeConfig, at: "vlan", texts: []string{"-1", "4094"}},
	{name: "vlan too large", conf: keys{"vlan": 4095}, code: codeConfig, at: "vlan", texts: []string{"4095", "4094"}},
	{name: "vlan in the container", conf: keys{"vlan": 100, "linkInContainer": true}, code: codeConfig, at: "vlan", texts: []string{"linkInContainer"}},
	{name: "vlan without 802.1q", conf: keys{"vlan": 100}, make: without8021q, code: codeParent, at: "vlan", texts: []string{`"eth1.100"`, "modprobe 8021q"}},

	// The link.
	{name: "name taken", make: on("ip -n NETNS link add eth0 type bridge"), code: codeLink, at: "CNI_IFNAME", texts: []string{`"eth0"`, "bridge"}},
	{name: "name taken by a sibling", make: on("ip link add link eth1 name eth0 netns NETNS type macvlan"),
		code: codeLink, at: "CNI_IFNAME", texts: []string{`"eth0"`, "macvlan"}},
	{name: "mode", conf: keys{"mode": "brigde"}, code: codeConfig, at: "mode", texts: []string{`"brigde"`, "bridge"}},
	{name: "master is no Ethernet interface", conf: keys{"master": "lo"}, code: codeParent, at: "master", texts: []string{`"lo"`, "Ethernet"}},
	{name: "mtu above the parent's", conf: keys{"mtu": 1501}, code: codeConfig, at: "mtu", texts: []string{"1501", "1500", `"eth1"`}},
	{name: "mtu negative", conf: keys{"mtu": -1}, code: codeConfig, at: "mtu", texts: []string{"-1"}},
	{name: "mtu too small", conf: keys{"mtu": 67}, code: codeConfig, at: "mtu", texts: []string{"67", "68"}},
	{name: "mtu too small for IPv6", conf: keys{"mtu": 1279}, code: codeConfig, at: "mtu", texts: []string{"1279", "1280"}},
	{name: "dataDir is relative", conf: keys{"dataDir": "data"}, code: codeConfig, at: "dataDir", texts: []string{`"data"`, "absolute"}},
	{name: "runDir is relative", conf: keys{"runDir": "./run"}, code: codeConfig, at: "runDir", texts: []string{`"./run"`, "absolute"}},
	{name: "source mode, no sources", conf: keys{"mode": "source"}},
	{name: "sources in another mode", conf: keys{"mode": "vepa", "sourceMACs": []string{mac1}}, code: codeConfig, at: "sourceMACs", texts: []string{"source", "vepa"}},
	{name: "source is none", conf: keys{"mode": "source", "sourceMACs": []string{mac1, "x"}}, code: codeConfig, at: "sourceMACs[1]", texts: []string{`"x"`}},
	{name: "nopromisc in another mode", conf: keys{"nopromisc": true}, code: codeConfig, at: "nopromisc", texts: []string{"passthru", "bridge"}},
	{name: "conflictDetection", conf: keys{"conflictDetection": "slow"}, code: codeConfig, at: "conflictDetection", texts: []string{`"slow"`, "thorough"}},
	{name: "mac is none", conf: keys{"mac": "02:00:00:00:00"}, code: codeConfig, at: "mac", texts: []string{`"02:00:00:00:00"`}},
	{name: "mac is of a group", conf: keys{"mac": "01:00:5e:00:00:01"}, code: codeConfig, at: "mac", texts: []string{"01:00:5e:00:00:01", "multicast"}},
	{name: "mac is zero", conf: keys{"mac": "00:00:00:00:00:00"}, code: codeConfig, at: "mac", texts: []string{"00:00:00:00:00:00"}},
	{name: "MAC is none", args: [][2]string{{"MAC", "x"}}, code: codeConfig, at: "CNI_ARGS MAC", texts: []string{`"x"`}},
	{name: "runtimeConfig.mac is none", conf: keys{"runtimeConfig": keys{"mac": "x"}}, code: codeConfig, at: "runtimeConfig.mac", texts: []string{`"x"`}},
	{name: "mac is the parent's", conf: keys{"mac": mac1}, make: on("ip link set eth1 address " + mac1), code: codeConfig, at: "mac", texts: []string{mac1, `"eth1"`}},
	{name: "mac is a sibling's", conf: keys{"mac": mac1}, make: beside(nil, [2]string{"MAC", mac1}), code: codeLink, at: "mac", texts: []string{mac1, "in use"}},
	{name: "macPrefix is none", conf: keys{"macPrefix": "02:4"}, code: codeConfig, at: "macPrefix", texts: []string{`"02:4"`}},
	{name: "macPrefix is of a group", conf: keys{"macPrefix": "03"}, code: codeConfig, at: "macPrefix", texts: []string{`"03"`, "multicast"}},
	{name: "macPrefix is too long", conf: keys{"macPrefix": mac1}, code: codeConfig, at: "macPrefix", texts: []string{mac1, "1 to 3"}},
	{name: "hostAccess, private", conf: keys{"hostAccess": true, "mode": "private"}, code: codeConfig, at: "hostAccess", texts: []string{"private"}},
	{name: "hostAccess, vepa", conf: keys{"hostAccess": true, "mode": "vepa"}, code: codeConfig, at: "hostAccess", texts: []string{"vepa"}},
	{name: "hostAccess, passthru", conf: keys{"hostAccess": true, "mode": "passthru"}, code: codeConfig, at: "hostAccess", texts: []string{"passthru"}},
	{name: "hostAccess, source", conf: keys{"hostAccess": true, "mode": "source"}, code: codeConfig, at: "hostAccess", texts: []string{"source"}},
	{name: "hostAccess without ipam", conf: keys{"hostAccess": true, "ipam": keys{}}, code: codeConfig, at: "hostAccess", texts: []string{"ipam"}},
	{name: "hostAccess in the container", conf: keys{"hostAccess": true, "linkInContainer": true}, code: codeConfig, at: "hostAccess", texts: []string{"linkInContainer"}},
	{name: "hostAccess, host without address", conf: keys{"hostAccess": true}, make: on("ip addr flush dev eth1"),
		code: codeConfig, at: "hostAccess", texts: []string{`"eth1"`, "address"}},

	// The environment.
	{name: "CNI_ARGS without value", args: [][2]string{{"IgnoreUnknown", "1;FOO"}}, code: codeEnvironment, at: "CNI_ARGS", texts: []string{`"FOO"`}},
	{name: "CNI_ARGS unknown", args: [][2]string{{"FOO", "1"}}, code: codeEnvironment, at: "CNI_ARGS", texts: []string{"FOO=1", "IgnoreUnknown"}},
	{name: "CNI_ARGS unknown and ignored", args: [][2]string{{"FOO", "1"}, {"IgnoreUnknown", "true"}}},
	{name: "CNI_ARGS with = in a value", args: [][2]string{{"IgnoreUnknown", "1"}, {"LABEL", "a=b=c"}, {"K8S_POD_NAME", "x=y"}}},
	{name: "IgnoreUnknown is no truth", args: [][2]string{{"IgnoreUnknown", "maybe"}}, code: codeEnvironment, at: "CNI_ARGS", texts: []string{"IgnoreUnknown", `"maybe"`}},
	{name: "netns is the host's", rt: func(h *lab.Host, rt *libcni.RuntimeConf) { rt.NetNS = h.Path },
		code: codeEnvironment, at: "CNI_NETNS", texts: []string{"itself"}},
	{name: "netns gone", rt: netns("/run/netns/nosuch"), code: codeEnvironment, at: "CNI_NETNS", texts: []string{"/run/netns/nosuch", "no network namespace"}},
	{name: "netns is a file", rt: netns("/etc/hostname"), code: codeEnvironment, at: "CNI_NETNS", texts: []string{"/etc/hostname", "no network namespace"}},
	{name: "no netns", rt: netns(""), code: codeEnvironment, texts: []string{"CNI_NETNS", "missing"}},
	{name: "no container ID", rt: containerID(""), code: codeEnvironment, texts: []string{"CNI_CONTAINERID", "missing"}},
	{name: "container ID is none", rt: containerID("../c1"), code: codeEnvironment, texts: []string{"containerID", "../c1"}},
	{name: "no interface name", rt: ifName(""), code: codeEnvironment, texts: []string{"CNI_IFNAME", "missing"}},
	{name: "interface name is none", rt: ifName("eth/0"), code: codeEnvironment, texts: []string{"interface name", "/"}},
	{name: "interface name is too long", rt: ifName("sixteen-letters0"), code: codeEnvironment, texts: []string{"interface name", "too long"}},
	{name: "interface name is lo", rt: ifName("lo"), code: codeLink, at: "CNI_IFNAME", texts: []string{`"lo"`}},

	// The standard input.
	{name: "no JSON", stdin: `{"cniVersion": "1.1.0", "name": "lan", `, code: codeDecode, texts: []string{"network config", "unexpected end"}},
	{name: "nothing", stdin: " ", code: codeDecode, texts: []string{"network config"}},
	{name: "a list", stdin: "[]", code: codeDecode, texts: []string{"network config", "array"}},
	{name: "no name", conf: keys{"name": ""}, code: codeConfig, texts: []string{"network name"}},
	{name: "name is none", conf: keys{"name": "../lan"}, code: codeConfig, texts: []string{"network name", "../lan"}},
	{name: "mtu is a string", conf: keys{"mtu": "1500"}, code: codeDecode, at: "mtu", texts: []string{"string", "int"}},
	{name: "vlan is a string", conf: keys{"vlan": "100"}, code: codeDecode, at: "vlan", texts: []string{"string", "int"}},
	{name: "hostAccess is a number", conf: keys{"hostAccess": 1}, code: codeDecode, at: "hostAccess", texts: []string{"number", "bool"}},
	{name: "bcqueuelen is negative", conf: keys{"bcqueuelen": -1}, code: codeDecode, at: "bcqueuelen", texts: []string{"-1"}},
	{name: "sourceMACs is a string", conf: keys{"mode": "source", "sourceMACs": mac1}, code: codeDecode, at: "sourceMACs", texts: []string{"string"}},
	{name: "ips are a string", conf: keys{"runtimeConfig": keys{"ips": "192.0.2.10"}}, code: codeDecode, at: "runtimeConfig.ips", texts: []string{"string"}},
	{name: "ipam is a string", conf: keys{"ipam": "underlay"}, code: codeDecode, at: "ipam", texts: []string{"string", "object"}},
	{name: "ipam.type is a number", conf: keys{"ipam": keys{"type": 1}}, code: codeDecode, at: "ipam.type", texts: []string{"number", "string"}},
	{name: "ipam.ranges is an object", conf: pool(`"ranges": {}`), code: codeDecode, at: "ipam.ranges", texts: []string{"object"}},
	{name: "a range is null", conf: pool(`"ranges": [[null]]`), code: codeDecode, at: "ipam.ranges[0][0]", texts: []string{"null"}},
	{name: "ipam is null", conf: keys{"ipam": nil}},
	{name: "ipam is empty", conf: keys{"ipam": keys{}}},
	{name: "prevResult is a number", conf: keys{"master": "", "prevResult": 1}, code: codeDecode, at: "prevResult"},
	{name: "prevResult has an address that is none", conf: keys{"master": "", "prevResult": keys{"cniVersion": "1.1.0", "ips": []keys{{"address": "x"}}}},
		code: codeDecode, at: "prevResult", texts: []string{"x"}},
	{name: "prevResult names no parent that is there", conf: keys{"master": "", "prevResult": keys{"cniVersion": "1.1.0", "interfaces": []keys{{"name": "lg7"}}}},
		code: codeParent, at: "master", texts: []string{`"lg7"`}},
}

// Bad input gets one error document with the code of its kind, which names the
// field and its place, and nothing has changed then. What only looks odd is
// accepted.
func TestInput(t *testing.T) {
	t.Parallel()
	for _, test := range inputs {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			c1, rt := container(t, h, "c1")
			all := []*lab.Namespace{c1}
			if test.make != nil {
				all = append(all, test.make(t, h, c1)...)
			}
			conf := test.stdin
			if conf == "" {
				conf = placed(t, h, test.conf)
			}
			rt.Args = test.args
			if test.rt != nil {
				test.rt(h, rt)
			}
			before := stateOf(t, h, all...)
			_, err := call{verb: "ADD", rt: rt}.run(t, h, conf)
			if test.code != 0 {
				wantError(t, err, test.code, test.texts...)
				wantPlace(t, err, test.at)
				wantState(t, before, stateOf(t, h, all...))
				return
			}
			wantOK(t, "ADD", err)
			mustLink(t, c1, "eth0")
			_, err = call{verb: "DEL", rt: rt}.run(t, h, conf)
			wantOK(t, "DEL", err)
			wantNoLink(t, c1)
			wantNothingHeld(t, h)
		})
	}
}

// wantPlace: the error begins with the place of what is wrong.
func wantPlace(t *testing.T, err error, place string) {
	t.Helper()
	var failure *types.Error
	if place != "" && errors.As(err, &failure) && !strings.HasPrefix(failure.Msg, place+": ") {
		t.Errorf("error %q does not begin with %q", failure, place)
	}
}
