package neigh_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
	"github.com/underlay-cni/underlay/pkg/reconcile"
	"github.com/underlay-cni/underlay/pkg/route"
)

func must(b testing.TB, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// peers have three objects each, as flannel has them: the neighbour of the
// peer's VTEP inside, where frames for its MAC go, and the route to its block.
type peers struct {
	entries []neigh.Want
	routes  []route.Want
}

func newPeers(n int) (p peers) {
	nth := func(base string, i int) netip.Addr {
		a := netip.MustParseAddr(base).As4()
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+uint32(i))
		return netip.AddrFrom4(a)
	}
	for i := range n {
		name, inside, vtep := fmt.Sprintf("node%d", i), nth("10.64.0.0", (i+1)<<6), nth("172.16.1.0", i)
		mac := neigh.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
		p.entries = append(p.entries,
			neigh.Want{Peer: name, Object: neigh.Entry{Kind: neigh.Neighbour, Dev: "vx1", Addr: inside, MAC: mac}},
			neigh.Want{Peer: name, Object: neigh.Entry{Kind: neigh.Self, Dev: "vx1", MAC: mac, Addr: vtep}})
		p.routes = append(p.routes, route.Want{Peer: name, Object: route.Route{
			Dst: netip.PrefixFrom(inside, 26), Via: inside, Dev: "vx1", Onlink: true,
		}})
	}
	return p
}

// vtep is a namespace with a VXLAN device.
func vtep(b *testing.B) *netns.NS {
	n := netnstest.New(b)
	netnstest.Batch(b, n, "ip", `link set lo up
addr add 172.16.0.1/32 dev lo
link add vx1 type vxlan id 1 dstport 8472 local 172.16.0.1 nolearning
link set vx1 up
addr add 10.64.0.0/32 dev vx1`)
	return n
}

// BenchmarkCold: three objects for each peer from nothing, read back too.
func BenchmarkCold(b *testing.B) {
	for _, n := range []int{1000, 5000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			p := newPeers(n)
			var used time.Duration
			for b.Loop() {
				b.StopTimer()
				ns := vtep(b)
				entries, err := neigh.New(neigh.Config{Netns: ns, Devices: []string{"vx1"}})
				must(b, err)
				routes, err := route.New(route.Config{Netns: ns})
				must(b, err)
				before := cpu()
				b.StartTimer()
				must(b, entries.Apply(context.Background(), p.entries))
				must(b, routes.Apply(context.Background(), p.routes))
				b.StopTimer()
				used += cpu() - before
				must(b, errors.Join(entries.Close(), routes.Close()))
				b.StartTimer()
			}
			b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
		})
	}
}

// cpu is the processor time of this process, in the kernel too: what is left of
// a measurement on a busy machine.
func cpu() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkOneChange: of 5,000 peers one gets another VTEP.
func BenchmarkOneChange(b *testing.B) {
	p := newPeers(5000)
	r, err := neigh.New(neigh.Config{Netns: vtep(b), Devices: []string{"vx1"}})
	must(b, err)
	must(b, r.Apply(context.Background(), p.entries))
	for i := 0; b.Loop(); i++ {
		p.entries[1].Object.Addr = netip.MustParseAddr(fmt.Sprintf("172.31.0.%d", 1+i%2))
		must(b, r.Apply(context.Background(), p.entries))
	}
}

// BenchmarkOneByOne is a socket for each object, and no batches.
func BenchmarkOneByOne(b *testing.B) {
	for _, n := range []int{1000, 5000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			p := newPeers(n)
			for b.Loop() {
				b.StopTimer()
				ns := vtep(b)
				b.StartTimer()
				for i := range p.routes {
					each(b, ns, func(nl *netlink.Handle, index int) error { return nl.NeighSet(neighbour(p.entries[2*i], index)) })
					each(b, ns, func(nl *netlink.Handle, index int) error { return nl.NeighSet(neighbour(p.entries[2*i+1], index)) })
					each(b, ns, func(nl *netlink.Handle, index int) error {
						r := p.routes[i].Object
						return nl.RouteReplace(&netlink.Route{
							Dst: &net.IPNet{IP: r.Dst.Addr().AsSlice(), Mask: net.CIDRMask(r.Dst.Bits(), 32)},
							Gw:  r.Via.AsSlice(), LinkIndex: index, Flags: int(netlink.FLAG_ONLINK),
						})
					})
				}
			}
		})
	}
}

func each(b *testing.B, ns *netns.NS, f func(nl *netlink.Handle, index int) error) {
	nl, err := netlink.NewHandleAt(vnetns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	must(b, err)
	defer nl.Close()
	vx1, err := nl.LinkByName("vx1")
	must(b, err)
	must(b, f(nl, vx1.Attrs().Index))
}

func neighbour(w reconcile.Want[neigh.Entry], index int) *netlink.Neigh {
	e := w.Object
	n := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: e.Addr.AsSlice(), HardwareAddr: e.MAC[:]}
	if e.Kind == neigh.Self {
		n.Family, n.Flags = unix.AF_BRIDGE, netlink.NTF_SELF
	}
	return n
}
