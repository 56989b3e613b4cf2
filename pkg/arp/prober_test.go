package arp

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var foreign = mac{2, 0, 0, 0, 0, 0xff}

// fakeWire has a clock that only await moves, and frames that come in at
// times from 0.
type fakeWire struct {
	at       time.Duration
	arrivals []arrival
	sent     []time.Duration
	onAwait  func()
	err      error // of receive
}

type arrival struct {
	at    time.Duration
	frame []byte
}

func (w *fakeWire) sendFrom(int) error { return nil }

func (w *fakeWire) send([]byte) error {
	w.sent = append(w.sent, w.at)
	return nil
}

func (w *fakeWire) receive(buf []byte) (int, error) {
	if w.err != nil || len(w.arrivals) == 0 || w.arrivals[0].at > w.at {
		return 0, w.err
	}
	n := copy(buf, w.arrivals[0].frame)
	w.arrivals = w.arrivals[1:]
	return n, nil
}

func (w *fakeWire) await(d time.Duration) error {
	if len(w.arrivals) > 0 {
		d = min(d, w.arrivals[0].at-w.at)
	}
	w.at += d
	if w.onAwait != nil {
		w.onAwait()
	}
	return nil
}

func (w *fakeWire) close() error { return nil }

// fakeProber probes for the golden addresses; its chance always falls in the
// middle.
func fakeProber(t *testing.T, w *fakeWire) *Prober {
	t.Helper()
	p, err := newProber(Iface{"eth0", 2, goldenMAC[:]}, []netip.Addr{golden4, golden6})
	must(t, err)
	p.wire = w
	p.now = func() time.Time { return time.Time{}.Add(w.at) }
	p.random = func(below time.Duration) time.Duration { return below / 2 }
	return p
}

func TestThorough(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name     string
		arrivals []arrival
		want     []Conflict
		sent     []time.Duration // one for the IPv4 address, two for the IPv6 one
		end      time.Duration
	}{
		{
			name: "silence",
			sent: []time.Duration{500 * ms, 500 * ms, 500 * ms, 2000 * ms, 2000 * ms, 2000 * ms, 3500 * ms, 3500 * ms, 3500 * ms},
			end:  5500 * ms,
		},
		{
			name:     "before the first probe",
			arrivals: []arrival{{400 * ms, arpProbe(foreign, golden4)}},
			want:     []Conflict{{golden4, foreign[:]}},
			end:      400 * ms,
		},
		{
			name:     "answer to the second probe",
			arrivals: []arrival{{2001 * ms, ndAnnounce(foreign, golden6)}},
			want:     []Conflict{{golden6, foreign[:]}},
			sent:     []time.Duration{500 * ms, 500 * ms, 500 * ms, 2000 * ms, 2000 * ms, 2000 * ms},
			end:      2001 * ms,
		},
		{
			name:     "at the last moment",
			arrivals: []arrival{{5500 * ms, arpReply(foreign, golden4)}},
			want:     []Conflict{{golden4, foreign[:]}},
			sent:     []time.Duration{500 * ms, 500 * ms, 500 * ms, 2000 * ms, 2000 * ms, 2000 * ms, 3500 * ms, 3500 * ms, 3500 * ms},
			end:      5500 * ms,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := &fakeWire{arrivals: tt.arrivals}
			got, err := fakeProber(t, w).Thorough(t.Context())
			must(t, err)
			if diff := cmp.Diff(tt.want, got, compareAddrs); diff != "" {
				t.Errorf("conflicts (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.sent, w.sent); diff != "" {
				t.Errorf("probes sent (-want +got):\n%s", diff)
			}
			if w.at != tt.end {
				t.Errorf("took %v, want %v", w.at, tt.end)
			}
		})
	}
}

func TestThoroughEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	w := &fakeWire{}
	w.onAwait = func() {
		if w.at >= time.Second {
			cancel()
		}
	}
	got, err := fakeProber(t, w).Thorough(ctx)
	if len(got) > 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, %v, want %v", got, err, context.Canceled)
	}
	if w.at > 1100*time.Millisecond {
		t.Errorf("ended at %v, long after the context", w.at)
	}
}

