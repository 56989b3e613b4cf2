package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// three hosts with a block of each family, whose agents run, and the routes to
// the other two that n1 has then.
func three(t *testing.T, change ...func(*Config)) (n1, n2, n3 *host, routes string) {
	t.Helper()
	b := newBed(t)
	n1, n2, n3 = b.host(), b.host(), b.host()
	// A node that has nothing of a family would get a block by itself.
	b.lease(n1.id(), "2001:db8:5::/122")
	b.lease(n2.id(), "2001:db8:5::40/122")
	b.lease(n3.id(), "2001:db8:5::80/122")
	b.lease(n1.id(), "10.5.0.0/26")
	b.lease(n2.id(), "10.5.0.64/26")
	b.lease(n3.id(), "10.5.0.128/26")
	for _, h := range b.hosts {
		h.start(append(change, noDrops)...)
	}
	b.lease(n3.id(), "10.5.1.0/26")
	routes = own + to2 + to3 + own6 + to26 + to36
	n1.awaitRoutes("routes to the others", routes)
	return n1, n2, n3, routes
}

// The routes of n1.
const (
	own  = "unreachable 10.5.0.0/26 metric 1048576\n"
	own6 = "unreachable 2001:db8:5::/122 dev lo metric 1048576\n"
	to2  = "10.5.0.64/26 via 192.0.2.2 dev eth1\n"
	to26 = "2001:db8:5::40/122 via 2001:db8::2 dev eth1 metric 1024\n"
	to3  = "10.5.0.128/26 via 192.0.2.3 dev eth1\n10.5.1.0/26 via 192.0.2.3 dev eth1\n"
	to36 = "2001:db8:5::80/122 via 2001:db8::3 dev eth1 metric 1024\n"
)

func TestThreeHosts(t *testing.T) {
	t.Parallel()
	n1, n2, n3, _ := three(t)
	n3.awaitRoutes("routes to the others", `10.5.0.0/26 via 192.0.2.1 dev eth1
10.5.0.64/26 via 192.0.2.2 dev eth1
unreachable 10.5.0.128/26 metric 1048576
unreachable 10.5.1.0/26 metric 1048576
2001:db8:5::/122 via 2001:db8::1 dev eth1 metric 1024
2001:db8:5::40/122 via 2001:db8::2 dev eth1 metric 1024
unreachable 2001:db8:5::80/122 dev lo metric 1048576
`)
	n2.awaitRoutes("routes to the others", `10.5.0.0/26 via 192.0.2.1 dev eth1
unreachable 10.5.0.64/26 metric 1048576
`+to3+`2001:db8:5::/122 via 2001:db8::1 dev eth1 metric 1024
unreachable 2001:db8:5::40/122 dev lo metric 1048576
`+to36)
	// Packets go both ways, and what no container has is answered.
	n1.ip("addr add 10.5.0.5/32 dev lo\naddr add 2001:db8:5::5/128 dev lo nodad")
	n2.ip("addr add 10.5.0.65/32 dev lo\naddr add 2001:db8:5::45/128 dev lo nodad")
	for from, to := range map[string]string{"10.5.0.5": "10.5.0.65", "2001:db8:5::5": "2001:db8:5::45"} {
		// The kernel takes its time until an address of IPv6 is one of its own.
		await(t, from+" pings "+to, "1 received", func() string {
			out := netnstest.Run(t, n1.ns, "sh", "-c", "ping -n -q -c 1 -W 2 -I "+from+" "+to+" || true")
			_, out, _ = strings.Cut(out, "transmitted, ")
			out, _, _ = strings.Cut(out, ",")
			return out
		})
	}
	var lines []string
	for _, p := range n1.Peers("pods") {
		lines = append(lines, strings.Join([]string{p.Name, p.Address.String(), p.Dev, string(p.State), p.Reason}, " "))
	}
	want := []string{"n2 192.0.2.2 eth1 direct ", "n2 2001:db8::2 eth1 direct ", "n3 192.0.2.3 eth1 direct ", "n3 2001:db8::3 eth1 direct "}
	if !slices.Equal(lines, want) {
		t.Errorf("peers %q, want %q", lines, want)
	}
}

