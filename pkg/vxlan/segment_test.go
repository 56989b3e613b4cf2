package vxlan

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/pkg/hostnet"
	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
)

func TestSegment(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	s := Segment{Device: device()}
	s.Addrs = nil
	apply := func(made bool) {
		t.Helper()
		got, err := s.Apply(n)
		if err != nil || got != made {
			t.Fatalf("made %v, %v; want %v", got, err, made)
		}
		links := netnstest.Run(t, n, "ip", "-d", "addr")
		for _, want := range []string{"vx7: ", "br7: ", "lg7@", "lp7@", "mcast_snooping 0", "neigh_suppress on"} {
			if !strings.Contains(links, want) {
				t.Errorf("no %q in\n%s", want, links)
			}
		}
		for _, name := range []string{"vx7", "br7", "lg7", "lp7"} {
			l := netnstest.Run(t, n, "ip", "-d", "addr", "show", "dev", name)
			if !strings.Contains(l, "mtu 1450") || !strings.Contains(l, ",UP") || strings.Contains(l, "inet6") {
				t.Errorf("%s", l)
			}
		}
	}
	apply(true)
	apply(false)
	for _, damage := range []string{
		"link set vx7 nomaster", "link set br7 down", "link set lg7 mtu 1300", "link set lp7 down",
	} {
		netnstest.Batch(t, n, "ip", damage)
		apply(false)
	}
	for _, gone := range []string{"vx7", "br7", "lp7"} {
		netnstest.Batch(t, n, "ip", "link del "+gone)
		apply(true)
	}
	for range 2 {
		if err := RemoveSegment(n, 7); err != nil {
			t.Fatal(err)
		}
	}
	if links := netnstest.Run(t, n, "ip", "-o", "link"); strings.Contains(links, "7:") && strings.Contains(links, "br7") {
		t.Errorf("left:\n%s", links)
	}
	netnstest.Batch(t, n, "ip", "link add lg7 type veth peer name theirs")
	if _, err := s.Apply(n); !errors.Is(err, ErrForeign) {
		t.Errorf("a leg of somebody else: %v", err)
	}
	netnstest.Batch(t, n, "ip", "link del lg7\nlink add lp7 type bridge")
	if _, err := s.Apply(n); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "the bridge lp7") {
		t.Errorf("a port of somebody else: %v", err)
	}
	if links := netnstest.Run(t, n, "ip", "-o", "link"); strings.Contains(links, "vx7") || strings.Contains(links, "br7") || !strings.Contains(links, "lp7") {
		t.Errorf("left of what failed:\n%s", links)
	}
}

// TestLegKeepsMAC: udev gives another MAC to what has one of the kernel's choice.
func TestLegKeepsMAC(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	s := Segment{Device: device()}
	s.Addrs = nil
	if _, err := s.Apply(n); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vx7", "br7", "lg7", "lp7"} {
		// 3 is NET_ADDR_SET (linux/netdevice.h).
		got := netnstest.Run(t, n, "unshare", "-m", "sh", "-c", "mount -t sysfs sysfs /sys && cat /sys/class/net/"+name+"/addr_assign_type")
		if strings.TrimSpace(got) != "3" {
			t.Errorf("%s has a MAC of kind %s", name, got)
		}
	}
}

// TestSegmentNoNetwork: a network takes no segment's device over, nor away.
func TestSegmentNoNetwork(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	s := Segment{Device: device()}
	s.Addrs, s.Network = nil, ""
	if _, err := s.Apply(n); err != nil {
		t.Fatal(err)
	}
	before := netnstest.Run(t, n, "ip", "-o", "link", "show", "dev", "vx7")
	d := device()
	d.Network, d.MAC[5] = "pods", d.MAC[5]+1
	if _, err := d.Apply(n); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "segment 7") {
		t.Errorf("a network with the VNI of a segment: %v", err)
	}
	if err := Remove(n, 7); err != nil {
		t.Error(err)
	}
	if got := netnstest.Run(t, n, "ip", "-o", "link", "show", "dev", "vx7"); got != before {
		t.Errorf("the segment's device was\n%sand is\n%s", before, got)
	}
	if err := RemoveSegment(n, 7); err != nil {
		t.Fatal(err)
	}
	// That of a network is brought back from where somebody has put it.
	if _, err := d.Apply(n); err != nil {
		t.Fatal(err)
	}
	netnstest.Batch(t, n, "ip", "link add theirs type bridge\nlink set vx7 master theirs")
	if made, err := d.Apply(n); err != nil || made {
		t.Errorf("in a bridge: made %v, %v", made, err)
	}
	if got := netnstest.Run(t, n, "ip", "-o", "link", "show", "dev", "vx7"); strings.Contains(got, "master") {
		t.Errorf("in a bridge yet:\n%s", got)
	}
}