func TestConflictsCollects(t *testing.T) {
	third := mac{2, 0, 0, 0, 0, 0xfe}
	now := func(frames ...[]byte) (as []arrival) {
		for _, f := range frames {
			as = append(as, arrival{0, f})
		}
		return as
	}
	nonce := mac{9, 8, 7, 6, 5, 4}
	reflected := func(f []byte) []byte {
		copy(f[6:], foreign[:])
		return f
	}
	tests := []struct {
		name     string
		arrivals []arrival
		wait     time.Duration
		// assigned: we have the addresses.
		assigned bool
		want     []Conflict
	}{
		{name: "nothing"},
		{
			name:     "each once, in order",
			arrivals: now(arpReply(foreign, golden4), arpReply(foreign, golden4), ndAnnounce(foreign, golden6), arpReply(third, golden4)),
			want:     []Conflict{{golden4, foreign[:]}, {golden6, foreign[:]}, {golden4, third[:]}},
		},
		{
			name:     "our own frames",
			assigned: true,
			arrivals: now(arpProbe(goldenMAC, golden4), arpReply(goldenMAC, golden4), ndProbe(goldenMAC, golden6, nonce), ndAnnounce(goldenMAC, golden6)),
		},
		{
			name:     "our own frames under another MAC",
			assigned: true,
			arrivals: now(reflected(arpProbe(goldenMAC, golden4)), reflected(arpReply(goldenMAC, golden4)),
				reflected(ndProbe(goldenMAC, golden6, nonce)), reflected(ndAnnounce(goldenMAC, golden6))),
		},
		{
			name:     "our own probes",
			arrivals: now(arpProbe(goldenMAC, golden4), reflected(arpProbe(goldenMAC, golden4)), ndProbe(goldenMAC, golden6, nonce)),
		},
		{
			name:     "claims under our MAC that we have not made",
			arrivals: now(arpReply(goldenMAC, golden4), ndAnnounce(goldenMAC, golden6)),
			want:     []Conflict{{golden4, goldenMAC[:]}, {golden6, goldenMAC[:]}},
		},
		{
			name:     "a foreign nonce",
			arrivals: now(ndProbe(foreign, golden6, mac{1, 2, 3, 4, 5, 6})),
			want:     []Conflict{{golden6, foreign[:]}},
		},
		{
			name: "questions after our addresses",
			arrivals: now(arpFrame(arpRequest, foreign, netip.MustParseAddr("192.0.2.1"), mac{}, golden4),
				ndFrame(solicitedMAC(golden6), foreign, netip.MustParseAddr("2001:db8::1"), solicited(golden6), ndSolicit, 0, golden6, 1, foreign)),
		},
		{
			name:     "other addresses",
			arrivals: now(arpReply(foreign, netip.MustParseAddr("192.0.2.11")), ndAnnounce(foreign, netip.MustParseAddr("2001:db8::11"))),
		},
		{
			name:     "later than asked for",
			arrivals: []arrival{{time.Second + 1, arpReply(foreign, golden4)}},
			wait:     time.Second,
		},
		{
			name:     "the first ends the wait",
			arrivals: []arrival{{10, arpReply(foreign, golden4)}, {20, ndAnnounce(foreign, golden6)}},
			wait:     time.Second,
			want:     []Conflict{{golden4, foreign[:]}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := fakeProber(t, &fakeWire{arrivals: tt.arrivals})
			p.nonce, p.assigned = nonce, tt.assigned
			got, err := p.Conflicts(tt.wait)
			must(t, err)
			if diff := cmp.Diff(tt.want, got, compareAddrs); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestConflictsReportsErrors(t *testing.T) {
	gone := errors.New("gone")
	got, err := fakeProber(t, &fakeWire{err: gone}).Conflicts(time.Second)
	if len(got) > 0 || !errors.Is(err, gone) {
		t.Errorf("got %v, %v, want %v", got, err, gone)
	}
}

// A flood must not hold Conflicts for longer than it was given.
func TestConflictsInFlood(t *testing.T) {
	w := &flood{frame: arpReply(foreign, netip.MustParseAddr("192.0.2.11"))}
	p := fakeProber(t, &w.fakeWire)
	p.wire = w
	got, err := p.Conflicts(time.Second)
	if len(got) > 0 || err != nil {
		t.Errorf("got %v, %v, want nothing", got, err)
	}
	if w.at > 1100*time.Millisecond {
		t.Errorf("took %v, want 1s", w.at)
	}
}

// flood is a wire whose queue is never empty; reading it takes a microsecond
// a frame.
type flood struct {
	fakeWire
	frame []byte
}

func (w *flood) receive(buf []byte) (int, error) {
	w.at += time.Microsecond
	return copy(buf, w.frame), nil
}

func (w *flood) await(time.Duration) error { return nil }

// TestClaimsOnly: whoever asks has not got it.
func TestClaimsOnly(t *testing.T) {
	w := &fakeWire{arrivals: []arrival{
		{0, arpProbe(foreign, golden4)}, {0, ndProbe(foreign, golden6, mac{1})}, {0, ndAnnounce(foreign, golden6)}, {0, arpReply(foreign, golden4)},
	}}
	p := fakeProber(t, w)
	p.ClaimsOnly()
	got, err := p.Conflicts(0)
	must(t, err)
	if diff := cmp.Diff([]Conflict{{golden6, foreign[:]}, {golden4, foreign[:]}}, got, compareAddrs); diff != "" {
		t.Errorf("conflicts (-want +got):\n%s", diff)
	}
}
