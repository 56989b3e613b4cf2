package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// segment is a node with a pod behind it, and a router to a host outside:
//
//	pod 10.5.1.2 -- node 192.0.2.1 -- far 192.0.2.9, which is also a pod
//	                                  of another node, 10.5.2.2, and a VTEP
type segment struct{ pod, node, far space }

func newSegment(t *testing.T) segment {
	s := segment{newSpace(t), newSpace(t), newSpace(t)}
	pid := func(x space) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), x.ns.Fd()) }
	s.node.sh(t, fmt.Sprintf(`
		ip link add p0 type veth peer name eth0 netns %s
		ip link add u0 type veth peer name eth0 netns %s
		ip addr add 10.5.1.1/26 dev p0; ip addr add 2001:db8:5:1::1/64 dev p0 nodad
		ip addr add 192.0.2.1/24 dev u0; ip addr add 2001:db8::1/64 dev u0 nodad
		ip link set p0 up; ip link set u0 up; ip link set lo up
		ip route add 10.5.2.0/26 via 192.0.2.9; ip -6 route add 2001:db8:5:2::/64 via 2001:db8::9
		echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding`, pid(s.pod), pid(s.far)))
	s.pod.sh(t, `
		ip addr add 10.5.1.2/26 dev eth0; ip addr add 2001:db8:5:1::2/64 dev eth0 nodad
		ip link set lo up; ip link set eth0 up
		ip route add default via 10.5.1.1; ip -6 route add default via 2001:db8:5:1::1`)
	s.far.sh(t, `
		ip addr add 192.0.2.9/24 dev eth0; ip addr add 2001:db8::9/64 dev eth0 nodad
		ip addr add 192.0.2.10/24 dev eth0
		ip addr add 10.5.2.2/32 dev lo; ip addr add 2001:db8:5:2::2/128 dev lo nodad
		ip link set lo up; ip link set eth0 up
		ip route add 10.5.1.0/26 via 192.0.2.1; ip -6 route add 2001:db8:5:1::/64 via 2001:db8::1`)
	return s
}

func (s space) socket(t *testing.T, addr string, port uint16) (conn *net.UDPConn) {
	t.Helper()
	// A closed socket lives on for a moment in a process that another test is
	// starting.
	waitFor(t, "the port", func() bool {
		err := s.ns.Do(func() (err error) {
			conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), port)))
			return err
		})
		if err != nil && !errors.Is(err, unix.EADDRINUSE) {
			t.Fatal(err)
		}
		return err == nil
	})
	return conn
}

// sees is the source address that the receiver sees of a packet; "" if none
// comes. Neighbours have to be found first, so there are several tries, and few
// where nothing is expected.
func sees(t *testing.T, from space, src string, to space, dst string, port uint16, expected bool) string {
	t.Helper()
	receiver, sender := to.socket(t, dst, port), from.socket(t, src, 0)
	defer receiver.Close()
	defer sender.Close()
	tries := 2
	if expected {
		tries = 50
	}
	buf := make([]byte, 16)
	for range tries {
		_, err := sender.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(netip.MustParseAddr(dst), port))
		must(t, err)
		must(t, receiver.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		_, source, err := receiver.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			t.Fatal(err)
		}
		return source.Addr().Unmap().String()
	}
	return ""
}

func TestMasquerade(t *testing.T) {
	t.Parallel()
	s := newSegment(t)
	r := s.node.reconciler(t, Config{})
	want := Ruleset{
		Forward:    prefixes("10.5.0.0/16 2001:db8:5::/48"),
		Masquerade: prefixes("10.5.1.0/26 2001:db8:5:1::/64"),
	}
	must(t, r.Apply(t.Context(), want))
	check := func(what string, from space, src string, to space, dst string, want string) {
		t.Helper()
		if got := sees(t, from, src, to, dst, 7000, true); got != want {
			t.Errorf("%s: %s sees %q, want %q", what, dst, got, want)
		}
	}
	check("out of the cluster", s.pod, "10.5.1.2", s.far, "192.0.2.9", "192.0.2.1")
	check("out of the cluster, IPv6", s.pod, "2001:db8:5:1::2", s.far, "2001:db8::9", "2001:db8::1")
	check("to a pod", s.pod, "10.5.1.2", s.far, "10.5.2.2", "10.5.1.2")
	check("to a pod, IPv6", s.pod, "2001:db8:5:1::2", s.far, "2001:db8:5:2::2", "2001:db8:5:1::2")
	check("from outside", s.far, "192.0.2.9", s.pod, "10.5.1.2", "192.0.2.9")
	check("from outside, IPv6", s.far, "2001:db8::9", s.pod, "2001:db8:5:1::2", "2001:db8::9")

	want.Nodes = addrs("192.0.2.9 2001:db8::9")
	must(t, r.Apply(t.Context(), want))
	check("to a node", s.pod, "10.5.1.2", s.far, "192.0.2.9", "10.5.1.2")
	check("to a node, IPv6", s.pod, "2001:db8:5:1::2", s.far, "2001:db8::9", "2001:db8:5:1::2")
}

// A drop elsewhere wins, until its command is run.
func TestForwardDrop(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, script string }{
		{"Docker", "iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; iptables-nft -I FORWARD -j DOCKER-USER"},
		{"nftables", "nft 'add table inet fw; add chain inet fw f1 { type filter hook forward priority 0; policy drop; }'"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSegment(t)
			s.node.sh(t, tt.script)
			must(t, s.node.reconciler(t, Config{}).Apply(t.Context(), Ruleset{Forward: prefixes("10.5.1.0/26")}))
			if got := sees(t, s.pod, "10.5.1.2", s.far, "192.0.2.9", 7000, false); got != "" {
				t.Errorf("passes from %s, and should be dropped", got)
			}
			found, err := Drops(t.Context(), s.node.ns)
			must(t, err)
			for _, d := range found {
				must(t, d.Fix(t.Context(), s.node.ns))
			}
			if got := sees(t, s.pod, "10.5.1.2", s.far, "192.0.2.9", 7000, true); got != "10.5.1.2" {
				t.Errorf("after the command, %q is seen", got)
			}
			if got := sees(t, s.far, "192.0.2.9", s.pod, "10.5.1.2", 7000, true); got != "192.0.2.9" {
				t.Errorf("back, %q is seen", got)
			}
		})
	}
}

func TestGuard(t *testing.T) {
	t.Parallel()
	s := newSegment(t)
	r := s.node.reconciler(t, Config{})
	must(t, r.Apply(t.Context(), Ruleset{Ports: []uint16{8472}, VTEPs: addrs("192.0.2.9")}))
	check := func(src, dst string, port uint16, want string) {
		t.Helper()
		if got := sees(t, s.far, src, s.node, dst, port, want != ""); got != want {
			t.Errorf("from %s to %s port %d: %q comes, want %q", src, dst, port, got, want)
		}
	}
	check("192.0.2.9", "192.0.2.1", 8472, "192.0.2.9")
	check("192.0.2.10", "192.0.2.1", 8472, "")
	check("192.0.2.10", "192.0.2.1", 7000, "192.0.2.10")
	check("2001:db8::9", "2001:db8::1", 8472, "")
	must(t, r.Apply(t.Context(), Ruleset{Ports: []uint16{8472}, VTEPs: addrs("192.0.2.10 2001:db8::9")}))
	check("192.0.2.9", "192.0.2.1", 8472, "")
	check("192.0.2.10", "192.0.2.1", 8472, "192.0.2.10")
	check("2001:db8::9", "2001:db8::1", 8472, "2001:db8::9")
}
