package lease_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

// set loads one range set as a pool has it.
func set(t interface{ Fatal(...any) }, ranges ...string) ipam.RangeSet {
	var raws []json.RawMessage
	for _, r := range ranges {
		raws = append(raws, json.RawMessage(r))
	}
	sets, err := ipam.LoadRanges([][]json.RawMessage{raws}, false)
	if err != nil {
		t.Fatal(err)
	}
	return sets[0]
}

func grid(t interface{ Fatal(...any) }, bits int, ranges ...string) lease.Grid {
	g, err := lease.NewGrid(set(t, ranges...), bits)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func none(netip.Prefix) bool { return false }

func TestGrid(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		bits        int
		ranges      []string
		n           uint64
		first, last string
	}{
		{"whole subnet", 26, []string{`{"subnet":"10.5.0.0/16"}`}, 1024, "10.5.0.0/26", "10.5.255.192/26"},
		{"part of a subnet", 30, []string{`{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.6","rangeEnd":"10.0.0.9"}`}, 2, "10.0.0.4/30", "10.0.0.8/30"},
		{"ranges that share a block", 28, []string{
			`{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.20","rangeEnd":"10.0.0.40"}`,
			`{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.10","rangeEnd":"10.0.0.18"}`,
			`{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.42","rangeEnd":"10.0.0.43"}`,
		}, 3, "10.0.0.0/28", "10.0.0.32/28"},
		{"single addresses", 32, []string{`{"subnet":"10.0.0.0/30"}`}, 2, "10.0.0.1/32", "10.0.0.2/32"},
		{"all of IPv6's", 122, []string{`{"subnet":"2001:db8::/64"}`}, 1 << 58, "2001:db8::/122", "2001:db8::ffff:ffff:ffff:ffc0/122"},
		{"more than there are numbers", 122, []string{`{"subnet":"2001:db8::/32"}`}, 1 << 60, "2001:db8::/122", "2001:db8:0:3:ffff:ffff:ffff:ffc0/122"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := grid(t, tt.bits, tt.ranges...)
			if g.Len() != tt.n || g.Block(0).String() != tt.first || g.Block(g.Len()-1).String() != tt.last {
				t.Errorf("%d blocks from %s to %s, want %d from %s to %s", g.Len(), g.Block(0), g.Block(g.Len()-1), tt.n, tt.first, tt.last)
			}
			for _, i := range []uint64{0, g.Len() / 2, g.Len() - 1} {
				if !g.Contains(g.Block(i)) {
					t.Errorf("block %d, %s, is not contained", i, g.Block(i))
				}
			}
		})
	}
	for _, bits := range []int{15, 19} {
		if _, err := lease.NewGrid(set(t, `{"subnet":"10.5.0.0/16"}`), bits); err == nil {
			t.Errorf("blocks of /%d of a /16", bits)
		}
	}
}

// TestGridChoosesWithoutEnumerating: in an IPv6 subnet each choice is a few
// steps, also behind a long exclusion.
func TestGridChoosesWithoutEnumerating(t *testing.T) {
	t.Parallel()
	g := grid(t, 122, `{"subnet":"2001:db8::/64","exclude":["2001:db8::/65"]}`)
	asked := 0
	taken := make(map[netip.Prefix]bool)
	for i := range 1000 {
		p, ok := g.Choose(0, func(p netip.Prefix) bool { asked++; return taken[p] })
		if !ok || taken[p] {
			t.Fatalf("choice %d: %s %v", i, p, ok)
		}
		taken[p] = true
	}
	if !taken[netip.MustParsePrefix("2001:db8:0:0:8000::/122")] || asked > 1000*1001/2 {
		t.Errorf("%d questions", asked)
	}
}

// TestGridOfRouted: a block of which only what it has to itself is left is not
// chosen.
func TestGridOfRouted(t *testing.T) {
	t.Parallel()
	routed := set(t, `{"subnet":"10.5.0.0/27","exclude":["10.5.0.10-10.5.0.14"],"rangeEnd":"10.5.0.25"}`).Cut(29)
	g, err := lease.NewGrid(routed, 29)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	taken := map[netip.Prefix]bool{}
	for {
		p, ok := g.Choose(1, func(p netip.Prefix) bool { return taken[p] })
		if !ok {
			break
		}
		taken[p] = true
		got = append(got, p.String())
	}
	if diff := cmp.Diff([]string{"10.5.0.16/29", "10.5.0.0/29"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestGridChoosesEachOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.IntRange(1, 250).Draw(t, "first")
		last := rapid.IntRange(first, 254).Draw(t, "last")
		a := rapid.IntRange(first, last).Draw(t, "exclude from")
		b := rapid.IntRange(a, last).Draw(t, "exclude to")
		exclude := fmt.Sprintf("10.0.0.%d-10.0.0.%d", a, b)
		if a == first && b == last {
			exclude = "10.0.0.0" // a pool without addresses is none
		}
		bits := rapid.IntRange(24, 32).Draw(t, "bits")
		ranges := fmt.Sprintf(`{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.%d","rangeEnd":"10.0.0.%d","gateway":"10.0.0.255","exclude":[%q]}`, first, last, exclude)
		s := set(t, ranges)
		g := grid(t, bits, ranges)
		want := make(map[netip.Prefix]bool)
		for i := range 256 {
			if addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}); s[0].Usable(addr) {
				want[netip.PrefixFrom(addr, bits).Masked()] = true
			}
		}
		got := make(map[netip.Prefix]bool)
		start := rapid.Uint64().Draw(t, "start")
		for {
			p, ok := g.Choose(start, func(p netip.Prefix) bool { return got[p] })
			if !ok {
				break
			}
			if got[p] || !want[p] || !g.Contains(p) {
				t.Fatalf("chose %s", p)
			}
			got[p] = true
		}
		if len(got) != len(want) {
			t.Fatalf("chose %d of %d blocks", len(got), len(want))
		}
	})
}

// TestNodesBeginInDifferentPlaces: of many nodes that look at the same moment
// few meet, and at the next attempt they do not meet again.
func TestNodesBeginInDifferentPlaces(t *testing.T) {
	t.Parallel()
	const nodes = 100
	g := grid(t, 26, `{"subnet":"10.5.0.0/16"}`)
	for attempt := range 5 {
		chosen := make(map[netip.Prefix]int)
		for n := range nodes {
			p, _ := g.Choose(lease.Rotation(lease.Node(fmt.Sprintf("%08d-0000-4000-8000-000000000000", n)), "lease", attempt), none)
			chosen[p]++
		}
		// By chance alone about 95 of 1,024 are hit.
		if len(chosen) < 85 {
			t.Errorf("attempt %d: %d nodes chose %d blocks", attempt, nodes, len(chosen))
		}
	}
}
