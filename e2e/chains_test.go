package e2e_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// outcome is what comes of a chain.
type outcome string

const (
	kept    outcome = "yes"     // what the chained plugin promises is there
	void    outcome = "no"      // ADD succeeds, and the promise is not kept
	failing outcome = "refused" // ADD fails
)

var leaders = []leader{
	{"macvlan", onLAN(keys{"type": "macvlan"})},
	{"macvlan with hostAccess", onLAN(keys{"type": "macvlan", "hostAccess": true})},
	{"hostgw", onRoutes(nil)},
	{"hostgw on a bridge", onRoutes(keys{"bridge": "ul0"})},
	{"vxlan segment + macvlan", onSegment(keys{"type": "macvlan"})},
}

// follower is a plugin of others at the end of a chain.
type follower struct {
	name         string
	conf         keys
	capabilities map[string]any
	// ready comes before the ADD.
	ready func(t *testing.T, s *scene)
	// promise says why the promise is not kept; nil: it is.
	promise func(t *testing.T, s *scene, a *attachment) error
	// blind: without the namespace DEL fails, in the plugin itself.
	blind bool
}

const publishedPort, servedPort, megabit = 8080, 80, 1_000_000

var followers = []follower{
	{
		name: "portmap", conf: keys{"type": "portmap", "backend": "nftables", "capabilities": keys{"portMappings": true}},
		capabilities: map[string]any{"portMappings": []keys{{"hostPort": publishedPort, "containerPort": servedPort, "protocol": "tcp"}}},
		promise:      portReached,
	},
	{
		name: "portmap, backend iptables", conf: keys{"type": "portmap", "backend": "iptables", "capabilities": keys{"portMappings": true}},
		capabilities: map[string]any{"portMappings": []keys{{"hostPort": publishedPort, "containerPort": servedPort, "protocol": "tcp"}}},
		promise:      portReached,
	},
	{name: "firewall", conf: keys{"type": "firewall", "backend": "iptables"}, ready: dropForwarded, promise: letThrough},
	{name: "tuning", conf: keys{"type": "tuning", "mtu": 1400, "sysctl": keys{"net.ipv4.conf.IFNAME.arp_ignore": "2"}}, promise: tuned},
	{
		name: "bandwidth", conf: keys{"type": "bandwidth", "capabilities": keys{"bandwidth": true}},
		capabilities: map[string]any{"bandwidth": keys{
			"ingressRate": 8 * megabit, "ingressBurst": megabit, "egressRate": 8 * megabit, "egressBurst": megabit}},
		promise: slowed,
	},
	{name: "sbr", conf: keys{"type": "sbr"}, promise: bySource, blind: true},
}

// portReached: the host itself reaches the container by its port, and another
// host does.
func portReached(t *testing.T, s *scene, a *attachment) error {
	t.Helper()
	defer serve(t, a.Namespace, servedPort)()
	for _, addr := range a.addrs {
		to := netip.AddrPortFrom(s.host(addr), publishedPort)
		for _, from := range []*lab.Host{s.h1, s.h2} {
			if _, err := send(from.Namespace, to, 1, s.patience); err != nil {
				return fmt.Errorf("from %s: %w", from.Name, err)
			}
		}
	}
	return nil
}

// dropForwarded is a host that forwards only what somebody has it accept.
func dropForwarded(t *testing.T, s *scene) {
	t.Helper()
	for _, family := range []string{"iptables", "ip6tables"} {
		mustDo(t, s.h1.Namespace, slices.Concat([]string{"env"}, s.env, []string{family, "-P", "FORWARD", "DROP"})...)
	}
}

// letThrough: the container reaches others, and one without the firewall does
// not. Others reach it by a rule of the operator's.
func letThrough(t *testing.T, s *scene, a *attachment) error {
	t.Helper()
	other := s.attachment(t, "bare"+a.ID[strings.LastIndex(a.ID, "-")+1:], s.conf(t), nil)
	other.add()
	defer other.del()
	reaches(t, a.station, s.near)
	if got := answered(t, other.station, s.near, enough); len(got) > 0 {
		return fmt.Errorf("%v are reached without it", got)
	}
	silent(t, s.near, a.station)
	admin := func(verb string) {
		for _, addr := range a.addrs {
			program := "iptables"
			if addr.Is6() {
				program = "ip6tables"
			}
			mustDo(t, s.h1.Namespace, slices.Concat([]string{"env"}, s.env, []string{program, verb, "CNI-ADMIN", "-d", addr.String(), "-j", "ACCEPT"})...)
		}
	}
	admin("-I")
	reaches(t, s.near, a.station)
	admin("-D")
	return nil
}

