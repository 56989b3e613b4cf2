package arp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestThoroughFindsSibling(t *testing.T) {
	here, there := siblings(t)
	here.up(t)
	there.up(t)
	as := addrs("192.0.2.10")
	there.assign(t, as...)
	p := here.open(t, as...)
	p.random = func(time.Duration) time.Duration { return 0 }
	got, err := p.Thorough(context.Background())
	must(t, err)
	if diff := cmp.Diff([]Conflict{{as[0], there.ifc.MAC}}, got, compareAddrs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOpenBeforeUp(t *testing.T) {
	here, there := siblings(t)
	there.up(t)
	as := addrs("192.0.2.10", "2001:db8::10")
	there.assign(t, as...)
	p := here.open(t, as...)
	if err := p.Probe(); !errors.Is(err, unix.ENETDOWN) {
		t.Errorf("probe on a link that is down: %v, want %v", err, unix.ENETDOWN)
	}
	if got, err := p.Conflicts(0); len(got) > 0 || err != nil {
		t.Errorf("listen on a link that is down: %v, %v, want nothing", got, err)
	}
	here.up(t)
	must(t, p.Probe())
	got, err := p.Conflicts(soon)
	must(t, err)
	if len(got) == 0 {
		t.Error("no conflict, want what the sibling answered")
	}
}

func TestOpenRefuses(t *testing.T) {
	e := namespace(t)
	six := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	one := addrs("192.0.2.10")
	tests := []struct {
		name  string
		ifc   Iface
		addrs []netip.Addr
		want  string
	}{
		{"loopback", Iface{"lo", 1, six}, one, `interface "lo": not an Ethernet interface`},
		{"no such interface", Iface{"eth7", 7, six}, one, `interface "eth7": bind packet socket: no such device`},
		{"no MAC", Iface{"tun0", 1, nil}, one, `interface "tun0": no Ethernet address: ""`},
		{"zero MAC", Iface{"lo", 1, make(net.HardwareAddr, 6)}, one, `interface "lo": no Ethernet address: "00:00:00:00:00:00"`},
		{"long MAC", Iface{"ib0", 1, append(six, 0, 1)}, one, `interface "ib0": no Ethernet address: "02:00:00:00:00:01:00:01"`},
		{"no addresses", Iface{"lo", 1, six}, nil, `interface "lo": no addresses to probe for`},
		{"multicast", Iface{"lo", 1, six}, addrs("224.0.0.1"), `interface "lo": not a unicast address without zone: "224.0.0.1"`},
		{"broadcast", Iface{"lo", 1, six}, addrs("255.255.255.255"), `interface "lo": not a unicast address without zone: "255.255.255.255"`},
		{"unspecified", Iface{"lo", 1, six}, addrs("::"), `interface "lo": not a unicast address without zone: "::"`},
		{"zone", Iface{"lo", 1, six}, addrs("fe80::1%lo"), `interface "lo": not a unicast address without zone: "fe80::1%lo"`},
		{"invalid", Iface{"lo", 1, six}, []netip.Addr{{}}, `interface "lo": not a unicast address without zone: "invalid IP"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := e.ns.Do(func(ns.NetNS) error {
				p, err := Open(tt.ifc, tt.addrs)
				if err == nil {
					err = errors.Join(errors.New("opened"), p.Close())
				}
				return err
			})
			if err == nil || err.Error() != tt.want {
				t.Errorf("got error\n%v, want\n%s", err, tt.want)
			}
		})
	}
}

func TestAnnounceIsBelieved(t *testing.T) {
	here, there := siblings(t)
	here.up(t)
	there.up(t)
	testBelieved(t, here, there)
}

// A kernel that knows the addresses at another MAC learns the new one.
func testBelieved(t *testing.T, here, there *end) {
	as := addrs("192.0.2.10", "2001:db8::10")
	there.assign(t, addrs("192.0.2.11", "2001:db8::11")...)
	for _, a := range as {
		must(t, there.nl.NeighAdd(&netlink.Neigh{
			LinkIndex: there.ifc.Index, State: netlink.NUD_STALE, IP: a.AsSlice(), HardwareAddr: foreign[:],
		}))
	}
	updates, done := make(chan netlink.NeighUpdate), make(chan struct{})
	defer close(done)
	at := netns.NsHandle(there.ns.Fd())
	must(t, netlink.NeighSubscribeWithOptions(updates, done, netlink.NeighSubscribeOptions{Namespace: &at}))
	must(t, here.open(t, as...).Announce())

	learned := map[string]bool{}
	for late := time.After(soon); len(learned) < len(as); {
		select {
		case u := <-updates:
			if slices.Equal(u.HardwareAddr, here.ifc.MAC) {
				learned[u.IP.String()] = true
			}
		case <-late:
			t.Fatalf("learned only %v", learned)
		}
	}
}

// Close lets the kernel do what is slow about it later, not never.
func TestCloseFreesSocket(t *testing.T) {
	here, _ := siblings(t)
	var p *Prober
	must(t, here.ns.Do(func(ns.NetNS) (err error) {
		p, err = Open(here.ifc, addrs("192.0.2.10"))
		return err
	}))
	if n := here.sockets(t); n != 1 {
		t.Fatalf("%d packet sockets after Open, want 1", n)
	}
	must(t, p.Close())
	eventually(t, func() bool { return here.sockets(t) == 0 })
	if err := p.Close(); !errors.Is(err, unix.EBADF) {
		t.Errorf("second Close: %v, want %v", err, unix.EBADF)
	}
}

// A parent hears the frames of all VLANs on it, and only the untagged ones are
// of its own network.
func TestOtherVLANs(t *testing.T) {
	here, there := veth(t)
	here.up(t)
	there.up(t)
	here.ready(t)
	there.ready(t)
	as := addrs("192.0.2.5", "192.0.2.0", "192.0.2.1")
	p, q := here.open(t, as...), there.open(t, as...)
	tagged := func(a netip.Addr, tci byte) []byte {
		return slices.Insert(arpProbe(q.mac, a), 12, 0x81, 0, 0xe0, tci)
	}
	must(t, q.wire.send(tagged(as[0], 5)))
	must(t, q.wire.send(tagged(as[1], 0)))
	got, err := p.Conflicts(soon)
	must(t, err)
	if diff := cmp.Diff([]Conflict{{as[1], there.ifc.MAC}}, got, compareAddrs); diff != "" {
		t.Errorf("a frame of VLAN 5 and one that is only of high priority (-want +got):\n%s", diff)
	}
}
