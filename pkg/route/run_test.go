package route

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	own = `10.1.0.0/24 via 192.0.2.2 dev eth1
10.2.0.0/24 via 198.51.100.2 dev eth2
unreachable 10.5.0.0/16
2001:db8:101::/64 via 2001:db8::2 dev eth1
unreachable 2001:db8:105::/48
`
	ownShown = `10.1.0.0/24 via 192.0.2.2 dev eth1
10.2.0.0/24 via 198.51.100.2 dev eth2
unreachable 10.5.0.0/16
2001:db8:101::/64 via 2001:db8::2 dev eth1 metric 1024
unreachable 2001:db8:105::/48 dev lo metric 1024
`
)

// Whatever happens to the routes, they are back within a second of what the
// kernel allows, and the slow timer has no part in it.
func TestRun(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		// without is done first, and then, as far as the kernel loses or keeps
		// routes, with.
		without, with string
	}{
		{name: "one is deleted", with: "route del 10.1.0.0/24"},
		{name: "one of IPv6 is deleted", with: "route del 2001:db8:101::/64"},
		{name: "one to nowhere is deleted", with: "route del unreachable 10.5.0.0/16"},
		{name: "one is replaced", with: "route replace 10.1.0.0/24 via 192.0.2.9 proto 141"},
		{name: "one too many", with: "route add 10.9.0.0/24 via 192.0.2.9 proto 141"},
		{name: "all are flushed", with: "route flush proto 141"},
		{name: "link flap", without: "link set eth1 down", with: "link set eth1 up\naddr add 2001:db8::1/64 dev eth1 nodad"},
		{name: "the address goes", without: "addr del 198.51.100.1/24 dev eth2", with: "addr add 198.51.100.1/24 dev eth2"},
		{name: "the link goes", without: "link del eth2", with: "link add eth2 type veth peer name again\nlink set again up\nlink set eth2 up\naddr add 198.51.100.1/24 dev eth2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newPeers(t)
			h.ip(t, "route add 10.9.0.0/16 via 192.0.2.9 proto 4 metric 9")
			r := h.reconciler(t, Config{Retry: time.Hour, MaxRetry: time.Hour, Resync: time.Hour})
			run(t, r)
			must(t, r.Apply(t.Context(), wants(t, own)))
			if tt.without != "" {
				h.ip(t, tt.without)
				waitFor(t, "something to be missing", func() bool { return failing(r) > 0 })
			}
			h.ip(t, tt.with)
			waitFor(t, "the routes", func() bool { return h.routes(t, "141") == ownShown })
			waitFor(t, "the status", func() bool { return failing(r) == 0 })
			if tt.without == "" && h.routes(t, "4") == "" {
				t.Error("a route of others is gone")
			}
			settled(t, r)
		})
	}
}

// A route of others in the way is named, and ours follows when it goes.
func TestForeignGoes(t *testing.T) {
	t.Parallel()
	h := newPeers(t)
	h.ip(t, "route add 10.1.0.0/24 via 192.0.2.9 proto 4")
	r := h.reconciler(t, Config{Retry: time.Hour, MaxRetry: time.Hour, Resync: time.Hour})
	run(t, r)
	if err := r.Apply(t.Context(), wants(t, own)); err == nil || !strings.Contains(err.Error(), ErrForeign.Error()) {
		t.Errorf("in the way: %v", err)
	}
	h.ip(t, "route del 10.1.0.0/24 proto 4")
	waitFor(t, "the routes", func() bool { return h.routes(t, "141") == ownShown })
}

// Containers come and go; the routes are not read again for each.
func TestOthersComeAndGo(t *testing.T) {
	t.Parallel()
	h := newPeers(t)
	r := h.reconciler(t, Config{Resync: time.Hour})
	run(t, r)
	must(t, r.Apply(t.Context(), wants(t, own)))
	settled(t, r)
	before := r.Counts()
	for range 3 {
		h.ip(t, "link add pod type veth peer name inside\nlink set pod up\nlink set inside up\naddr add fe80::7/64 dev pod nodad\nlink del pod")
	}
	settled(t, r)
	if after := r.Counts(); after != before {
		t.Errorf("before %+v, after %+v", before, after)
	}
	h.ip(t, "link set eth2 down") // this one matters
	waitFor(t, "a new look", func() bool { return r.Counts() != before })
}

