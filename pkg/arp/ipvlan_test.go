package arp

import (
	"errors"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

var ipvlans = []struct {
	wiring
	flag netlink.IPVlanFlag
}{
	{ipvlan("bridge", netlink.IPVLAN_FLAG_BRIDGE), netlink.IPVLAN_FLAG_BRIDGE},
	{ipvlan("private", netlink.IPVLAN_FLAG_PRIVATE), netlink.IPVLAN_FLAG_PRIVATE},
	{ipvlan("vepa", netlink.IPVLAN_FLAG_VEPA), netlink.IPVLAN_FLAG_VEPA},
}

func ipvlan(name string, flag netlink.IPVlanFlag) wiring {
	return wiring{name, byParent(func(t testing.TB, parent *end) *end { return parent.ipvlan(t, flag) })}
}

func TestIPVlan(t *testing.T) {
	linktest.Need(t, "ipvlan")
	for _, w := range ipvlans {
		t.Run(w.name+"/conflicts", w.testConflicts)
		t.Run(w.name+"/kernel probe", w.testKernelProbe)
		t.Run(w.name+"/announce", w.testAnnounce)
		t.Run(w.name+"/own frames", w.testOwnFrames)
	}
}

func TestIPVlanProbeBefore(t *testing.T) {
	linktest.Need(t, "ipvlan")
	for _, w := range ipvlans {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			testProbeBefore(t, func(parent *end) *end { return parent.ipvlan(t, w.flag) })
		})
	}
}

// The slaves of a parent are neighbours of one another too, with one MAC.
func TestIPVlanSiblings(t *testing.T) {
	linktest.Need(t, "ipvlan")
	for _, w := range ipvlans {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			here, there := w.live(t)
			sibling := here.parent.ipvlan(t, w.flag)
			sibling.up(t)
			as := addrs("192.0.2.10", "2001:db8::10")
			sibling.assign(t, as...)
			for _, a := range as {
				p, q := here.open(t, a, last), there.open(t, a)
				must(t, p.Probe())
				if w.flag == netlink.IPVLAN_FLAG_VEPA {
					// The answer is on the wire, to be sent back by a switch.
					answer := hear(t, q, 1)[0]
					for c, _ := parse(answer); c.probe; c, _ = parse(answer) {
						answer = hear(t, q, 1)[0]
					}
					nothing(t, p, there)
					must(t, q.wire.send(answer))
				}
				expect(t, p, Conflict{a, sibling.ifc.MAC})

				// What is not heard cannot be taken either.
				ipnet := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
				err := here.nl.AddrAdd(here.link(), &netlink.Addr{IPNet: ipnet, Flags: unix.IFA_F_NODAD})
				if !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("give %s to two slaves: %v, want %v", a, err, unix.EADDRINUSE)
				}
			}
		})
	}
}

func TestIPVlanSiblingsBelieve(t *testing.T) {
	linktest.Need(t, "ipvlan")
	for _, w := range ipvlans {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			here, _ := w.live(t)
			sibling := here.parent.ipvlan(t, w.flag)
			sibling.up(t)
			testBelieved(t, here, sibling)
		})
	}
}
