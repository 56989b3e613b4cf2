package route

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
	"github.com/underlay-cni/underlay/pkg/nlsock"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// host is a namespace with two interfaces, eth1 and eth2, each the end of a
// cable to nowhere. Nothing but its handle keeps it.
type host struct{ ns *netns.NS }

func newHost(t testing.TB) host {
	t.Helper()
	n := netnstest.New(t)
	h := host{n}
	h.ip(t, `link set lo up
link add eth1 type veth peer name wire1
link add eth2 type veth peer name wire2`)
	for _, l := range []string{"wire1", "wire2", "eth1", "eth2"} {
		h.ip(t, "link set "+l+" addrgenmode none\nlink set "+l+" up")
	}
	return h
}

// peers is a host with an address on eth1, and one on eth2.
func newPeers(t testing.TB) host {
	t.Helper()
	h := newHost(t)
	h.ip(t, `addr add 192.0.2.1/24 dev eth1
addr add 2001:db8::1/64 dev eth1 nodad
addr add 198.51.100.1/24 dev eth2
addr add 2001:db8:2::1/64 dev eth2 nodad`)
	return h
}

// ip runs commands of ip, one a line.
func (h host) ip(t testing.TB, commands string) string {
	t.Helper()
	return netnstest.Batch(t, h.ns, "ip", commands)
}

// try runs one command of ip, which may be refused.
func (h host) try(command string) error {
	return h.ns.Do(exec.Command("ip", strings.Fields(command)...).Run)
}

// ofPeers is the scope of a route to a peer; see interior.
var ofPeers = regexp.MustCompile(` scope \d+`)

// routes is what ip shows of a protocol, with one space between any words, and
// without the scopes of routes to peers.
func (h host) routes(t testing.TB, protocol string) string {
	t.Helper()
	var lines []string
	for _, list := range []string{"route show table main proto ", "-6 route show table main proto "} {
		for line := range strings.Lines(h.show(t, list+protocol)) {
			line = ofPeers.ReplaceAllString(strings.ReplaceAll(line, " pref medium", ""), "")
			lines = append(lines, strings.Join(strings.Fields(line), " ")+"\n")
		}
	}
	return strings.Join(lines, "")
}

func (h host) show(t testing.TB, command string) string {
	t.Helper()
	return netnstest.Run(t, h.ns, "ip", strings.Fields(command)...)
}

func (h host) reconciler(t testing.TB, cfg Config) *Reconciler {
	t.Helper()
	cfg.Netns = h.ns
	r, err := New(cfg)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

// run keeps the routes until the test ends.
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

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// parse reads a route as String spells it.
func parse(t testing.TB, s string) (r Route) {
	t.Helper()
	words := strings.Fields(s)
	if words[0] == "unreachable" {
		r.Unreachable, words = true, words[1:]
	}
	r.Dst = prefix(words[0])
	for words = words[1:]; len(words) > 0; words = words[1:] {
		if words[0] == "onlink" {
			r.Onlink = true
			continue
		}
		switch words[0] {
		case "via":
			r.Via = addr(words[1])
		case "dev":
			r.Dev = words[1]
		case "src":
			r.Src = addr(words[1])
		case "metric":
			_, err := fmt.Sscan(words[1], &r.Metric)
			must(t, err)
		case "mtu":
			_, err := fmt.Sscan(words[1], &r.MTU)
			must(t, err)
		default:
			t.Fatalf("route %q: %q", s, words[0])
		}
		words = words[1:]
	}
	return r
}

// wants are routes to peers with the names a, b, c and so on, one a line.
func wants(t testing.TB, lines string) []Want {
	t.Helper()
	var out []Want
	for line := range strings.Lines(lines) {
		out = append(out, Want{Peer: string(rune('a' + len(out))), Object: parse(t, line)})
	}
	return out
}

// changes are the routes that come (+) and go (-) while f runs, as the kernel
// tells of them.
func (h host) changes(t testing.TB, f func()) (told []string) {
	t.Helper()
	w, err := nlsock.Watch(h.ns.Fd(), unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_LINK)
	must(t, err)
	defer w.Close()
	f()
	h.ip(t, "link add end type bridge")
	tbl := &table{id: unix.RT_TABLE_MAIN, protocol: Protocol}
	for ended := false; !ended; {
		must(t, w.Read(func(m nlsock.Message) {
			if ended = ended || m.Type == unix.RTM_NEWLINK; ended {
				return
			}
			tbl.conn, err = nlsock.Dial(h.ns.Fd())
			must(t, err)
			defer tbl.conn.Close()
			tbl.names = nlsock.NewNames(tbl.conn)
			r, ours, err := tbl.parse(m.Body, m.Body[0])
			must(t, err)
			if sign := map[uint16]string{unix.RTM_NEWROUTE: "+", unix.RTM_DELROUTE: "-"}[m.Type]; ours {
				told = append(told, sign+r.Dst.String())
			}
		}))
	}
	return told
}
