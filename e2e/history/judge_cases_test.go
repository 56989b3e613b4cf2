package history_test

import (
	"net/netip"
	"testing"
	"time"
)

// The judge finds what is wrong, and nothing in what may be.
func TestJudge(t *testing.T) {
	t.Parallel()
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	add := func(who string, a netip.Addr, begin, end time.Duration) call {
		return call{verb: "ADD", attachment: who, addr: a, begin: begin, end: end, outcome: ok}
	}
	del := func(who string, begin, end time.Duration, o outcome) call {
		return call{verb: "DEL", attachment: who, begin: begin, end: end, outcome: o}
	}
	tests := []struct {
		name  string
		calls []call
		bad   int
	}{
		{name: "nothing"},
		{name: "one after the other", calls: []call{add("x", one, 0, 1), del("x", 2, 3, ok), add("y", one, 4, 5)}},
		{name: "two at a time", calls: []call{add("x", one, 0, 1), add("y", one, 2, 3)}, bad: 1},
		{name: "two addresses", calls: []call{add("x", one, 0, 1), add("y", two, 2, 3)}},
		{name: "of two addresses both", calls: []call{add("x", one, 0, 1), add("y", one, 2, 3), add("z", two, 4, 5), add("w", two, 4, 5)}, bad: 2},
		{name: "before the DEL begins", calls: []call{add("x", one, 0, 1), add("y", one, 2, 3), del("x", 4, 5, ok)}, bad: 1},
		{name: "while the DEL runs", calls: []call{add("x", one, 0, 1), del("x", 2, 9, ok), add("y", one, 3, 4)}},
		{name: "at once", calls: []call{add("x", one, 0, 5), add("y", one, 0, 5)}, bad: 1},
		{name: "written down late", calls: []call{del("x", 2, 3, ok), add("y", one, 4, 5), add("x", one, 0, 1)}},
		{name: "the same again", calls: []call{add("x", one, 0, 1), add("x", one, 2, 3), del("x", 4, 5, ok), add("y", one, 6, 7)}},
		{name: "another's DEL", calls: []call{add("x", one, 0, 1), del("z", 2, 3, ok), add("y", one, 4, 5)}, bad: 1},
		{name: "a DEL that died", calls: []call{add("x", one, 0, 1), del("x", 2, 3, unknown), add("y", one, 4, 5)}},
		{name: "a DEL that died, and nothing came of it", calls: []call{add("x", one, 0, 1), del("x", 2, 3, unknown), add("x", one, 4, 5), add("y", one, 6, 7)}},
		{name: "a DEL that died, and then one that did not", calls: []call{
			add("x", one, 0, 1), del("x", 2, 3, unknown), del("x", 4, 5, ok), add("x", one, 6, 7), add("y", one, 8, 9)}, bad: 1},
		{name: "a DEL that failed", calls: []call{add("x", one, 0, 1), del("x", 2, 3, failed), add("y", one, 4, 5)}},
		{name: "after a DEL of long ago", calls: []call{add("x", one, 0, 1), del("x", 2, 3, ok), add("x", one, 4, 5), add("y", one, 6, 7), del("x", 8, 9, ok)}, bad: 1},
		{name: "two out of three", calls: []call{add("x", one, 0, 1), del("x", 2, 3, ok), add("y", one, 4, 5), add("z", one, 6, 7)}, bad: 1},
		{name: "an ADD that died", calls: []call{{verb: "ADD", attachment: "x", begin: 0, end: 1, outcome: unknown}, add("y", one, 2, 3)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := judge(test.calls, time.Minute); len(got) != test.bad {
				t.Errorf("%d findings, want %d: %q", len(got), test.bad, got)
			}
		})
	}
}

func TestStrictly(t *testing.T) {
	t.Parallel()
	pool, a := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParseAddr("192.0.2.1")
	add := func(owner string) call { return call{verb: "ADD", owner: owner, addr: a, outcome: ok} }
	if got := strictly([]call{add("x"), add("x")}, pool); len(got) != 0 {
		t.Errorf("the same owner: %q", got)
	}
	for _, other := range []string{"y", ""} {
		if got := strictly([]call{add("x"), add(other)}, pool); len(got) != 1 {
			t.Errorf("another owner: %q", got)
		}
	}
	elsewhere := netip.MustParsePrefix("198.51.100.0/24")
	if got := strictly([]call{add("x"), add("y")}, elsewhere); len(got) != 0 {
		t.Errorf("another pool: %q", got)
	}
}
