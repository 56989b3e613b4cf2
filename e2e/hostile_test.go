package e2e_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// forge sends a frame as it is, whoever it says that it is of.
func forge(t *testing.T, n *lab.Namespace, ifName string, frame []byte) {
	t.Helper()
	err := n.Do(func() error {
		i, err := net.InterfaceByName(ifName)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: i.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// arpReply is a frame in which src says, to the one at dst, that addr is at mac.
func arpReply(t *testing.T, src, mac string, addr netip.Addr, dst station) []byte {
	t.Helper()
	var macs [3]net.HardwareAddr
	for i, text := range []string{src, mac, dst.mac} {
		var err error
		if macs[i], err = net.ParseMAC(text); err != nil {
			t.Fatal(err)
		}
	}
	frame := slices.Concat(macs[2], macs[0])
	for _, v := range []uint16{lab.TypeARP, 1, lab.TypeIPv4, 0x0604, 2} {
		frame = binary.BigEndian.AppendUint16(frame, v)
	}
	return slices.Concat(frame, macs[1], addr.AsSlice(), macs[2], dst.addrs[0].AsSlice())
}

// hears reports whether a frame of the sender, or with the text, comes in while do
// runs and a moment after.
func hears(t *testing.T, n *lab.Namespace, ifName, text string, do func()) bool {
	t.Helper()
	c, err := n.Capture(t.Context(), ifName)
	if err != nil {
		t.Fatal(err)
	}
	do()
	time.Sleep(200 * time.Millisecond)
	return slices.ContainsFunc(c.Close(), func(f lab.Frame) bool { return !f.Outgoing && strings.Contains(f.String(), text) })
}

// TestForgedARP: on a flat segment a container says what it likes, as any host
// there: nothing of ours is in the way, and neighbours believe it. Private mode
// keeps it from its siblings, source mode from whoever does not list its MAC; but a
// MAC is forged as easily, where the network lets it pass.
func TestForgedARP(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	h1, h2 := hostStation(t, b.h1), hostStation(t, b.h2)
	bad := attach(t, b.h1, "bad", lan(t, b.h1, nil))
	sibling := attach(t, b.h1, "c2", lan(t, b.h1, nil))
	meet(t, h1, h2)
	eventually(t, "a neighbour that believes", func() bool { // not in the second after the last answer
		forge(t, bad.Namespace, "eth0", arpReply(t, bad.mac, bad.mac, h1.addrs[0], h2))
		return strings.Contains(mustDo(t, b.h2.Namespace, "ip", "neigh", "show", h1.addrs[0].String()), bad.mac)
	})
	lie := func(from, of string, to *attachment) func() {
		return func() { forge(t, bad.Namespace, "eth0", arpReply(t, from, of, h1.addrs[0], to.station)) }
	}
	const text = "arp reply 192.0.2.1 is-at"
	if !hears(t, sibling.Namespace, "eth0", text, lie(bad.mac, bad.mac, sibling)) {
		t.Error("a sibling in bridge mode does not hear: that others do not shows nothing")
	}
	private := lan(t, b.h1, keys{"mode": "private"})
	p1, p2 := attach(t, b.h1, "p1", private), attach(t, b.h1, "p2", private)
	if hears(t, p2.Namespace, "eth0", text, func() {
		forge(t, p1.Namespace, "eth0", arpReply(t, p1.mac, p1.mac, h1.addrs[0], p2.station))
	}) {
		t.Error("a sibling in private mode hears")
	}
	listens := attach(t, b.h2, "s1", lan(t, b.h2, keys{"mode": "source", "sourceMACs": []string{h1.mac}}))
	if hears(t, listens.Namespace, "eth0", text, lie(bad.mac, bad.mac, listens)) {
		t.Error("source mode hears whom it does not list")
	}
	if !hears(t, listens.Namespace, "eth0", text, lie(h1.mac, bad.mac, listens)) {
		t.Error("source mode does not hear a forged MAC that it lists; SECURITY.md says that it does")
	}
}

// TestForgedSource: a container that is routed to sends with its own IPv4 address or
// not at all, so it cannot pass for another container or node; on a node bridge with
// one of the bridge's. Of IPv6 the kernel has no such check.
func TestForgedSource(t *testing.T) {
	t.Parallel()
	for name, more := range hostgwModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			forgeSources(t, more)
		})
	}
}

func forgeSources(t *testing.T, more keys) {
	b := newBed(t)
	for _, h := range []*lab.Host{b.h1, b.h2} {
		mustDo(t, h.Namespace, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv4.conf.eth1.rp_filter=0")
	}
	bad, other := attach(t, b.h1, "bad", pods(t, b.h1, more)), attach(t, b.h1, "other", pods(t, b.h1, more))
	c2 := attach(t, b.h2, "c2", pods(t, b.h2, more))
	meet(t, bad.station, c2.station)
	mustDo(t, bad.Namespace, "ip", "addr", "add", other.addrs[0].String()+"/32", "dev", "lo")
	mustDo(t, bad.Namespace, "ip", "addr", "add", "203.0.113.9/32", "dev", "lo")
	mustDo(t, bad.Namespace, "ip", "addr", "add", other.addrs[1].String()+"/128", "dev", "lo", "nodad")
	passes := func(source string, to int) bool {
		t.Helper()
		return hears(t, c2.Namespace, "eth0", " "+source+" > "+c2.addrs[to].String()+": ", func() {
			_, _ = bad.Exec(t.Context(), "ping", "-n", "-c", "1", "-W", "0.2", "-I", source, c2.addrs[to].String())
		})
	}
	sources := []string{"203.0.113.9"}
	if more == nil {
		sources = append(sources, other.addrs[0].String())
	}
	for _, source := range sources {
		if passes(source, 0) {
			t.Errorf("a container passes for %s", source)
		}
	}
	if !passes(other.addrs[1].String(), 1) {
		t.Error("IPv6 is checked; SECURITY.md says that it is not")
	}
	if more == nil {
		remedy := []string{"add table ip6 strict", "add chain ip6 strict in { type filter hook prerouting priority 0; }",
			`add rule ip6 strict in iifname "ul*" fib saddr . iif oif missing drop`}
		text, err := os.ReadFile(filepath.Join("..", "SECURITY.md"))
		if err != nil {
			t.Fatal(err)
		}
		for _, command := range remedy {
			if !strings.Contains(string(text), "    "+command+"\n") {
				t.Errorf("SECURITY.md does not say %q", command)
			}
			mustDo(t, b.h1.Namespace, "nft", command)
		}
		if passes(other.addrs[1].String(), 1) {
			t.Error("the rules of SECURITY.md let a forged source pass")
		}
		meet(t, bad.station, c2.station)
		meet(t, bad.station, hostStation(t, b.h1))
	}
	mustDo(t, b.h1.Namespace, "sh", "-c", "for f in /proc/sys/net/ipv4/conf/ul*/rp_filter; do echo 0 >$f; done")
	for _, source := range sources {
		if !passes(source, 0) {
			t.Errorf("without the check a container does not pass for %s either: that it does not with it shows nothing", source)
		}
	}
}