// tuned: the container has the MTU and the sysctl.
func tuned(t *testing.T, _ *scene, a *attachment) error {
	t.Helper()
	sysctl := mustDo(t, a.Namespace, "cat", "/proc/sys/net/ipv4/conf/eth0/arp_ignore")
	if mtu := mustLink(t, a.Namespace, "eth0").MTU; mtu != 1400 || sysctl != "2\n" {
		return fmt.Errorf("MTU is %d, sysctl %q", mtu, sysctl)
	}
	return nil
}

// slowed: what is sent to the container, and what it sends, is held to 8 Mbit/s
// but for the burst.
func slowed(t *testing.T, s *scene, a *attachment) error {
	t.Helper()
	const size, least = 1_500_000, time.Second
	defer serve(t, a.Namespace, servedPort)()
	defer serve(t, s.near.Namespace, servedPort)()
	for _, way := range []struct{ from, to station }{{s.near, a.station}, {a.station, s.near}} {
		took, err := send(way.from.Namespace, netip.AddrPortFrom(way.to.addrs[0], servedPort), size, time.Minute)
		if err != nil {
			return err
		}
		if took < least {
			return fmt.Errorf("%d bytes from %s took %s", size, way.from.ID, took)
		}
	}
	return nil
}

// bySource: what the container sends from its address goes by the gateway, and
// nothing else does.
func bySource(t *testing.T, _ *scene, a *attachment) error {
	t.Helper()
	for i, far := range farAddrs {
		if out, err := a.Exec(t.Context(), "ip", "route", "get", far.String()); err == nil {
			return fmt.Errorf("without a source, the way to %s is %q", far, out)
		}
		if err := asks(a.Namespace, t, a.addrs[i].String(), far); err != nil {
			return err
		}
	}
	return nil
}

// exceptions are the chains that do not work, by who leads and who follows, and
// what is said then. The README of the samples has the reasons.
var exceptions = map[string]map[string]exception{
	"macvlan":                 apartFromHost("from h1"),
	"macvlan with hostAccess": apartFromHost("from h2"),
	"ipvlan l2":               apartFromHost("from h1"),
	"ipvlan l3s":              also(apartFromHost("from h1"), "vrf", exception{void, "unreachable"}),
	"hostgw":                  {"vrf": {void, farAddrs[0].String()}},
	"vxlan segment + macvlan": apartFromHost("from h1"),
}

type exception struct {
	outcome
	says string
}

// apartFromHost are those of links whose packets do not pass the host. unmapped
// says who reaches no port of the host's.
func apartFromHost(unmapped string) map[string]exception {
	return map[string]exception{
		"portmap":                   {void, unmapped},
		"portmap, backend iptables": {void, unmapped},
		"firewall":                  {void, "reached without it"},
		"bandwidth":                 {failing, "no veth peer"},
	}
}

func also(m map[string]exception, name string, e exception) map[string]exception {
	m[name] = e
	return m
}

// expected is what comes of a chain.
func expected(l leader, f follower) exception {
	if e, ok := exceptions[l.name][f.name]; ok {
		return e
	}
	return exception{outcome: kept}
}

// TestChainsTold: the README says of each chain what the tests expect.
func TestChainsTold(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "conf", "chains", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{}
	for _, l := range slices.Concat(leaders, ipvlanLeaders) {
		row := "| " + l.name + " |"
		for _, f := range append(followers[:len(followers):len(followers)], inVRF) {
			if !strings.Contains(f.name, "backend") {
				row += " " + string(expected(l, f).outcome) + " |"
			}
		}
		want = append(want, row)
	}
	_, table, _ := strings.Cut(string(text), "|---|---|---|---|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	got := strings.Split(table, "\n")
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("table of the README (-want +got):\n%s", diff)
	}
}

