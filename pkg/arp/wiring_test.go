package arp

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// wiring is a way in which two ends meet. What is sent from one end is heard by
// probers of the other.
type wiring struct {
	name string
	make func(testing.TB) (here, there *end)
}

var wirings = []wiring{
	{"veth", veth},
	{"macvlan siblings", siblings},
	// The child has its parent's MAC, as an ipvlan has.
	{"macvlan passthru by its parent", byParent(func(t testing.TB, parent *end) *end {
		return parent.macvlan(t, netlink.MACVLAN_MODE_PASSTHRU)
	})},
	// The child itself hears nobody: its list of sources is empty.
	{"macvlan source by its parent", byParent(func(t testing.TB, parent *end) *end {
		return parent.macvlan(t, netlink.MACVLAN_MODE_SOURCE)
	})},
}

// byParent has probers listen on the parent of what they send from.
func byParent(child func(t testing.TB, parent *end) *end) func(testing.TB) (here, there *end) {
	return func(t testing.TB) (here, there *end) {
		t.Helper()
		parent, there := veth(t)
		parent.up(t)
		there.up(t)
		parent.ready(t)
		here = child(t, parent)
		here.parent = parent
		return here, there
	}
}

// live is make with both ends up.
func (w wiring) live(t testing.TB) (here, there *end) {
	t.Helper()
	here, there = w.make(t)
	there.up(t)
	here.up(t)
	there.ready(t)
	here.ready(t)
	return here, there
}

func TestConflicts(t *testing.T) {
	for _, w := range wirings {
		t.Run(w.name, w.testConflicts)
	}
}

func (w wiring) testConflicts(t *testing.T) {
	ours := addrs("192.0.2.10", "2001:db8::10")
	tests := []struct {
		name   string
		theirs []netip.Addr // on the interface there
		act    func(t *testing.T, p, q *Prober)
		want   bool
	}{
		{
			name:   "reply",
			theirs: ours,
			act:    func(t *testing.T, p, _ *Prober) { must(t, p.Probe()) },
			want:   true,
		},
		{
			name: "foreign probe",
			act:  func(t *testing.T, _, q *Prober) { must(t, q.Probe()) },
			want: true,
		},
		{
			name: "foreign announcement",
			act:  func(t *testing.T, _, q *Prober) { must(t, q.Announce()) },
			want: true,
		},
		{
			name: "nobody has it",
			act:  func(t *testing.T, p, _ *Prober) { must(t, p.Probe()) },
		},
		{
			name:   "they have another",
			theirs: addrs("192.0.2.11", "2001:db8::11"),
			act:    func(t *testing.T, p, _ *Prober) { must(t, p.Probe()) },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			here, there := w.live(t)
			there.assign(t, tt.theirs...)
			for _, a := range ours {
				p, q := here.open(t, a, last), there.open(t, a)
				tt.act(t, p, q)
				if tt.want {
					expect(t, p, Conflict{a, there.ifc.MAC})
				} else {
					nothing(t, p, there)
				}
			}
		})
	}
}

func TestConflictsWithKernelProbe(t *testing.T) {
	for _, w := range wirings {
		t.Run(w.name, w.testKernelProbe)
	}
}

// The kernel's own duplicate address detection is a foreign probe too. It goes
// to a group of which a macvlan hears only what it has joined.
func (w wiring) testKernelProbe(t *testing.T) {
	t.Parallel()
	here, there := w.live(t)
	a := netip.MustParseAddr("2001:db8::10")
	p := here.open(t, a)
	ipnet := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(64, 128)}
	must(t, there.nl.AddrAdd(there.link(), &netlink.Addr{IPNet: ipnet}))
	expect(t, p, Conflict{a, there.ifc.MAC})
}

func TestAnnounce(t *testing.T) {
	for _, w := range wirings {
		t.Run(w.name, w.testAnnounce)
	}
}

// What leaves at Announce is compared with bytes that other programs made:
// see frame_test.go.
func (w wiring) testAnnounce(t *testing.T) {
	t.Parallel()
	here, there := w.make(t)
	here.rename(t, goldenMAC)
	here.up(t)
	there.up(t)
	here.ready(t)
	there.ready(t)
	as := []netip.Addr{golden4, golden6}
	here.assign(t, as...)
	q := there.open(t, as...)
	must(t, here.open(t, as...).Announce())

	want := []string{goldenARPRequest, goldenARPReply, goldenAdvertisement}
	var got []string
	for _, f := range hear(t, q, len(want)) {
		got = append(got, spell(f))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("frames (-want +got):\n%s", diff)
	}
}

func TestOwnFramesStayOut(t *testing.T) {
	for _, w := range wirings {
		t.Run(w.name, w.testOwnFrames)
	}
}

// Our own frames must not fill the queue.
func (w wiring) testOwnFrames(t *testing.T) {
	t.Parallel()
	here, there := w.live(t)
	as := addrs("192.0.2.10", "2001:db8::10")
	p, q := here.open(t, as...), there.open(t, as...)
	must(t, p.Probe())
	must(t, p.Announce())
	hear(t, q, 5)
	for _, f := range frames(t, p) {
		if slices.Contains(as, claimed(f)) {
			t.Errorf("heard %x", f)
		}
	}
}

// last is an address for a conflict that comes after all that could come.
var last = netip.MustParseAddr("192.0.2.99")

// nothing checks that no conflict is heard by p, of whose addresses the last
// one is last. There is where its conflict comes from.
func nothing(t *testing.T, p *Prober, there *end) {
	t.Helper()
	must(t, there.open(t, last).Probe())
	expect(t, p, Conflict{last, there.ifc.MAC})
}

// expect checks that p hears this conflict and no other.
func expect(t *testing.T, p *Prober, want Conflict) {
	t.Helper()
	got, err := p.Conflicts(soon)
	must(t, err)
	if diff := cmp.Diff([]Conflict{want}, got, compareAddrs); diff != "" {
		t.Errorf("conflicts (-want +got):\n%s", diff)
	}
}

// hear reads the next n frames that claim one of p's addresses.
func hear(t *testing.T, p *Prober, n int) [][]byte {
	t.Helper()
	var fs [][]byte
	for late := time.Now().Add(soon); len(fs) < n; {
		f := next(t, p)
		switch {
		case slices.Contains(p.addrs, claimed(f)):
			fs = append(fs, f)
		case time.Now().After(late):
			t.Fatalf("heard %d frames, want %d: %x", len(fs), n, fs)
		case f == nil:
			must(t, p.wire.await(time.Second))
		}
	}
	return fs
}

// frames reads what is in the queue.
func frames(t *testing.T, p *Prober) (fs [][]byte) {
	t.Helper()
	for f := next(t, p); f != nil; f = next(t, p) {
		fs = append(fs, f)
	}
	return fs
}

// next reads one frame; nil if the queue is empty.
func next(t *testing.T, p *Prober) []byte {
	t.Helper()
	buf := make([]byte, 2048)
	n, err := p.wire.receive(buf)
	must(t, err)
	if n == 0 {
		return nil
	}
	return buf[:n]
}

func claimed(frame []byte) netip.Addr {
	c, _ := parse(frame)
	return c.addr
}
