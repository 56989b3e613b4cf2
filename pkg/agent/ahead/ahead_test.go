package ahead

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/arp"
)

// yard is a ledger, and a wire with others on it.
type yard struct {
	t    *testing.T
	l    *ledger.Ledger
	pool ipam.Pool
	a    *Ahead
	end  func()

	mu     sync.Mutex
	log    bytes.Buffer
	others map[string]string // addresses that others have, with a MAC
	asked  []string          // one element for each question
	err    error
	called func()
}

func (y *yard) With(f func(*ledger.Ledger) error) error { return f(y.l) }

func (y *yard) Write(p []byte) (int, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.log.Write(p)
}

func (y *yard) ask(_ context.Context, wire string, addrs []netip.Addr) (found []arp.Conflict, err error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	text := wire + ":"
	for _, a := range addrs {
		text += " " + strings.TrimPrefix(a.String(), "10.0.0")
		if m, has := y.others[a.String()]; has {
			mac, err := net.ParseMAC(m)
			if err != nil {
				return nil, err
			}
			found = append(found, arp.Conflict{Addr: a, MAC: mac})
		}
	}
	y.asked = append(y.asked, text)
	if y.called != nil {
		y.called()
	}
	return found, y.err
}

// newYard belongs into a bubble.
func newYard(t *testing.T) *yard {
	y := &yard{t: t, others: map[string]string{}}
	dir := t.TempDir()
	var err error
	if y.l, err = ledger.Open(context.Background(), ledger.Options{DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run")}); err != nil {
		t.Fatal(err)
	}
	conf, err := ipam.Load([]byte(`{"type":"underlay","ranges":[[{"subnet":"10.0.0.0/24"}]]}`), "lan", nil)
	if err != nil {
		t.Fatal(err)
	}
	y.pool = conf.Pool
	if y.a, err = New(Config{Ledger: y, Log: slog.New(slog.NewTextHandler(y, nil)), Registry: prometheus.NewRegistry(), Ask: y.ask}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- y.a.Run(ctx) }()
	y.end = func() {
		cancel()
		findings, err := y.l.Check()
		if err := errors.Join(err, <-ended, y.l.Close()); err != nil || len(findings) > 0 {
			t.Error(err, findings)
		}
	}
	return y
}

func (y *yard) add(id, wire string) string {
	y.t.Helper()
	req := ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "lan", ContainerID: id, IfName: "eth0"}, Pool: y.pool, Wire: wire}
	got, err := y.l.Allocate(req, nil)
	if err != nil {
		y.t.Fatal(err)
	}
	y.a.Used(req)
	return got.Addresses[0].Prefix.Addr().String()
}

func (y *yard) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// wantAsked compares what was asked since it was called last.
func (y *yard) wantAsked(when string, want ...string) {
	y.t.Helper()
	y.mu.Lock()
	defer y.mu.Unlock()
	if diff := cmp.Diff(want, y.asked); diff != "" {
		y.t.Errorf("asked %s (-want +got):\n%s", when, diff)
	}
	y.asked = nil
}

// TestQuarantined: what somebody has is out of the way before an ADD comes to it.
func TestQuarantined(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		defer y.end()
		y.others["10.0.0.4"], y.others["10.0.0.9"] = "02:00:00:00:00:01", "02:00:00:00:00:02"
		y.add("a", "eth1")
		y.pass(time.Second)
		// The one in quarantine made room for another.
		y.wantAsked("after an ADD", "eth1: .3 .4 .5 .6", "eth1: .3 .5 .6 .7")
		for i, want := range []string{"10.0.0.3", "10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.8"} {
			if got := y.add(fmt.Sprint(i), "eth1"); got != want {
				t.Errorf("ADD got %s, want %s", got, want)
			}
			y.pass(2 * time.Second)
		}
		rec, _, err := y.l.Record(netip.MustParseAddr("10.0.0.4"))
		if err != nil || rec.State != ipam.Quarantined || rec.Reason != "02:00:00:00:00:01 answers for it" {
			t.Errorf("%+v, %v", rec, err)
		}
		if n := testutil.ToFloat64(y.a.metrics.conflicts); n != 2 {
			t.Errorf("%v conflicts were counted", n)
		}
		if events, _ := y.a.conf.Events.Since(0); len(events) != 2 || events[0].Addr.String() != "10.0.0.4" || events[0].Pool != "lan" {
			t.Errorf("events: %+v", events)
		}
	})
}

// TestWhen: what is asked, how often, and for how long.
func TestWhen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		defer y.end()
		y.add("a", "eth1")
		y.pass(0)
		y.wantAsked("at once", "eth1: .3 .4 .5 .6")
		for i := range 20 {
			y.add(fmt.Sprint(i), "eth1")
		}
		y.pass(500 * time.Millisecond)
		y.wantAsked("within a second")
		y.pass(time.Second)
		y.wantAsked("once for a burst", "eth1: .23 .24 .25 .26")
		y.pass(50 * time.Second)
		y.wantAsked("when answers are old", "eth1: .23 .24 .25 .26", "eth1: .23 .24 .25 .26")
		y.pass(5 * time.Minute)
		y.mu.Lock()
		again := len(y.asked)
		y.asked = nil
		y.mu.Unlock()
		if again > 1 {
			t.Errorf("an idle pool was asked for %d times more", again)
		}
		y.add("b", "eth1")
		y.add("c", "eth2")
		y.add("d", "") // nobody can be asked
		y.pass(3 * time.Second)
		y.mu.Lock()
		slices.Sort(y.asked)
		y.asked = slices.Compact(y.asked)
		y.mu.Unlock()
		y.wantAsked("on two wires", "eth1: .26 .27 .28 .29", "eth2: .26 .27 .28 .29")
	})
}

// TestProxy: who answers for all is no user, and is said once.
func TestProxy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		defer y.end()
		for i := range 250 {
			y.others[fmt.Sprintf("10.0.0.%d", i)] = "02:00:00:00:00:01"
		}
		for i := range 5 {
			y.add(fmt.Sprint(i), "eth1")
			y.pass(2 * time.Second)
		}
		if n := testutil.ToFloat64(y.a.metrics.conflicts); n != 0 {
			t.Errorf("%v addresses are in quarantine", n)
		}
		if n := strings.Count(y.log.String(), "02:00:00:00:00:01 answers for all of them"); n != 1 {
			t.Errorf("it is said %d times:\n%s", n, y.log.String())
		}
	})
}

// TestFaster: an ADD that takes an address while it is asked for keeps it.
func TestFaster(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		defer y.end()
		y.others["10.0.0.3"] = "02:00:00:00:00:01"
		once := sync.OnceFunc(func() {
			if got := y.add("b", "eth1"); got != "10.0.0.3" {
				t.Errorf("ADD got %s", got)
			}
		})
		y.called = once
		y.add("a", "eth1")
		y.pass(10 * time.Second)
		rec, _, err := y.l.Record(netip.MustParseAddr("10.0.0.3"))
		if err != nil || rec.State != ipam.Held {
			t.Errorf("%+v, %v", rec, err)
		}
		y.mu.Lock()
		y.err = errors.New("no buffer space")
		y.mu.Unlock()
		y.add("c", "eth1")
		y.pass(time.Minute)
		if n := strings.Count(y.log.String(), "no buffer space"); n != 1 {
			t.Errorf("a failure is said %d times", n)
		}
	})
}
