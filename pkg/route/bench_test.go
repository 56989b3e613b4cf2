package route

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// many peers, as of a cluster on one L2 segment: each has an address of its own
// and a block.
func many(n int) (out []Want) {
	nth := func(base string, i int) netip.Addr {
		a := addr(base).As4()
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+uint32(i))
		return netip.AddrFrom4(a)
	}
	for i := range n {
		out = append(out, Want{Peer: fmt.Sprintf("node%d", i), Object: Route{
			Dst: netip.PrefixFrom(nth("10.64.0.0", i<<6), 26),
			Via: nth("172.16.1.0", i),
			Dev: "eth1",
		}})
	}
	return out
}

func segment(b *testing.B) host {
	h := newHost(b)
	h.ip(b, "addr add 172.16.0.1/16 dev eth1")
	return h
}

// BenchmarkCold: all peers' routes from nothing, read back too.
func BenchmarkCold(b *testing.B) {
	for _, n := range []int{1000, 5000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			want := many(n)
			var used time.Duration
			for b.Loop() {
				b.StopTimer()
				h := segment(b)
				r := h.reconciler(b, Config{})
				before := cpu()
				b.StartTimer()
				must(b, r.Apply(context.Background(), want))
				used += cpu() - before
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

// BenchmarkOneChange: 5,000 peers' routes are there; 1 of them changes its next hop.
func BenchmarkOneChange(b *testing.B) {
	want := many(5000)
	r := segment(b).reconciler(b, Config{})
	must(b, r.Apply(context.Background(), want))
	for i := 0; b.Loop(); i++ {
		want[17].Object.Via = addr(fmt.Sprintf("172.16.255.%d", i%2))
		must(b, r.Apply(context.Background(), want))
	}
}

// BenchmarkDeletedByHand: the time from the deletion until the route is back, of
// one and of all 5,000.
func BenchmarkDeletedByHand(b *testing.B) {
	want := many(5000)
	for _, tt := range []struct{ name, command string }{
		{"one", "route del " + want[17].Object.Dst.String()},
		{"all", "route flush proto 141"},
	} {
		b.Run(tt.name, func(b *testing.B) {
			h := segment(b)
			r := h.reconciler(b, Config{Resync: time.Hour})
			run(b, r)
			must(b, r.Apply(context.Background(), want))
			last, err := openTable(Config{Netns: h.ns})
			must(b, err)
			defer last.Close()
			var longest time.Duration
			for b.Loop() {
				start := time.Now()
				h.ip(b, tt.command)
				for {
					there, err := last.List(context.Background())
					must(b, err)
					if len(there) == len(want) {
						break
					}
					time.Sleep(time.Millisecond)
				}
				longest = max(longest, time.Since(start))
			}
			b.ReportMetric(float64(longest.Milliseconds()), "ms-longest")
		})
	}
}

// BenchmarkNaive is how flannel does it: for each peer a socket, and the whole
// list three times, before, between and after.
func BenchmarkNaive(b *testing.B) {
	for _, n := range []int{1000, 5000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			want := many(n)
			for b.Loop() {
				b.StopTimer()
				h := segment(b)
				b.StartTimer()
				for _, w := range want {
					oneByOne(b, h, w.Object)
				}
			}
		})
	}
}

func oneByOne(b *testing.B, h host, r Route) {
	nl, err := netlink.NewHandleAt(vnetns.NsHandle(h.ns.Fd()), unix.NETLINK_ROUTE)
	must(b, err)
	defer nl.Close()
	eth1, err := nl.LinkByName("eth1")
	must(b, err)
	dst := &net.IPNet{IP: r.Dst.Addr().AsSlice(), Mask: net.CIDRMask(r.Dst.Bits(), 32)}
	list := func() []netlink.Route {
		found, err := nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
		must(b, err)
		return found
	}
	if len(list()) > 0 {
		b.Fatalf("%s is there", r)
	}
	list()
	must(b, nl.RouteAdd(&netlink.Route{Dst: dst, Gw: r.Via.AsSlice(), LinkIndex: eth1.Attrs().Index}))
	if len(list()) != 1 {
		b.Fatalf("%s is not there", r)
	}
}
