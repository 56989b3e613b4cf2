package neigh

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// host is a namespace with a VXLAN device vx1, another vx2 in the bridge br2,
// and vx6, whose underlay is IPv6. Nothing but its handle keeps it.
type host struct{ ns *netns.NS }

const (
	makeVX1 = "link add vx1 type vxlan id 1 dstport 8472 local 192.0.2.1 nolearning"
	makeVX2 = "link add vx2 type vxlan id 2 dstport 8472 local 192.0.2.1 nolearning"
)

func newHost(t testing.TB) host {
	t.Helper()
	n := netnstest.New(t)
	h := host{n}
	h.ip(t, `link set lo up
addr add 192.0.2.1/32 dev lo
addr add 2001:db8::1/128 dev lo nodad
link add br2 type bridge mcast_snooping 0
link add vx6 type vxlan id 6 dstport 8472 local 2001:db8::1 nolearning`)
	h.ip(t, makeVX1+"\n"+makeVX2+"\nlink set vx2 master br2")
	for _, l := range []string{"vx1", "vx2", "vx6", "br2"} {
		h.ip(t, "link set "+l+" addrgenmode none\nlink set "+l+" up")
	}
	return h
}

var devices = []string{"vx1", "vx2", "vx6", "br2", "vx9"}

// newFake is as newHost.
func newFake() *Fake {
	f := new(Fake)
	f.SetDevice("vx1", FakeDevice{VXLAN: true})
	f.SetDevice("vx2", FakeDevice{VXLAN: true, Port: true})
	f.SetDevice("vx6", FakeDevice{VXLAN: true, IPv6: true})
	f.SetDevice("br2", FakeDevice{})
	return f
}

// ip runs commands of ip, one a line.
func (h host) ip(t testing.TB, commands string) {
	t.Helper()
	netnstest.Batch(t, h.ns, "ip", commands)
}

// bridge runs commands of bridge, one a line.
func (h host) bridge(t testing.TB, commands string) {
	t.Helper()
	netnstest.Batch(t, h.ns, "bridge", commands)
}

// shows is what ip and bridge show of permanent entries of our devices.
func (h host) shows(t testing.TB) string {
	t.Helper()
	var lines []string
	for _, command := range []string{"ip -4 neigh show nud permanent", "ip -6 neigh show nud permanent", "bridge fdb show"} {
		words := strings.Fields(command)
		for line := range strings.Lines(netnstest.Run(t, h.ns, words[0], words[1:]...)) {
			if own := strings.HasSuffix(line, "master br2 permanent\n"); !own && !strings.HasPrefix(line, "33:33:") && !strings.HasPrefix(line, "01:00:") {
				lines = append(lines, strings.TrimSuffix(strings.Join(strings.Fields(line), " "), " PERMANENT")+"\n")
			}
		}
	}
	return strings.Join(lines, "")
}

func (h host) reconciler(t testing.TB, cfg Config) *Reconciler {
	t.Helper()
	cfg.Netns = h.ns
	if cfg.Devices == nil {
		cfg.Devices = devices
	}
	r, err := New(cfg)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

// run keeps the entries until the test ends.
func run(t testing.TB, r *Reconciler) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
}

// parseEntry reads an entry as String spells it.
func parseEntry(t testing.TB, s string) (e Entry) {
	t.Helper()
	words := strings.Fields(s)
	mac := func(s string) (m MAC) {
		m, err := ParseMAC(s)
		must(t, err)
		return m
	}
	switch words[0] {
	case "self":
		return Entry{Kind: Self, MAC: mac(words[1]), Dev: words[3], Addr: netip.MustParseAddr(words[5])}
	case "master":
		return Entry{Kind: Master, MAC: mac(words[1]), Dev: words[3]}
	}
	return Entry{Kind: Neighbour, Addr: netip.MustParseAddr(words[0]), Dev: words[2], MAC: mac(words[4])}
}

// wants are entries for the peers a, b, c and so on, one a line.
func wants(t testing.TB, lines string) (out []Want) {
	t.Helper()
	for line := range strings.Lines(lines) {
		out = append(out, Want{Peer: string(rune('a' + len(out))), Object: parseEntry(t, line)})
	}
	return out
}

// waitFor fails the test if it takes long.
func waitFor(t testing.TB, what string, there func() bool) {
	t.Helper()
	for start := time.Now(); !there(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Fatalf("waited too long for %s", what)
		}
	}
}
