package vxlan

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
)

var byValue = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// TestFind: what Apply has made is read back, by VNI and by network.
func TestFind(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	find := func(want Device, there bool) {
		t.Helper()
		got, found, err := Find(n, 7)
		if err != nil || found != there {
			t.Fatalf("found %v, %v", found, err)
		}
		if diff := cmp.Diff(want, got, byValue); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	find(Device{}, false)
	d := device()
	d.Network, d.Addrs = "pods", nil
	if _, err := d.Apply(n); err != nil {
		t.Fatal(err)
	}
	d.MTU = 1450
	find(d, true)
	for network, want := range map[string]bool{"pods": true, "pod": false, "a-network-with-a-name-longer-than-an-interface": false} {
		if got, found, err := FindNetwork(n, network); err != nil || found != want || want && got.VNI != 7 {
			t.Errorf("network %q: %+v, %v, %v", network, got, found, err)
		}
	}
	// It is no segment's, and none takes it, or takes it away.
	s := Segment{Device: device()}
	s.Addrs = nil
	if _, err := s.Apply(n); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), `network "pods"`) {
		t.Errorf("a segment of that VNI: %v", err)
	}
	if err := RemoveSegment(n, 7); err != nil {
		t.Fatal(err)
	}
	find(d, true)
	netnstest.Batch(t, n, "ip", "link del vx7\nlink add vx7 type vxlan id 7 dstport 8472 dev eth1")
	find(Device{}, false)
}

// TestSegmentOf: the VTEP is what every host makes of the parent.
func TestSegmentOf(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	of := func(port int) (s Segment, err error) {
		err2 := n.Do(func() error {
			h, herr := link.Open()
			if herr != nil {
				return herr
			}
			defer h.Close()
			s, err = SegmentOf(h, "eth1", 7, port)
			return nil
		})
		return s, errors.Join(err, err2)
	}
	want := func(local string, port, mtu int) {
		t.Helper()
		s, err := of(port)
		if err != nil {
			t.Fatal(err)
		}
		if port == 0 {
			port = DefaultPort
		}
		d := Device{VNI: 7, Port: port, Parent: "eth1", Local: netip.MustParseAddr(local), MAC: MAC(local, "segment/7"), MTU: mtu}
		if diff := cmp.Diff(d, s.Device, byValue); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	ip := func(lines string) { t.Helper(); netnstest.Batch(t, n, "ip", lines) }
	want("192.0.2.1", 0, 1450)
	want("192.0.2.1", 4789, 1450)
	ip("addr del 192.0.2.1/24 dev eth1\naddr add 169.254.7.7/16 dev eth1 scope link")
	want("2001:db8::1", 0, 1430)
	ip("addr add 2001:db8::9/64 dev eth1 nodad preferred_lft 0") // and is listed first
	want("2001:db8::1", 0, 1430)
	ip("addr add 198.51.100.1/24 dev eth1")
	want("198.51.100.1", 0, 1450)
	apply(t, n, func(s *Segment) { s.MTU = 1400 }, of)
	want("198.51.100.1", 0, 1400) // somebody has asked for it
	ip("link set eth1 mtu 1420")
	want("198.51.100.1", 0, 1370)
	ip("addr flush dev eth1")
	if _, err := of(0); err == nil || !strings.Contains(err.Error(), "ip addr add") {
		t.Errorf("no address: %v", err)
	}
	ip("link del eth1")
	if _, err := of(0); !errors.Is(err, link.ErrNotFound) {
		t.Errorf("no parent: %v", err)
	}
}

func apply(t *testing.T, n *netns.NS, change func(*Segment), of func(int) (Segment, error)) {
	t.Helper()
	s, err := of(0)
	if err != nil {
		t.Fatal(err)
	}
	change(&s)
	if _, err := s.Apply(n); err != nil {
		t.Fatal(err)
	}
}