// TestAddresses: peers follow a node to another address, and away from it when
// it is removed.
func TestAddresses(t *testing.T) {
	t.Parallel()
	n1, n2, n3, _ := three(t)
	n2.ip("addr add 192.0.2.22/24 dev eth1\naddr del 192.0.2.2/24 dev eth1\naddr add 192.0.2.22/24 dev eth1")
	n1.awaitRoutes("the other address of n2", strings.Replace(own+to2+to3+own6+to26+to36, "192.0.2.2 ", "192.0.2.22 ", 1))
	n3.stop()
	n1.ip("route add 10.5.2.0/26 via 192.0.2.3 proto 142\nroute add 10.9.0.0/16 via 192.0.2.3")
	must(t, n3.reg.Remove(t.Context(), n3.id(), time.Hour))
	n1.awaitRoutes("no n3", strings.Replace(own+to2+own6+to26, "192.0.2.2 ", "192.0.2.22 ", 1))
	if got := n1.routes("142"); got != "10.5.2.0/26 via 192.0.2.3 dev eth1\n" {
		t.Errorf("another's route: %q", got)
	}
	if len(n1.Peers("")) != 2 {
		t.Errorf("peers %+v", n1.Peers(""))
	}
}

// TestRepair: what is deleted comes back, whatever else is there stays.
func TestRepair(t *testing.T) {
	t.Parallel()
	n1, n2, _, routes := three(t)
	n1.ip("route add 10.9.0.0/16 via 192.0.2.3\nroute add 10.5.0.64/26 via 192.0.2.3 metric 50 proto static")
	foreign := n1.routes("static") + n1.routes("boot")
	n1.ip("route del 10.5.0.64/26 via 192.0.2.2 proto 141\nroute del 2001:db8:5::80/122 proto 141")
	n1.awaitRoutes("deleted routes", routes)

	n1.ip("addr del 192.0.2.1/24 dev eth1")
	n1.awaitRoutes("without an address", own+own6+to26+to36)
	await(t, "unreachable peers", "192.0.2.2 is on no subnet that this node is on", func() string {
		return n1.Peers("pods")[0].Reason
	})
	n1.ip("addr add 192.0.2.1/24 dev eth1")
	n1.awaitRoutes("the address given back", routes)
	// The peers were not told.
	if got := n2.routes("141"); !strings.Contains(got, "10.5.0.0/26 via 192.0.2.1 dev eth1\n") {
		t.Errorf("routes of a peer:\n%s", got)
	}

	n1.ip("link set eth1 down\nlink set eth1 up\naddr add 2001:db8::1/64 dev eth1 nodad")
	n1.awaitRoutes("a link that flaps", routes)
	n1.ip("link set eth1 down")
	n1.awaitRoutes("a link that is down", own+own6)
	await(t, "unreachable peers", `unreachable 192.0.2.2 is on the subnet of "eth1", which is down`, func() string {
		p := n1.Peers("pods")[0]
		return string(p.State) + " " + p.Reason
	})
	n1.ip("link set eth1 up\naddr add 2001:db8::1/64 dev eth1 nodad\nroute add 10.9.0.0/16 via 192.0.2.3\nroute add 10.5.0.64/26 via 192.0.2.3 metric 50 proto static")
	n1.awaitRoutes("a link that is up again", routes)
	if now := n1.routes("static") + n1.routes("boot"); now != foreign {
		t.Errorf("others' routes %q, before %q", now, foreign)
	}

	must(t, n1.Await(t.Context(), ipam.Uses{Network: "pods", Masquerade: true}))
	rules := func() string { return netnstest.Run(t, n1.ns, "nft", "list", "table", "inet", "underlay") }
	before := rules()
	netnstest.Run(t, n1.ns, "nft", "flush", "ruleset")
	await(t, "flushed rules", "yes", func() string {
		if strings.Contains(netnstest.Run(t, n1.ns, "nft", "list", "ruleset"), "table inet underlay") {
			return "yes"
		}
		return "no"
	})
	if now := rules(); now != before {
		t.Errorf("rules:\n%s\nbefore:\n%s", now, before)
	}
}

