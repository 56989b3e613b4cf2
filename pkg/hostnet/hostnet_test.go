package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
	"github.com/underlay-cni/underlay/pkg/nlsock"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newHost is a namespace with eth1 and eth2, each one end of a cable, and lo.
func newHost(t testing.TB) (*Host, *netns.NS) {
	t.Helper()
	n := netnstest.New(t)
	netnstest.Batch(t, n, "ip", `link set lo up
link add eth1 type veth peer name wire1
link add eth2 type veth peer name wire2
link set eth1 addrgenmode none up
link set eth2 addrgenmode none up
link set wire1 addrgenmode none up
link set wire2 addrgenmode none up`)
	h, err := Open(n)
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	return h, n
}

// text is a State for people.
func text(s State) string {
	var b strings.Builder
	for _, l := range s.Links {
		fmt.Fprintf(&b, "%s up=%v broadcast=%v", l.Name, l.Up, l.Broadcast)
		for _, a := range l.Addrs {
			fmt.Fprintf(&b, " %s", a.Prefix)
			if a.Passing {
				b.WriteString(" (passing)")
			}
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "default %q reach %v\n", s.Default, s.Reach)
	return b.String()
}

func TestRead(t *testing.T) {
	t.Parallel()
	h, n := newHost(t)
	netnstest.Batch(t, n, "ip", `addr add 192.0.2.1/24 dev eth1
addr add 192.0.2.2/24 dev eth1
addr add 169.254.7.7/16 dev eth1 scope link
addr add 2001:db8::1/64 dev eth1 nodad
addr add 2001:db8::2/64 dev eth1 nodad preferred_lft 0
addr add fe80::1/64 dev eth1 nodad
addr add 198.51.100.1/24 dev eth2
addr add 10.0.0.1/32 dev lo
link set eth2 arp off
route add default via 198.51.100.254 metric 100
route add default via 192.0.2.254 metric 50
route add default via 2001:db8::fe dev eth1
route add default via 198.51.100.253 table 77
route add unreachable 203.0.113.0/24`)
	at := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	s, err := h.Read(t.Context(), []netip.Addr{at("198.51.100.9"), at("203.0.113.9"), at("8.8.8.8"), at("2001:db8:9::9")})
	must(t, err)
	const want = `eth1 up=true broadcast=true 192.0.2.1/24 192.0.2.2/24 2001:db8::2/64 (passing) 2001:db8::1/64
eth2 up=true broadcast=false 198.51.100.1/24
lo up=true broadcast=false 10.0.0.1/32
default ["eth1"] reach map[8.8.8.8:eth1 198.51.100.9:eth2 2001:db8:9::9:eth1]
`
	if got := text(s); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	again, err := h.Read(t.Context(), []netip.Addr{at("8.8.8.8"), at("198.51.100.9"), at("2001:db8:9::9")})
	if err != nil || !again.Equal(s) {
		t.Errorf("again: %v\n%s", err, text(again))
	}
	netnstest.Batch(t, n, "ip", "link set eth1 down")
	after, err := h.Read(t.Context(), nil)
	must(t, err)
	if l, _ := after.Link("eth1"); l.Up || after.Equal(s) || slices.Contains(after.Default, "eth1") {
		t.Errorf("with a link that is down:\n%s", text(after))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Read(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// TestWatch: what decides how peers are reached is heard of, containers and our
// own routes are not.
func TestWatch(t *testing.T) {
	t.Parallel()
	h, n := newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan struct{}, 1000)
	ended := make(chan error, 1)
	go func() { ended <- h.Watch(ctx, []uint8{141}, func() { heard <- struct{}{} }) }()
	drain := func() (count int) {
		for {
			select {
			case <-heard:
				count++
			case <-time.After(100 * time.Millisecond):
				return count
			}
		}
	}
	<-heard // at the start
	for _, tt := range []struct {
		command string
		want    bool
	}{
		{"addr add 192.0.2.1/24 dev eth1", true},
		{"route add 10.5.0.0/26 via 192.0.2.2 proto 141", false},
		{"route add 10.5.0.9/32 dev eth2", false},
		{"addr add 169.254.7.7/32 dev eth1 scope link", false},
		{"route add default via 192.0.2.254", true},
		{"link set eth1 down", true},
	} {
		netnstest.Batch(t, n, "ip", tt.command)
		if got := drain() > 0; got != tt.want {
			t.Errorf("%s: heard %v, want %v", tt.command, got, tt.want)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

func TestNeighbours(t *testing.T) {
	t.Parallel()
	h, n := newHost(t)
	other := netnstest.New(t)
	netnstest.Batch(t, n, "ip", fmt.Sprintf(`addr add 192.0.2.1/24 dev eth1
addr add 2001:db8::1/64 dev eth1 nodad
addr add fe80::1/64 dev eth1 nodad
link set wire1 netns /proc/%d/fd/%d`, os.Getpid(), other.Fd()))
	netnstest.Batch(t, other, "ip", `link set wire1 up
addr add 192.0.2.2/24 dev wire1
addr add 2001:db8::2/64 dev wire1 nodad`)
	all := map[Neighbour]Answer{
		{"eth1", netip.MustParseAddr("192.0.2.2")}:   Found,
		{"eth1", netip.MustParseAddr("2001:db8::2")}: Found,
		{"eth1", netip.MustParseAddr("192.0.2.3")}:   Silent,
		{"eth1", netip.MustParseAddr("2001:db8::3")}: Silent,
		{"nosuch", netip.MustParseAddr("192.0.2.4")}: Unknown,
	}
	var ask []Neighbour
	for one := range all {
		ask = append(ask, one)
	}
	must(t, h.Ask(t.Context(), ask))
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		got, err := h.Answers(t.Context(), []string{"eth1", "nosuch"})
		must(t, err)
		wrong := ""
		for one, want := range all {
			if got[one] != want {
				wrong += fmt.Sprintf("%s: %s, want %s\n", one.Addr, got[one], want)
			}
		}
		if wrong == "" {
			break
		}
		if time.Since(began) > 15*time.Second {
			t.Fatal(wrong)
		}
	}
}

func TestForward(t *testing.T) {
	t.Parallel()
	h, n := newHost(t)
	first, err := h.Forward("eth1", true)
	must(t, err)
	again, err := h.Forward("eth1", true)
	must(t, err)
	if len(first) < 2 || len(again) > 0 {
		t.Errorf("changed %q, and then %q", first, again)
	}
	read := func(key string) string {
		return strings.TrimSpace(netnstest.Run(t, n, "cat", "/proc/sys/net/"+key))
	}
	if got := read("ipv4/conf/eth1/forwarding") + read("ipv4/conf/eth2/forwarding"); got != "10" {
		t.Errorf("IPv4 of eth1 and eth2: %s", got)
	}
	if six := strings.Contains(first[1], "force_forwarding"); six && read("ipv6/conf/all/forwarding") != "0" {
		t.Error("IPv6 is forwarded everywhere, and need not be")
	}
	if _, err := h.Forward("nosuch", false); err == nil || !strings.Contains(err.Error(), `"nosuch"`) {
		t.Errorf("an interface that is gone: %v", err)
	}
}

// TestCutOff: what ends too early is an error, and never a panic.
func TestCutOff(t *testing.T) {
	t.Parallel()
	attr := func(kind int, value ...byte) []byte { return nl.NewRtAttr(kind, value).Serialize() }
	link := slices.Concat(nl.NewIfInfomsg(unix.AF_UNSPEC).Serialize(), attr(unix.IFLA_IFNAME, 'e', 0))
	addr := slices.Concat(nl.NewIfAddrmsg(unix.AF_INET).Serialize(), attr(unix.IFA_LOCAL, 192, 0, 2, 1))
	hops := slices.Concat(nl.NewRtMsg().Serialize(), attr(unix.RTA_MULTIPATH, 8, 0, 0, 0, 7, 0, 0, 0))
	near := slices.Concat(make(ndMsg, unix.SizeofNdMsg), attr(unix.NDA_DST, 192, 0, 2, 1))
	for i := range 64 {
		cut := func(b []byte) []byte { return b[:min(i, len(b))] }
		_, _, lerr := parseLink(cut(link))
		_, _, _, aerr := parseAddr(cut(addr))
		_, rerr := parseRoute(cut(hops))
		_, _, _, nerr := parseNeighbour(cut(near))
		for what, err := range map[string]error{"link": lerr, "address": aerr, "route": rerr, "neighbour": nerr} {
			if i < 8 && !errors.Is(err, nlsock.ErrCutOff) {
				t.Errorf("%s of %d octets: %v", what, i, err)
			}
		}
	}
	if r, err := parseRoute(hops); err != nil || r.dev != 7 {
		t.Errorf("route with several next hops: %+v, %v", r, err)
	}
}
