package network

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/agent/network/bridges"
	"github.com/underlay-cni/underlay/pkg/flock"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
)

// TestBridgeGateways: a node bridge is the gateway of the blocks that this node
// has, and of no others, which another node may have. Somebody else's bridge is
// left as it is, and so is what a container may still use.
func TestBridgeGateways(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n1, n2 := b.host(), b.host()
	b.lease(n1.id(), "2001:db8:5::/122")
	b.lease(n1.id(), "10.5.0.0/26")
	b.lease(n1.id(), "10.5.1.0/26")
	b.lease(n2.id(), "10.5.2.0/26")
	b.lease(n2.id(), "2001:db8:5::40/122")
	run := t.TempDir()
	n2.start(noDrops)
	n1.start(noDrops, func(c *Config) { c.RunDir = run })
	must(t, n1.ns.Do(func() error {
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		_, _, err = h.EnsureBridge("ul0")
		return err
	}))
	n1.ip("link add br9 type bridge\nlink set br9 addrgenmode none\nlink set br9 up")
	addrs := func(dev string) string {
		var out []string
		for line := range strings.Lines(netnstest.Run(t, n1.ns, "ip", "-o", "addr", "show", "dev", dev, "scope", "global")) {
			out = append(out, strings.Fields(line)[3])
		}
		return strings.Join(out, " ")
	}
	n1.awaitRoutes("its blocks", own+"unreachable 10.5.1.0/26 metric 1048576\n"+"10.5.2.0/26 via 192.0.2.2 dev eth1\n"+own6+to26)
	// 10.5.1.0/26 goes back in a moment, 10.5.2.0/26 and 2001:db8:5::80/122 went before.
	n1.ip(`addr add 10.5.2.1/26 dev br9
addr add 10.5.0.1/26 dev ul0
addr add 10.5.1.1/26 dev ul0
addr add 10.5.2.1/26 dev ul0
addr add 10.9.0.1/26 dev ul0
addr add 2001:db8:5::1/122 dev ul0 nodad
addr add 2001:db8:5::81/122 dev ul0 nodad`)
	await(t, "what went before", "10.5.0.1/26 10.5.1.1/26 10.9.0.1/26 2001:db8:5::1/122", func() string { return addrs("ul0") })
	if got := addrs("br9"); got != "10.5.2.1/26" {
		t.Errorf("somebody else's bridge has %q", got)
	}
	// A record that is still there: the node was removed while it was off.
	cidr := netip.MustParsePrefix("10.5.1.0/26")
	must(t, n1.l.Confirm())
	held := ipam.Attachment{Network: "pods", ContainerID: "c", IfName: "eth0"}
	_, err := n1.l.Allocate(ipam.AllocateRequest{Attachment: held, Cluster: "pods", Addresses: []netip.Addr{netip.MustParseAddr("10.5.1.9")}}, nil)
	must(t, err)
	b.lease(n2.id(), cidr.String())
	await(t, "the ledger knows of it", "false", func() string {
		bk, err := n1.l.Book(b.pool.UUID, cidr)
		must(t, err)
		return map[bool]string{true: "true", false: "false"}[len(bk.Marks) > 1]
	})
	n1.ip("addr add 10.5.2.1/26 dev ul0")
	await(t, "while a container has an address of it", "10.5.0.1/26 10.5.1.1/26 10.9.0.1/26 2001:db8:5::1/122", func() string { return addrs("ul0") })
	_, err = n1.l.Release(ipam.ReleaseRequest{Attachment: held})
	must(t, err)
	n1.ip("addr add 10.5.2.1/26 dev ul0") // the host's network is looked at
	await(t, "when nobody has", "10.5.0.1/26 10.9.0.1/26 2001:db8:5::1/122", func() string { return addrs("ul0") })

	// While an ADD is about to use the bridge it is not touched.
	unlock, err := flock.Parent(t.Context(), run, "ul0")
	must(t, err)
	defer unlock()
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	gone, err := bridges.Trim(soon, n1.ns, run, "ul0", func(netip.Prefix) (bool, error) { return true, nil })
	if !errors.Is(err, context.DeadlineExceeded) || len(gone) > 0 {
		t.Errorf("beside an ADD: %v, %v", gone, err)
	}
}
