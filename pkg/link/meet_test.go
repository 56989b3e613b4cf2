package link

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// meeting is a host and a container with one address of each family, and all
// that lets them meet through the sibling.
type meeting struct {
	host, container *space
}

// A container has its addresses with the length of their subnet, or alone.
var lengths = [][2]int{{24, 64}, {32, 128}}

func newMeeting(t *testing.T, k childKind, bits [2]int) meeting {
	t.Helper()
	host, sibling := newSibling(t, k)
	container := newSpace(t)
	host.ip(t, "link set lo up")
	host.put(t, container, "eth0", k.create)
	l := container.link(t, "eth0")
	must(t, container.h.Up(l.Index, "", nil))
	pairs := []struct {
		own  netip.Prefix
		host netip.Addr
	}{
		{netip.PrefixFrom(netip.MustParseAddr("192.0.2.10"), bits[0]), netip.MustParseAddr("192.0.2.1")},
		{netip.PrefixFrom(netip.MustParseAddr("2001:db8::10"), bits[1]), netip.MustParseAddr("2001:db8::1")},
	}
	for _, p := range pairs {
		must(t, container.h.AddAddr(l.Index, p.own))
		if !p.own.Masked().Contains(p.host) {
			must(t, container.h.AddRoute(l.Index, Route{Dst: netip.PrefixFrom(p.host, p.host.BitLen()), Scope: -1}))
		}
		must(t, container.h.SetNeighbour(l.Index, p.host, sibling.MAC))
		must(t, host.h.Reach(sibling, p.own.Addr(), p.host, l.MAC))
	}
	return meeting{host, container}
}

// connect has one space connect to an address of another, which sends back whose
// connection it is.
func connect(t *testing.T, from, to *space, addr string, patience time.Duration) (peer string, err error) {
	t.Helper()
	var l net.Listener
	must(t, to.ns.Do(func(ns.NetNS) (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(addr, "0"))
		return err
	}))
	served := make(chan struct{})
	go func() {
		defer close(served)
		if c, err := l.Accept(); err == nil {
			fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()
	defer func() {
		l.Close()
		<-served
	}()
	port := l.Addr().(*net.TCPAddr).Port
	err = from.ns.Do(func(ns.NetNS) error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(addr, strconv.Itoa(port)), patience)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		var b [64]byte
		n, err := c.Read(b[:])
		peer = string(b[:n])
		return err
	})
	return peer, err
}

func (m meeting) check(t *testing.T) {
	t.Helper()
	const patience = 20 * time.Second
	for _, pair := range [][2]string{{"192.0.2.1", "192.0.2.10"}, {"2001:db8::1", "2001:db8::10"}} {
		host, container := pair[0], pair[1]
		if peer, err := connect(t, m.container, m.host, host, patience); peer != container || err != nil {
			t.Errorf("from the container to %s: the host sees %q, %v, want %q", host, peer, err, container)
		}
		if peer, err := connect(t, m.host, m.container, container, patience); peer != host || err != nil {
			t.Errorf("from the host to %s: the container sees %q, %v, want %q", container, peer, err, host)
		}
	}
}

func TestMeet(t *testing.T) {
	t.Parallel()
	for _, bits := range lengths {
		t.Run(fmt.Sprint(bits), func(t *testing.T) {
			t.Parallel()
			newMeeting(t, bridged, bits).check(t)
		})
	}
}

func TestMeetIpvlan(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "ipvlan")
	for _, k := range ipvlans {
		for _, bits := range lengths {
			t.Run(fmt.Sprint(k.mode, bits), func(t *testing.T) {
				t.Parallel()
				newMeeting(t, k, bits).check(t)
			})
		}
	}
}

// Where the host is strict about where packets may come from, only mode l2 has
// a problem, and it is the parent that has it.
func TestStrictRPFilter(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "ipvlan")
	const patience = 300 * time.Millisecond
	rpFilter := func(of string) string { return "net/ipv4/conf/" + of + "/rp_filter" }
	for _, k := range append(ipvlans, bridged) {
		t.Run(k.mode, func(t *testing.T) {
			t.Parallel()
			m := newMeeting(t, k, lengths[0])
			eth1 := m.host.link(t, "eth1")
			tests := []struct {
				all, parent, sibling string
				strict               bool
			}{
				{"0", "0", "1", false},
				{"0", "2", "1", false},
				{"2", "0", "1", false},
				{"2", "1", "1", false},
				{"0", "1", "2", true},
				{"1", "0", "2", true},
				{"1", "1", "2", true},
				{"1", "2", "1", false},
			}
			for _, tt := range tests {
				for of, value := range map[string]string{"all": tt.all, "eth1": tt.parent, SiblingName("eth1"): tt.sibling} {
					m.host.sysctl(t, rpFilter(of), value)
				}
				if strict, err := m.host.h.StrictRPFilter(eth1); strict != tt.strict || err != nil {
					t.Errorf("%+v: strict is %t, %v", tt, strict, err)
				}
				if tt.strict && k.mode == ModeL2 {
					if peer, err := connect(t, m.container, m.host, "192.0.2.1", patience); err == nil {
						t.Errorf("%+v: the container %s reaches the host", tt, peer)
					}
					continue
				}
				m.check(t)
			}
		})
	}
	s := newHost(t)
	if _, err := s.h.StrictRPFilter(Link{Name: "gone", Index: 1 << 20}); err == nil {
		t.Error("a link that is gone has a setting")
	}
}