// Nothing is written before the first wanted state, which may well be none.
func TestNothingBeforeTheFirst(t *testing.T) {
	t.Parallel()
	h := newPeers(t)
	h.ip(t, "route add 10.1.0.0/24 via 192.0.2.2 proto 141")
	r := h.reconciler(t, Config{Resync: time.Millisecond})
	run(t, r)
	h.ip(t, "link set eth2 down\nlink set eth2 up")
	time.Sleep(50 * time.Millisecond) // for what must not happen
	if got := h.routes(t, "141"); got == "" {
		t.Error("the routes of an earlier life are gone before anything was wanted")
	}
	must(t, r.Apply(t.Context(), nil))
	if got := h.routes(t, "141"); got != "" {
		t.Errorf("left of an earlier life:\n%s", got)
	}
}

// While next hops change, the prefix is reached all the time.
func TestMakeBeforeBreak(t *testing.T) {
	t.Parallel()
	h := newPeers(t)
	r := h.reconciler(t, Config{})
	for _, via := range []string{"192.0.2.2", "192.0.2.3"} {
		must(t, r.Apply(t.Context(), wants(t, "10.1.0.0/24 via "+via+" dev eth1\n2001:db8:101::/64 via 2001:db8::"+via[8:]+" dev eth1")))
	}
	// What the kernel told of it, in order.
	told := h.changes(t, func() {
		must(t, r.Apply(t.Context(), wants(t, "10.1.0.0/24 via 192.0.2.4 dev eth1\n2001:db8:101::/64 via 2001:db8::4 dev eth1")))
	})
	want := []string{"+10.1.0.0/24", "-10.1.0.0/24", "+2001:db8:101::/64", "-2001:db8:101::/64"}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A fifth of the peers is malformed or out of reach: the rest is there with one
// Apply, and nothing waits for them.
func TestBadPeers(t *testing.T) {
	t.Parallel()
	h := newPeers(t)
	r := h.reconciler(t, Config{})
	all := peers(1000)
	good := 0
	for i := range all {
		switch i % 10 {
		case 3:
			all[i].Object.Via = addr("203.0.113.1")
		case 7:
			all[i].Object.Dst = prefix("10.0.0.1/8")
		default:
			good++
		}
	}
	if err := r.Apply(t.Context(), all); err == nil {
		t.Error("no error")
	}
	if got := strings.Count(h.routes(t, "141"), "\n"); got != good {
		t.Errorf("%d routes, want %d", got, good)
	}
	if got := failing(r); got != len(all)-good {
		t.Errorf("%d peers fail, want %d", got, len(all)-good)
	}
	before := r.Counts()
	_ = r.Apply(t.Context(), all) // those that fail are not due
	if after := r.Counts(); after.Written != before.Written || after.Refused != before.Refused {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// peers are n of them, each with a block behind a node on eth1.
func peers(n int) (out []Want) {
	for i := range n {
		out = append(out, Want{Peer: fmt.Sprintf("node%d", i), Object: Route{
			Dst: prefix(fmt.Sprintf("10.%d.%d.0/24", 100+i/256, i%256)),
			Via: addr(fmt.Sprintf("192.0.2.%d", 2+i%250)),
			Dev: "eth1",
		}})
	}
	return out
}

func failing(r *Reconciler) (n int) {
	for _, s := range r.Status() {
		if s.Err != nil {
			n++
		}
	}
	return n
}

// waitFor fails the test if it takes more than a second, and more where the
// machine is busy with other tests.
func waitFor(t testing.TB, what string, there func() bool) {
	t.Helper()
	for start := time.Now(); !there(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// settled fails the test if the reconciler never comes to rest.
func settled(t testing.TB, r *Reconciler) {
	t.Helper()
	before, since := r.Counts(), time.Now()
	waitFor(t, "rest", func() bool {
		if now := r.Counts(); now != before {
			before, since = now, time.Now()
		}
		return time.Since(since) > 100*time.Millisecond
	})
}
