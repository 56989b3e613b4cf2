package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// ipvlanBed is two siblings on h1 and a container on h2, all of one mode and
// flag.
type ipvlanBed struct {
	*bed
	mode, flag         string
	c1, c2, c3, s1, s2 station      // s1 and s2 are the hosts themselves
	wire               *lab.Capture // of h2
}

// All combinations of mode and flag, by packets.
func TestIpvlanL2(t *testing.T) {
	linktest.Need(t, "ipvlan", "iptables")
	t.Parallel()
	eachFlag(t, "l2")
}
func TestIpvlanL3(t *testing.T) {
	linktest.Need(t, "ipvlan", "iptables")
	t.Parallel()
	eachFlag(t, "l3")
}
func TestIpvlanL3S(t *testing.T) {
	linktest.Need(t, "ipvlan", "iptables")
	t.Parallel()
	eachFlag(t, "l3s")
}

func eachFlag(t *testing.T, mode string) {
	t.Helper()
	for _, flag := range []string{"bridge", "private", "vepa"} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			b := &ipvlanBed{bed: newIpvlanBed(t, mode), mode: mode, flag: flag}
			conf := ipvlan(t, b.h1, mode, flag, nil)
			b.s1, b.s2, b.wire = hostStation(t, b.h1), hostStation(t, b.h2), hear(t, b.bed)
			b.c1, b.c2 = attach(t, b.h1, "c1", conf).station, attach(t, b.h1, "c2", conf).station
			b.c3 = attach(t, b.h2, "c3", ipvlan(t, b.h2, mode, flag, nil)).station

			who := map[string]station{"c1": b.c1, "c2": b.c2, "c3": b.c3, "s1": b.s1}
			count(t, b.h1, who)
			b.reach(t)
			b.arp(t)
			b.hooks(t, who)
			b.firewall(t)
			if mode != "l2" && flag == "bridge" {
				b.masquerade(t)
			}
			b.broadcast(t)
			b.reflect(t)
		})
	}
}

// reach: everyone reaches the other host and what is on it, which is what makes
// silence between siblings, and between a container and its own host, mean
// something.
func (b *ipvlanBed) reach(t *testing.T) {
	t.Helper()
	for _, c := range []station{b.c1, b.c2} {
		if c.mac != b.s1.mac {
			t.Errorf("MAC of %s is %s, of the parent %s", c.ID, c.mac, b.s1.mac)
		}
		reaches(t, c, b.s2)
	}
	meet(t, b.c1, b.c3)
	reaches(t, b.s1, b.c3)
	strangers := both(b.c1, b.s1)
	if b.flag == "bridge" {
		meet(t, b.c1, b.c2)
	} else {
		strangers = slices.Concat(strangers, both(b.c1, b.c2))
	}
	if b.mode == "l2" {
		reaches(t, b.s2, b.c1)
		quiet(t, strangers...)
		return
	}
	// Who asks for the container itself on the wire gets no answer.
	leadsTo(t, b.h2, b.h1, "dev eth1", "dev eth1")
	quiet(t, append(strangers, [2]station{b.s2, b.c1})...)
	leadsTo(t, b.h2, b.h1, "via 192.0.2.1", "via 2001:db8::1")
	reaches(t, b.s2, b.c1)
}

// arp: in l2 the network hears of the container, by ARP and by neighbour
// discovery. Else it never does, not even when it has come.
func (b *ipvlanBed) arp(t *testing.T) {
	t.Helper()
	for _, saying := range []string{
		fmt.Sprintf("tell %s", b.c1.addrs[0]), fmt.Sprintf("arp reply %s is-at %s", b.c1.addrs[0], b.s1.mac),
		fmt.Sprintf("icmp6 adv %s", b.c1.addrs[1]),
	} {
		said := slices.ContainsFunc(b.wire.Frames(), func(f lab.Frame) bool { return strings.HasSuffix(f.String(), saying) })
		if said != (b.mode == "l2") {
			t.Errorf("on the wire there was %q: %v", saying, said)
		}
	}
}

// broadcast: in l2 what is for everyone reaches everyone, siblings too, whatever
// the flag. In l3 and l3s it goes neither in nor out.
func (b *ipvlanBed) broadcast(t *testing.T) {
	t.Helper()
	mustDo(t, b.c2.Namespace, "sysctl", "-qw", "net.ipv4.icmp_echo_ignore_broadcasts=0")
	inside, err := b.c2.Capture(t.Context(), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	// What comes in is told by the answer: in l3s it comes past the link.
	answers := func(f lab.Frame) bool {
		s := f.String()
		return f.Outgoing && (strings.HasSuffix(s, fmt.Sprintf("%s > %s: icmp reply", b.c2.addrs[0], b.s2.addrs[0])) ||
			strings.HasSuffix(s, fmt.Sprintf("%s > %s: icmp6 reply", b.c2.addrs[1], b.s2.addrs[1])))
	}
	fromC1, fromS2 := shout(t, b.c1, "eth0"), shout(t, b.s2, lab.Parent)
	if b.mode == "l2" {
		for _, frame := range fromC1 {
			heard(t, inside, frame)
			heard(t, b.wire, frame)
		}
		for _, frame := range fromS2 {
			heard(t, inside, frame)
		}
	} else {
		heard(t, b.wire, fromS2[0]) // on its way to all
		for _, f := range slices.Concat(b.wire.Frames(), inside.Frames()) {
			if s := f.String(); slices.Contains(fromC1, s) || answers(f) {
				t.Errorf("broadcast came out of %s, or into %s: %s", b.c1.ID, b.c2.ID, s)
			}
		}
		reaches(t, b.s2, b.c2)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if _, err := inside.Wait(ctx, answers); err != nil {
		t.Errorf("answers of %s: %v", b.c2.ID, err)
	}
}

// shout sends to everyone on the link, in IPv4 and IPv6, and returns the
// frames that this makes.
func shout(t *testing.T, from station, ifName string) []string {
	t.Helper()
	mustDo(t, from.Namespace, "sh", "-c", `
		ping -n -q -c 1 -W 0.3 -b -I $1 255.255.255.255 >/dev/null 2>&1 &
		ping -n -q -c 1 -W 0.3 -I $2 ff02::1%$1 >/dev/null
		wait`, "sh", ifName, from.addrs[1].String())
	return []string{
		fmt.Sprintf("%s > ff:ff:ff:ff:ff:ff: %s > 255.255.255.255: icmp echo", from.mac, from.addrs[0]),
		fmt.Sprintf("%s > 33:33:00:00:00:01: %s > ff02::1: icmp6 echo", from.mac, from.addrs[1]),
	}
}

// reflect: a network that sends back what came from the host is the only way
// between siblings in vepa, and none in private.
func (b *ipvlanBed) reflect(t *testing.T) {
	t.Helper()
	if b.mode == "l2" {
		hairpin(t, b.h1, true)
	} else {
		mustDo(t, b.h2.Namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
			"net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf."+lab.Parent+".send_redirects=0")
		leadsTo(t, b.h1, b.h1, "via 192.0.2.2", "via 2001:db8::2")
	}
	switch b.flag {
	case "private":
		quiet(t, both(b.c1, b.c2)...)
	case "vepa":
		meet(t, b.c1, b.c2)
		meet(t, b.c1, b.s1)
	}
	reaches(t, b.c1, b.s2)
}
