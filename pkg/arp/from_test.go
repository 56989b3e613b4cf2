package arp

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// passthru is a live child and what probers listen on, with one MAC.
func passthru(t testing.TB) (here, there *end) {
	t.Helper()
	return wiring{make: byParent(func(t testing.TB, parent *end) *end {
		return parent.macvlan(t, netlink.MACVLAN_MODE_PASSTHRU)
	})}.live(t)
}

func TestProbeBeforeChild(t *testing.T) {
	t.Parallel()
	testProbeBefore(t, func(parent *end) *end { return parent.macvlan(t, netlink.MACVLAN_MODE_PASSTHRU) })
}

// The parent asks before it has the child, which announces.
func testProbeBefore(t *testing.T, child func(parent *end) *end) {
	parent, there := veth(t)
	parent.up(t)
	there.up(t)
	parent.ready(t)
	as := addrs("192.0.2.10", "2001:db8::10")
	there.assign(t, as...)
	for _, a := range as {
		p := parent.open(t, a)
		must(t, p.Probe())
		expect(t, p, Conflict{a, there.ifc.MAC})
	}
	free := addrs("192.0.2.11", "2001:db8::11")
	p, q := parent.open(t, append(free, last)...), there.open(t, free...)
	must(t, p.Probe())
	here := child(parent)
	here.up(t)
	must(t, here.from(p))
	here.assign(t, free...)
	nothing(t, p, there)
	must(t, p.Announce())
	for i, f := range hear(t, q, 5) {
		if c, _ := parse(f); c.holder != mac(parent.ifc.MAC) || c.probe != (i < 2) {
			t.Errorf("frame %d: %x", i, f)
		}
	}
}

// Frames that come back, and those that others send under our MAC.
func TestReflections(t *testing.T) {
	t.Parallel()
	here, there := passthru(t)
	as := addrs("192.0.2.10", "2001:db8::10")
	p, q := here.open(t, append(as, last)...), there.open(t, as...)
	reflect := func(n int) {
		for _, f := range hear(t, q, n) {
			must(t, q.wire.send(f))
		}
	}
	must(t, p.Probe())
	reflect(2)
	nothing(t, p, there)
	must(t, q.wire.send(arpReply(p.mac, as[0])))
	expect(t, p, Conflict{as[0], here.ifc.MAC})
	must(t, q.wire.send(ndAnnounce(p.mac, as[1])))
	expect(t, p, Conflict{as[1], here.ifc.MAC})
	p.Assigned() // and so does our own kernel answer
	must(t, q.wire.send(arpReply(p.mac, as[0])))
	nothing(t, p, there)
	must(t, p.Announce())
	reflect(3)
	nothing(t, p, there)
}

func TestFromBeforeUp(t *testing.T) {
	t.Parallel()
	parent, there := veth(t)
	parent.up(t)
	there.up(t)
	there.ready(t)
	a := addrs("192.0.2.10")[0]
	there.assign(t, a)
	here := parent.macvlan(t, netlink.MACVLAN_MODE_PASSTHRU)
	here.parent = parent
	p := here.open(t, a)
	if err := p.Probe(); !errors.Is(err, unix.ENETDOWN) {
		t.Errorf("probe from a link that is down: %v, want %v", err, unix.ENETDOWN)
	}
	here.up(t)
	must(t, p.Probe())
	expect(t, p, Conflict{a, there.ifc.MAC})
}

// What is only sent from has no queue to fill.
func TestFromHearsNothing(t *testing.T) {
	t.Parallel()
	here, there := passthru(t)
	a := addrs("192.0.2.10")[0]
	p := here.open(t, a)
	here.parent = nil
	q := here.open(t, a)
	must(t, there.open(t, a).Probe())
	expect(t, p, Conflict{a, there.ifc.MAC})
	expect(t, q, Conflict{a, there.ifc.MAC})
	n, _, err := unix.Recvfrom(p.wire.(*socket).out, make([]byte, 2048), 0)
	if !errors.Is(err, unix.EAGAIN) {
		t.Errorf("read %d bytes: %v, want %v", n, err, unix.EAGAIN)
	}
}

// From can be called again, and Close closes all.
func TestFromFreesSockets(t *testing.T) {
	t.Parallel()
	parent, _ := veth(t)
	one, two := parent.macvlan(t, netlink.MACVLAN_MODE_BRIDGE), parent.macvlan(t, netlink.MACVLAN_MODE_BRIDGE)
	want := func(counts [3]int) {
		t.Helper()
		eventually(t, func() bool { return counts == [3]int{parent.sockets(t), one.sockets(t), two.sockets(t)} })
	}
	var p *Prober
	must(t, parent.ns.Do(func(ns.NetNS) (err error) {
		p, err = Open(parent.ifc, addrs("192.0.2.10", "2001:db8::10"))
		return err
	}))
	want([3]int{1, 0, 0})
	must(t, one.from(p))
	want([3]int{1, 1, 0})
	must(t, two.from(p))
	want([3]int{1, 0, 1})
	must(t, p.Close())
	want([3]int{0, 0, 0})
	if err := p.Close(); !errors.Is(err, unix.EBADF) {
		t.Errorf("second Close: %v, want %v", err, unix.EBADF)
	}
}

// After it has refused, a prober does as before.
func TestFromRefuses(t *testing.T) {
	t.Parallel()
	here, there := passthru(t)
	six := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	tests := []struct {
		name string
		ifc  Iface
		want string
	}{
		{"loopback", Iface{"lo", 1, six}, `interface "lo": not an Ethernet interface`},
		{"no such interface", Iface{"eth7", 1 << 30, six}, `interface "eth7": bind packet socket: no such device`},
		{"no MAC", Iface{"eth0", here.ifc.Index, nil}, `interface "eth0": no Ethernet address: ""`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, q := here.open(t, golden4), there.open(t, golden4)
			err := here.ns.Do(func(ns.NetNS) error { return p.From(tt.ifc) })
			if err == nil || err.Error() != tt.want {
				t.Errorf("got error\n%v, want\n%s", err, tt.want)
			}
			eventually(t, func() bool { return here.sockets(t) == 1 })
			must(t, p.Announce())
			want := []string{string(arpAnnounce(mac(here.ifc.MAC), golden4)), string(arpReply(mac(here.ifc.MAC), golden4))}
			var got []string
			for _, f := range hear(t, q, 2) {
				got = append(got, string(f))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("frames (-want +got):\n%s", diff)
			}
		})
	}
}

// sockets counts the packet sockets in the namespace of the end.
func (e *end) sockets(t testing.TB) int {
	t.Helper()
	return strings.Count(e.proc(t, "packet"), "\n") - 1 // less the heading
}
