package ledger

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// next lists candidates as text.
func next(t *testing.T, l *Ledger, id string, n int) (out []string) {
	t.Helper()
	addrs, err := l.Candidates(id, n)
	must(t, err)
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// TestCandidates: what is listed is what is given out, in that order, and
// looking at it changes nothing.
func TestCandidates(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := open(t, testOptions(t, c))
	p := pool("lan", set(t, "10.0.0.0/28"), set(t, "2001:db8::/124"))
	if got := next(t, l, p.ID(), 4); got != nil {
		t.Errorf("of a pool that nobody has used: %q", got)
	}
	add(t, l, request(p, "first"))
	for i := range 12 {
		before := sequence(t, l)
		got := next(t, l, p.ID(), 2)
		if n := sequence(t, l); n != before {
			t.Errorf("%d transactions", n-before)
		}
		if len(got) < 2 {
			t.Fatalf("only %q are left of 13", got)
		}
		want := fmt.Sprint(got[0], " ", got[len(got)/2])
		if a := add(t, l, request(p, fmt.Sprint(i))); a != want {
			t.Errorf("listed were %q, and it got %s", got, a)
		}
	}
	if got := next(t, l, p.ID(), 2); got != nil {
		t.Errorf("of a pool that is used up: %q", got)
	}
	del(t, l, "3")
	if got := next(t, l, p.ID(), 2); got != nil {
		t.Errorf("what rests is listed: %q", got)
	}
	c.add(time.Hour)
	del(t, l, "4") // which also ends rests that are over
	if diff := cmp.Diff([]string{"10.0.0.6", "2001:db8::6"}, next(t, l, p.ID(), 2)); diff != "" {
		t.Errorf("after the rest (-want +got):\n%s", diff)
	}
}

func TestCandidatesOfCluster(t *testing.T) {
	t.Parallel()
	l, _, p := clusterPool(t, newClock())
	add(t, l, named("a"))
	if diff := cmp.Diff([]string{"10.9.0.9", "10.9.0.10"}, next(t, l, p.ID(), 2)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for range 6 {
		add(t, l, named(fmt.Sprint("x", sequence(t, l))))
	}
	// The others of the pool are not this node's.
	if diff := cmp.Diff([]string{"10.9.0.15"}, next(t, l, p.ID(), 20)); diff != "" {
		t.Errorf("the last (-want +got):\n%s", diff)
	}
	if done, err := l.Quarantine(p.ID(), netip.MustParseAddr("10.9.0.16"), "x"); done || err != nil {
		t.Errorf("an address of another node: %v, %v", done, err)
	}
	if done, err := l.Quarantine(p.ID(), netip.MustParseAddr("10.9.0.15"), "x"); !done || err != nil {
		t.Errorf("the last: %v, %v", done, err)
	}
	if _, err := l.Allocate(named("late"), nil); err == nil {
		t.Error("it was given out all the same")
	}
}

// TestQuarantine: an address goes out of use for a while, unless somebody here
// has it.
func TestQuarantine(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := open(t, testOptions(t, c))
	p := pool("lan", set(t, "10.0.0.0/24"))
	add(t, l, request(p, "a"))
	add(t, l, request(p, "b"))
	del(t, l, "b")
	for _, tt := range []struct {
		addr, id string
		want     bool
	}{
		{"10.0.0.2", p.ID(), false}, // held
		{"10.0.0.3", p.ID(), false}, // rests
		{"10.0.0.1", p.ID(), false}, // the gateway
		{"10.0.9.1", p.ID(), false},
		{"10.0.0.4", "another", false},
		{"10.0.0.4", p.ID(), true},
		{"10.0.0.4", p.ID(), false},
	} {
		done, err := l.Quarantine(tt.id, netip.MustParseAddr(tt.addr), "02:00:00:00:00:01 answers for it")
		if done != tt.want || err != nil {
			t.Errorf("%s of %q: %v, %v", tt.addr, tt.id, done, err)
		}
	}
	wantStates(t, l, "10.0.0.2 held a", "10.0.0.3 cooling b", "10.0.0.4 quarantined ")
	rec, _, err := l.Record(netip.MustParseAddr("10.0.0.4"))
	must(t, err)
	if rec.Reason != "02:00:00:00:00:01 answers for it" || !rec.Until.Equal(c.now.Add(10*time.Minute)) || rec.Address.Bits() != 24 || rec.Pool != "lan" {
		t.Errorf("%+v", rec)
	}
	if got := add(t, l, request(p, "c")); got != "10.0.0.5" {
		t.Errorf("the next is %s", got)
	}
	c.add(time.Hour)
	if diff := cmp.Diff([]string{"10.0.0.6"}, next(t, l, p.ID(), 1), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	sound(t, l)
}