// TestRestart: routes stay when the agent ends, and those that are still right
// are not touched by the next one. What is wrong by then goes.
func TestRestart(t *testing.T) {
	t.Parallel()
	n1, _, n3, routes := three(t)
	n1.stop()
	if got := n1.routes("141"); got != routes {
		t.Errorf("without an agent:\n%s", got)
	}
	n3.stop()
	must(t, n3.reg.Remove(t.Context(), n3.id(), time.Hour))
	n1.ip("route add 10.5.7.0/26 via 192.0.2.9 proto 141")
	w, err := nlsock.Watch(n1.ns.Fd(), unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	must(t, err)
	deleted := make(chan int, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		n := 0
		_ = w.Listen(ctx, func(m nlsock.Message) {
			if m.Type == unix.RTM_DELROUTE {
				n++
			}
		}, func() { n += 1000 })
		deleted <- n
	}()
	n1.start(noDrops)
	n1.awaitRoutes("what a new agent sees", own+to2+own6+to26)
	cancel()
	if n := <-deleted; n != 4 {
		t.Errorf("%d routes were deleted, want 4", n)
	}
}

// TestSilent: a peer that does not answer is told, and stays routed to.
func TestSilent(t *testing.T) {
	t.Parallel()
	n1, _, n3, routes := three(t)
	states := func() string {
		var out []string
		for _, p := range n1.Peers("") {
			out = append(out, p.Name+" "+string(p.State))
		}
		return strings.Join(out, ", ")
	}
	await(t, "all answer", "n2 direct, n2 direct, n3 direct, n3 direct", states)
	n3.stop()
	n3.ip("link set eth1 down")
	n1.stop()
	n1.ip("neigh flush dev eth1")
	n1.start(noDrops)
	await(t, "n3 is silent", "n2 direct, n2 direct, n3 silent, n3 silent", states)
	n1.awaitRoutes("it stays", routes)
}

// TestMasquerade: the rules are there before an attachment that needs them, and
// go with the last one.
func TestMasquerade(t *testing.T) {
	t.Parallel()
	n1, _, _, _ := three(t)
	masquerades := func() string {
		out := netnstest.Run(t, n1.ns, "nft", "list", "ruleset")
		switch {
		case !strings.Contains(out, "chain postrouting"):
			return "no"
		case strings.Contains(out, "elements = { 10.5.0.0/16 }") && strings.Contains(out, "192.0.2.3"):
			return "yes"
		}
		return out
	}
	uses := ipam.Uses{Network: "pods", Masquerade: true}
	if got := masquerades(); got != "no" {
		t.Errorf("masquerades without an attachment: %s", got)
	}
	must(t, n1.Await(t.Context(), uses))
	if got := masquerades(); got != "yes" {
		t.Errorf("after Await: %s", got)
	}
	att := ipam.Attachment{Network: "pods", ContainerID: "c1", IfName: "eth0"}
	_, err := n1.l.Allocate(ipam.AllocateRequest{Attachment: att, Uses: uses}, nil)
	must(t, err)
	n1.mu.Lock()
	n1.armed["pods"] = time.Now() // the attachment is on record
	n1.mu.Unlock()
	n1.Stir()
	for range 10 {
		time.Sleep(20 * time.Millisecond)
		if got := masquerades(); got != "yes" {
			t.Fatalf("with an attachment: %s", got)
		}
	}
	_, err = n1.l.Release(ipam.ReleaseRequest{Attachment: att})
	must(t, err)
	n1.Stir()
	await(t, "no attachment any more", "no", masquerades)
}

// TestForwardDrop: a policy that drops is told of, and passed if that is wanted.
// Only while there is one packets are looked at for it.
func TestForwardDrop(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, fix := range []bool{false, true} {
		h := b.host()
		h.start(func(c *Config) { c.FixForwardDrop = fix })
		netnstest.Run(t, h.ns, "nft", "add table inet fw; add chain inet fw forward { type filter hook forward priority 0; policy drop; }")
		want := map[bool]string{false: "inet fw forward (nft) false", true: "inet fw forward (nft) true"}[fix]
		drops := func() (out string) {
			for _, d := range h.Routing().Drops {
				out += d.Chain + map[bool]string{false: " false", true: " true"}[d.Passes]
			}
			return out
		}
		marks := func() string {
			return fmt.Sprint(strings.Contains(netnstest.Run(t, h.ns, "nft", "list", "ruleset"), "from a pool"))
		}
		await(t, h.name, want, drops)
		await(t, h.name+" marks", "true", marks)
		netnstest.Run(t, h.ns, "nft", "delete table inet fw")
		await(t, h.name+" without it", "", drops)
		await(t, h.name+" marks no more", "false", marks)
	}
}

// TestDefaultParent: without parents it is the interface of the default route.
func TestDefaultParent(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	h := b.host()
	h.ip("link add eth2 type veth peer name far\nlink set eth2 up\nlink set far up\naddr add 198.51.100.1/24 dev eth2\nroute add default via 192.0.2.254")
	h.start(noDrops, func(c *Config) { c.Parents = nil })
	told := func() string {
		v, err := b.reg.View(t.Context())
		must(t, err)
		var out []string
		for _, a := range v.Nodes[h.id()].Value.Addresses {
			out = append(out, a.String())
		}
		return strings.Join(out, " ")
	}
	await(t, "addresses", "192.0.2.1 2001:db8::1", told)
	h.ip("route replace default via 198.51.100.254")
	await(t, "another default route", "198.51.100.1", told)
	if got := h.Addresses(); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("198.51.100.1")}) {
		t.Errorf("addresses %s", got)
	}
}