// TestChains: each of our plugins in front of each of the reference's: ADD,
// CHECK, what the chained one is for, DEL, DEL without a namespace.
func TestChains(t *testing.T) {
	for _, l := range leaders {
		for _, f := range followers {
			t.Run(l.name+"/"+f.name, func(t *testing.T) {
				t.Parallel()
				tryChain(t, newScene(t, l), f, expected(l, f), false, true)
			})
		}
	}
}

// tryChain has a container come and go for each of ends, which says whether its
// namespace is gone before it.
func tryChain(t *testing.T, s *scene, f follower, want exception, ends ...bool) {
	t.Helper()
	if s.patience = soon; want.outcome == void {
		s.patience = enough
	}
	if f.ready != nil {
		f.ready(t, s)
	}
	before := remainsOf(t, s.h1)
	for i, gone := range ends {
		a := s.attachment(t, fmt.Sprintf("c%v", gone), s.conf(t, f.conf), f.capabilities)
		if want.outcome == failing {
			_, err := a.cni.Add(t.Context(), a.conf, a.rt)
			wantSays(t, "ADD", err, want.says)
		} else {
			a.add()
			wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
			if i == 0 {
				wantPromise(t, s, f, a, want)
			}
		}
		if gone {
			mustDo(t, s.h1.Namespace, "ip", "netns", "delete", a.ID)
		} else {
			wantOK(t, "DEL", a.cni.Del(t.Context(), a.conf, a.rt))
			wantNoLink(t, a.Namespace)
		}
		a.rt.NetNS = ""
		for range 2 {
			if err := a.cni.Del(t.Context(), a.conf, a.rt); f.blind {
				wantSays(t, "DEL without a namespace", err, `plugin type="`+f.name+`" failed (delete)`)
			} else {
				wantOK(t, "DEL without a namespace", err)
			}
		}
		if f.blind && gone {
			wantGC(t, s, a)
		}
		wantUndone(t, before, remainsOf(t, s.h1))
		wantSoundLedger(t, s.h1)
		left := filters(t, s.h1)
		for _, word := range append(texts(a.addrs), a.ID) {
			if strings.Contains(left, word) {
				t.Errorf("rules are left that name %s:\n%s", word, left)
			}
		}
	}
}

// wantPromise: the plugin does what it is for, or not, as expected.
func wantPromise(t *testing.T, s *scene, f follower, a *attachment, want exception) {
	t.Helper()
	if err := f.promise(t, s, a); want.outcome == kept {
		wantOK(t, "what the plugin is for", err)
	} else {
		wantSays(t, "what the plugin is for", err, want.says)
	}
	wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
}

// TestChainedMAC: what leads to a container by the MAC that it had at first leads
// to it no more when tuning has given it another; a MAC of the main plugin's own
// is known to all.
func TestChainedMAC(t *testing.T) {
	t.Parallel()
	const mac = "02:00:00:00:00:99"
	s := newScene(t, leader{"", onLAN(keys{"type": "macvlan", "hostAccess": true})})
	a := s.attachment(t, "tuned", s.conf(t, keys{"type": "tuning", "mac": mac}), nil)
	a.add()
	wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
	reaches(t, s.near, a.station)
	silent(t, hostStation(t, s.h1), a.station)
	a.del()
	s.plugins[0]["mac"] = mac
	a.conf = s.conf(t, keys{"type": "tuning", "sysctl": keys{}})
	a.add()
	meet(t, hostStation(t, s.h1), a.station)
	if a.mac != mac {
		t.Errorf("MAC is %s, want %s", a.mac, mac)
	}
	a.del()
}

// wantSays: err is one, with a text.
func wantSays(t *testing.T, what string, err error, says string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v, want an error that says %q", what, err, says)
	}
}

// wantGC: what DEL did not get to goes with GC, which the chained plugin may not
// know.
func wantGC(t *testing.T, s *scene, a *attachment) {
	t.Helper()
	if err := a.cni.GC(t.Context(), a.conf, types.GCAttachment{ContainerID: s.near.ID, IfName: "eth0"}); err != nil {
		t.Logf("GC: %v", err)
	}
}
