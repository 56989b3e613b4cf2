package arp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// wires are the ways in which two ends meet.
var wires = []struct {
	name string
	make func(testing.TB) (here, there *end)
}{
	{"veth", veth},
	{"macvlan siblings", siblings},
}

func TestConflicts(t *testing.T) {
	ours := addrs("192.0.2.10", "2001:db8::10")
	tests := []struct {
		name   string
		theirs []netip.Addr // on the interface there
		act    func(t *testing.T, there *end, p, q *Prober)
		want   bool
	}{
		{
			name:   "reply",
			theirs: ours,
			act:    func(t *testing.T, _ *end, p, _ *Prober) { must(t, p.Probe()) },
			want:   true,
		},
		{
			name: "foreign probe",
			act:  func(t *testing.T, _ *end, _, q *Prober) { must(t, q.Probe()) },
			want: true,
		},
		{
			name: "foreign announcement",
			act:  func(t *testing.T, there *end, _, q *Prober) { there.announce(t, q) },
			want: true,
		},
		{
			name: "nobody has it",
			act:  func(t *testing.T, _ *end, p, _ *Prober) { must(t, p.Probe()) },
		},
		{
			name:   "they have another",
			theirs: addrs("192.0.2.11", "2001:db8::11"),
			act:    func(t *testing.T, _ *end, p, _ *Prober) { must(t, p.Probe()) },
		},
	}
	for _, wire := range wires {
		for _, tt := range tests {
			t.Run(wire.name+"/"+tt.name, func(t *testing.T) {
				here, there := wire.make(t)
				there.up(t)
				here.up(t)
				there.ready(t)
				here.ready(t)
				there.assign(t, tt.theirs...)
				for _, a := range ours {
					// What must not come is over when a conflict about another
					// address is heard.
					want := a
					last := netip.MustParseAddr("192.0.2.99")
					p, q := here.open(t, a, last), there.open(t, a)
					tt.act(t, there, p, q)
					if !tt.want {
						want = last
						must(t, there.open(t, last).Probe())
					}
					got, err := p.Conflicts(soon)
					must(t, err)
					if diff := cmp.Diff([]Conflict{{want, there.ifc.MAC}}, got, compareAddrs); diff != "" {
						t.Errorf("%s (-want +got):\n%s", a, diff)
					}
				}
			})
		}
	}
}

// The kernel's own duplicate address detection is a foreign probe too. It goes
// to a group of which a macvlan hears only what it has joined.
func TestConflictsWithKernelProbe(t *testing.T) {
	here, there := siblings(t)
	here.up(t)
	there.up(t)
	a := netip.MustParseAddr("2001:db8::10")
	p := here.open(t, a)
	ipnet := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(64, 128)}
	must(t, there.nl.AddrAdd(there.link(), &netlink.Addr{IPNet: ipnet}))
	got, err := p.Conflicts(soon)
	must(t, err)
	if diff := cmp.Diff([]Conflict{{a, there.ifc.MAC}}, got, compareAddrs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

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

// What leaves at Announce is compared with bytes that other programs made:
// see frame_test.go.
func TestAnnounce(t *testing.T) {
	for _, wire := range wires {
		t.Run(wire.name, func(t *testing.T) {
			here, there := wire.make(t)
			must(t, here.nl.LinkSetHardwareAddr(here.link(), goldenMAC[:]))
			here.find(t)
			here.up(t)
			there.up(t)
			here.ready(t)
			there.ready(t)
			as := []netip.Addr{golden4, golden6}
			here.assign(t, as...)
			q := there.open(t, as...)
			here.announce(t, here.open(t, as...))

			want := []string{goldenARPRequest, goldenARPReply, goldenAdvertisement}
			var got []string
			for end := time.Now().Add(soon); len(got) < len(want) && time.Now().Before(end); {
				must(t, q.wire.await(time.Second))
				for _, f := range frames(t, q) {
					if slices.Contains(q.addrs, claimed(f)) {
						got = append(got, spell(f))
					}
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("frames (-want +got):\n%s", diff)
			}
		})
	}
}

// A kernel that knows the addresses at another MAC learns the new one.
func TestAnnounceIsBelieved(t *testing.T) {
	here, there := siblings(t)
	here.up(t)
	there.up(t)
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
	here.announce(t, here.open(t, as...))

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
	sockets := func() int { return strings.Count(here.proc(t, "packet"), "\n") - 1 } // less the heading
	var p *Prober
	must(t, here.ns.Do(func(ns.NetNS) (err error) {
		p, err = Open(here.ifc, addrs("192.0.2.10"))
		return err
	}))
	if n := sockets(); n != 1 {
		t.Fatalf("%d packet sockets after Open, want 1", n)
	}
	must(t, p.Close())
	eventually(t, func() bool { return sockets() == 0 })
	if err := p.Close(); !errors.Is(err, unix.EBADF) {
		t.Errorf("second Close: %v, want %v", err, unix.EBADF)
	}
}

// Our own frames must not fill the queue.
func TestOwnFramesStayOut(t *testing.T) {
	here, there := siblings(t)
	here.up(t)
	there.up(t)
	as := addrs("192.0.2.10", "2001:db8::10")
	p := here.open(t, as...)
	must(t, p.Probe())
	here.announce(t, p)
	for _, f := range frames(t, p) {
		if slices.Contains(as, claimed(f)) {
			t.Errorf("heard %x", f)
		}
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

// frames reads what is in the queue.
func frames(t *testing.T, p *Prober) [][]byte {
	t.Helper()
	var fs [][]byte
	for {
		buf := make([]byte, 2048)
		n, err := p.wire.receive(buf)
		must(t, err)
		if n == 0 {
			return fs
		}
		fs = append(fs, buf[:n])
	}
}

func claimed(frame []byte) netip.Addr {
	c, _ := parse(frame)
	return c.addr
}

// BenchmarkProber is what an attachment pays: on a macvlan with a sibling,
// where each answer is in the queue when Conflicts looks.
func BenchmarkProber(b *testing.B) {
	for _, bb := range []struct {
		name  string
		addrs []netip.Addr
	}{
		{"ipv4", addrs("192.0.2.10")},
		{"ipv6", addrs("2001:db8::10")},
		{"dual", addrs("192.0.2.10", "2001:db8::10")},
	} {
		b.Run(bb.name, func(b *testing.B) {
			here, there := siblings(b)
			here.up(b)
			there.up(b)
			there.assign(b, bb.addrs...)
			var spent [5]time.Duration
			seen := 0
			must(b, here.ns.Do(func(ns.NetNS) error {
				for b.Loop() {
					at := time.Now()
					step := func(i int) {
						now := time.Now()
						spent[i] += now.Sub(at)
						at = now
					}
					p, err := Open(here.ifc, bb.addrs)
					if err != nil {
						return err
					}
					step(0)
					err = p.Probe()
					step(1)
					found, err2 := p.Conflicts(0)
					step(2)
					err3 := p.Announce()
					step(3)
					err4 := p.Close()
					step(4)
					if err := errors.Join(err, err2, err3, err4); err != nil {
						return err
					}
					seen += len(found)
				}
				return nil
			}))
			b.ReportMetric(float64(seen)/float64(b.N), "conflicts")
			for i, unit := range []string{"open-µs", "probe-µs", "conflicts-µs", "announce-µs", "close-µs"} {
				b.ReportMetric(float64(spent[i].Microseconds())/float64(b.N), unit)
			}
		})
	}
}
