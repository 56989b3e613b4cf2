package e2e_test

import (
	"maps"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam"
)

// failure is an ADD of c1/eth0 on h1 that fails at one of its steps.
type failure struct {
	name string
	conf keys
	args [][2]string
	// make is what happens before, as in input; h2 is another host.
	make func(t *testing.T, h *lab.Host, c1 *lab.Namespace) []*lab.Namespace
	h2   []string // commands on h2
	// foreign is the script of an IPAM plugin, and calls those it gets. The
	// specification has a plugin whose ADD fails called with DEL, too.
	foreign string
	calls   []string
	code    uint
	texts   []string
	// quarantined are the addresses that the failure has found in use.
	quarantined []string
}

// answers is the script of an IPAM plugin that gives this at ADD.
func answers(result string) string {
	return "[ $CNI_COMMAND != ADD ] || echo '" + result + "'"
}

// sibling is the name of the one on eth1: part of the digest of that name.
const sibling = "ulh980816f3"

const spied = `{"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.77/24"}]}`

// In the order of the steps of an ADD.
var failures = []failure{
	{name: "allocate: exhausted", conf: keys{"ipam": oneAddress("")}, make: beside(keys{"ipam": oneAddress("")}),
		code: codeTryAgain, texts: []string{"1 usable, 1 held"}},
	{name: "allocate: second set exhausted", make: beside(nil),
		conf: pool(`"ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10"}], [{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::10", "rangeEnd": "2001:db8::10"}]]`),
		code: codeTryAgain, texts: []string{"2001:db8::10", "1 usable, 1 held"}},
	{name: "allocate: resolvConf", conf: subnet(`"resolvConf": "/nosuch"`), code: codeConfig, texts: []string{"ipam.resolvConf"}},
	{name: "share: no VLANs", conf: keys{"vlan": 100}, make: without8021q, code: codeParent, texts: []string{"8021q"}},
	{name: "share: no VLANs, with hostAccess", conf: keys{"vlan": 100, "hostAccess": true}, make: without8021q, code: codeParent, texts: []string{"8021q"}},
	{name: "share: name of the sibling taken", conf: keys{"hostAccess": true}, make: on("ip link add " + sibling + " type bridge"),
		code: codeParent, texts: []string{"host access", sibling}},
	{name: "create: name taken", make: on("ip -n NETNS link add eth0 type bridge"), code: codeLink, texts: []string{"CNI_IFNAME", "bridge"}},
	{name: "create: name taken, with hostAccess", conf: keys{"hostAccess": true}, make: on("ip -n NETNS link add eth0 type bridge"),
		code: codeLink, texts: []string{"CNI_IFNAME", "bridge"}},
	{name: "create: name taken, with hostAccess beside another", conf: keys{"hostAccess": true}, code: codeLink, texts: []string{"CNI_IFNAME", "bridge"},
		make: func(t *testing.T, h *lab.Host, c1 *lab.Namespace) []*lab.Namespace {
			on("ip -n NETNS link add eth0 type bridge")(t, h, c1)
			return beside(keys{"hostAccess": true})(t, h, c1)
		}},
	{name: "create: parent busy", make: on("ip link add br1 up type bridge", "ip link set eth1 master br1"), code: codeParent, texts: []string{"br1"}},
	{name: "ask: foreign IPAM fails", foreign: `[ $CNI_COMMAND != ADD ] || { echo '{"cniVersion": "1.1.0", "code": 77, "msg": "sold out"}'; exit 1; }`, calls: []string{"ADD", "DEL"},
		code: 77, texts: []string{`ipam "spy"`, "sold out"}},
	{name: "ask: foreign IPAM gives no address", foreign: answers(`{"cniVersion": "1.1.0"}`), calls: []string{"ADD", "DEL"},
		code: codeIO, texts: []string{`ipam "spy"`, "no addresses"}},
	{name: "ask: foreign IPAM gives no result", foreign: answers("{"), calls: []string{"ADD", "DEL"}, code: codeIO, texts: []string{`ipam "spy"`}},
	{name: "meet: foreign IPAM, host without address", conf: keys{"hostAccess": true}, make: on("ip addr flush dev eth1"),
		foreign: answers(spied), calls: []string{"ADD", "DEL"}, code: codeConfig, texts: []string{"hostAccess", "eth1"}},
	{name: "meet: host without address", conf: keys{"hostAccess": true}, make: on("ip addr flush dev eth1"), code: codeConfig, texts: []string{"hostAccess", "eth1"}},
	{name: "configure: MAC of a sibling", conf: keys{"mac": mac1}, make: beside(nil, [2]string{"MAC", mac1}), code: codeLink, texts: []string{mac1}},
	{name: "configure: conflict on a requested address", args: [][2]string{{"IP", "192.0.2.15"}}, h2: []string{"ip addr add 192.0.2.15/24 dev eth1"},
		code: codeConflict, texts: []string{"192.0.2.15"}, quarantined: []string{"192.0.2.15"}},
	{name: "configure: the same with hostAccess", conf: keys{"hostAccess": true}, args: [][2]string{{"IP", "192.0.2.15"}},
		h2: []string{"ip addr add 192.0.2.15/24 dev eth1"}, code: codeConflict, texts: []string{"192.0.2.15"}, quarantined: []string{"192.0.2.15"}},
	{name: "configure: route without way", conf: subnet(`"rangeStart": "192.0.2.10", "routes": [{"dst": "0.0.0.0/0", "gw": "203.0.113.1"}]`), code: codeConfig, texts: []string{"routes", "203.0.113.1"}},
	{name: "configure: second route without way, with hostAccess", code: codeConfig, texts: []string{"routes", "203.0.113.1"},
		conf: merged(subnet(`"rangeStart": "192.0.2.10", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]`), keys{"hostAccess": true})},
	{name: "configure: route of a foreign IPAM without way", calls: []string{"ADD", "DEL"}, code: codeConfig, texts: []string{"routes", "203.0.113.1"},
		foreign: answers(`{"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.77/24"}], "routes": [{"dst": "0.0.0.0/0", "gw": "203.0.113.1"}]}`)},
	{name: "configure: address of a foreign IPAM in use", calls: []string{"ADD", "DEL"}, code: codeConflict, texts: []string{"192.0.2.77"},
		foreign: answers(spied), h2: []string{"ip addr add 192.0.2.77/24 dev eth1"}},
	// New links of this host have no IPv6, and refuse the route to the container.
	{name: "reach: no IPv6 on the sibling", conf: keys{"hostAccess": true}, code: codeIO, texts: []string{"host access", "2001:db8::10"},
		make: on("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")},
	{name: "reach: the same beside another", conf: keys{"hostAccess": true}, code: codeIO, texts: []string{"host access", "2001:db8::11"},
		make: func(t *testing.T, h *lab.Host, c1 *lab.Namespace) []*lab.Namespace {
			all := beside(keys{"hostAccess": true})(t, h, c1)
			on("sysctl -qw net.ipv6.conf."+sibling+".disable_ipv6=1")(t, h, c1)
			return all
		}},
	{name: "reach: the same with a foreign IPAM", conf: keys{"hostAccess": true}, calls: []string{"ADD", "DEL"}, code: codeIO, texts: []string{"host access", "2001:db8::77"},
		foreign: answers(`{"cniVersion": "1.1.0", "ips": [{"address": "2001:db8::77/64"}]}`), make: on("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")},
	{name: "print: two IPv4 addresses in a result for one", code: codeConfig, texts: []string{"cniVersion", "0.2.0"},
		conf: merged(keys{"cniVersion": "0.2.0"}, pool(`"ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "rangeEnd": "192.0.2.19"}], [{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.20"}]]`))},
}