// TestSegmentQuiet: who makes a segment as it is already has nobody look again.
func TestSegmentQuiet(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	s := Segment{Device: device()}
	s.Addrs = nil
	apply := func() {
		t.Helper()
		if _, err := s.Apply(n); err != nil {
			t.Fatal(err)
		}
	}
	apply()
	h, err := hostnet.Open(n)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan struct{}, 100)
	ended := make(chan error)
	go func() { ended <- h.Watch(ctx, nil, func() { heard <- struct{}{} }) }()
	<-heard // the start
	rest := func() (news int) {
		for {
			select {
			case <-heard:
				news++
			case <-time.After(200 * time.Millisecond):
				return news
			}
		}
	}
	rest() // what the making has led to
	apply()
	if n := rest(); n > 0 {
		t.Errorf("heard %d times of what has not changed", n)
	}
	netnstest.Batch(t, n, "bridge", "link set dev vx7 neigh_suppress off learning on")
	rest()
	apply()
	if rest() == 0 || !strings.Contains(netnstest.Run(t, n, "ip", "-d", "link", "show", "dev", "vx7"), "learning off") {
		t.Error("what has changed is not mended")
	}
	cancel()
	<-ended
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

// TestSegmentReach: containers on two hosts, on macvlan on the legs, reach each
// other by what is known of them alone; nothing is flooded, since there is no
// entry for that. With one, what is not known is reached, too.
func TestSegmentReach(t *testing.T) {
	t.Parallel()
	hosts := [2]*netns.NS{netnstest.New(t), netnstest.New(t)}
	netnstest.Batch(t, hosts[0], "ip", fmt.Sprintf("link add eth1 type veth peer name eth1 netns /proc/%d/fd/%d", os.Getpid(), hosts[1].Fd()))
	vtep := func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprint("192.0.2.", i+1)) }
	mac := func(i, c int) neigh.MAC { return neigh.MAC{2, 0, 0, 0, byte(i), byte(c)} }
	addrs := func(i, c int) []netip.Addr {
		return []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.9.%d.%d", i, c)), netip.MustParseAddr(fmt.Sprintf("fd00:9::%d:%d", i, c))}
	}
	var containers [2][2]*netns.NS // the second one of a host is in no registry
	apply := func(flood bool) {
		t.Helper()
		for i, n := range hosts {
			var endpoints []Endpoint
			for j := range hosts {
				e := Endpoint{Peer: fmt.Sprint("n", j), MAC: mac(j, 1), Addrs: addrs(j, 1)}
				if j != i {
					e.VTEP = vtep(j)
				}
				endpoints = append(endpoints, e)
			}
			var vteps []Peer
			if flood {
				vteps = []Peer{{Name: fmt.Sprint("n", 1-i), VTEP: vtep(1 - i)}}
			}
			r, err := neigh.New(neigh.Config{Netns: n, Devices: Devices(7)})
			if err == nil {
				err = errors.Join(r.Apply(t.Context(), Segmented(7, vteps, endpoints)), r.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, n := range hosts {
		netnstest.Batch(t, n, "ip", fmt.Sprintf("link set eth1 up\naddr add %s/24 dev eth1", vtep(i)))
		s := Segment{Device{VNI: 7, Port: 8472, Parent: "eth1", Local: vtep(i), MAC: MAC(fmt.Sprint("n", i), "red")}}
		if _, err := s.Apply(n); err != nil {
			t.Fatal(err)
		}
		for c := range containers[i] {
			in := netnstest.New(t)
			containers[i][c] = in
			netnstest.Batch(t, n, "ip", fmt.Sprintf("link add link lg7 name c%d address %s netns /proc/%d/fd/%d type macvlan mode bridge", c, mac(i, c+1), os.Getpid(), in.Fd()))
			a := addrs(i, c+1)
			netnstest.Batch(t, in, "ip", fmt.Sprintf("link set c%d up\naddr add %s/16 dev c%d\naddr add %s/64 dev c%d nodad", c, a[0], c, a[1], c))
		}
	}
	ping := func(from *netns.NS, to netip.Addr, want bool) {
		t.Helper()
		wait := "10"
		if !want {
			wait = "1"
		}
		ok := from.Do(func() error { return command("ping", "-n", "-q", "-c", "1", "-i", "0.2", "-w", wait, to.String()) }) == nil
		if ok != want {
			t.Errorf("%s answers: %v", to, ok)
		}
	}
	apply(false)
	for _, a := range addrs(1, 1) {
		ping(containers[0][0], a, true)
	}
	for _, a := range addrs(1, 2) {
		ping(containers[0][0], a, false)
	}
	apply(true)
	for _, a := range append(addrs(1, 1), addrs(1, 2)...) {
		ping(containers[0][0], a, true)
	}
	ping(containers[1][1], addrs(0, 1)[0], true)
}