func merged(a, b keys) keys {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// Whatever step of an ADD fails, nothing of it stays: no link in the container
// or on the host, no route to it, nothing held or shared.
func TestAtomic(t *testing.T) {
	t.Parallel()
	for _, test := range failures {
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
			conf, cni, calls := test.conf, b.h1.CNI(ours), func() []string { return nil }
			if test.foreign != "" {
				var folder string
				folder, calls = spy(t, test.foreign)
				conf, cni = merged(keys{"ipam": keys{"type": "spy"}}, conf), b.h1.CNI(ours, folder)
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

// remains is what an ADD that failed could leave.
type remains struct {
	Links map[string][]lab.Link // by namespace
	// Routes and Neighbours of the host; of these, the permanent ones.
	Routes, Neighbours []string
	Held               map[string][]string
	Attachments        []ipam.AttachmentRecord
	Quarantined        []string
}

func remainsOf(t *testing.T, h *lab.Host, containers ...*lab.Namespace) remains {
	t.Helper()
	s := stateOf(t, h, containers...)
	r := remains{Links: s.Links, Held: s.Books.held(), Attachments: s.Books.Attachments}
	// Not of all tables: the kernel adds a local route when an address has
	// passed duplicate detection.
	for _, family := range []string{"-4", "-6"} {
		r.Routes = append(r.Routes, strings.Split(mustDo(t, h.Namespace, "ip", family, "route", "show"), "\n")...)
	}
	r.Neighbours = strings.Split(mustDo(t, h.Namespace, "ip", "neigh", "show", "nud", "permanent"), "\n")
	for _, rec := range s.Books.Addresses {
		if rec.State == ipam.Quarantined {
			r.Quarantined = append(r.Quarantined, rec.Address.Addr().String())
		}
	}
	return r
}

// wantUndone: nothing has changed but addresses that were found in use.
func wantUndone(t *testing.T, before, after remains, quarantined ...string) {
	t.Helper()
	before.Quarantined = append(before.Quarantined, quarantined...)
	if diff := cmp.Diff(before, after, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("something stayed (-before +after):\n%s", diff)
	}
}

// An ADD whose result nobody can read is undone like any that fails: the plugin
// must not die of the write before.
func TestAtomicPrint(t *testing.T) {
	t.Parallel()
	opened := func(name string, flag int) func(*testing.T) (*os.File, func()) {
		return func(t *testing.T) (*os.File, func()) {
			f, err := os.OpenFile(name, flag, 0)
			if err != nil {
				t.Fatal(err)
			}
			return f, func() {}
		}
	}
	tests := []struct {
		name string
		// stdout is that of the plugin; gone is called when the link is there.
		stdout func(t *testing.T) (f *os.File, gone func())
	}{
		{"full disk", opened("/dev/full", os.O_WRONLY)},
		{"not for writing", opened("/dev/null", os.O_RDONLY)},
		{"no reader", func(t *testing.T) (*os.File, func()) {
			r, w := pipe(t)
			r.Close()
			return w, func() {}
		}},
		{"full pipe, and then no reader", func(t *testing.T) (*os.File, func()) {
			r, w := pipe(t)
			fill(t, w)
			return w, func() { r.Close() }
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			c1, rt := container(t, h, "c1")
			before := remainsOf(t, h, c1)

			cmd := call{verb: "ADD", rt: rt}.command(t, placed(t, h, keys{"hostAccess": true}))
			stdout, gone := test.stdout(t)
			defer stdout.Close()
			cmd.Stdout = stdout
			ended := make(chan error, 1)
			go func() { ended <- h.Do(cmd.Run) }()
			eventually(t, "the link or the end", func() bool {
				link, _, _ := c1.Link(t.Context(), "eth0")
				return link.Up || len(ended) > 0
			})
			gone()
			if err := <-ended; err == nil {
				t.Error("the plugin succeeded")
			}
			wantUndone(t, before, remainsOf(t, h, c1))
		})
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// fill writes to a pipe until it takes no more.
func fill(t *testing.T, w *os.File) {
	t.Helper()
	conn, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var full error
	err = conn.Write(func(fd uintptr) bool {
		for full == nil {
			_, full = syscall.Write(int(fd), make([]byte, 4096))
		}
		return true
	})
	if err != nil || full != syscall.EAGAIN {
		t.Fatal(err, full)
	}
}
