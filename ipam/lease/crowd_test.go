package lease_test

import (
	"fmt"
	"testing"

	"github.com/underlay-cni/underlay/ipam/lease"
)

// TestCrowd: a thousand nodes need a block at the same moment, all with the
// same view. Few are refused, and of those few again.
func TestCrowd(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, subnet string
		bits         int
		rounds       int
	}{
		{"plenty", `{"subnet":"2001:db8::/64"}`, 122, 1},
		{"two for each", `{"subnet":"10.0.0.0/16"}`, 27, 6},
		{"just enough", `{"subnet":"10.0.0.0/16","rangeEnd":"10.0.124.255"}`, 27, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ranges := set(t, tt.subnet)
			g := grid(t, tt.bits, tt.subnet)
			var view []lease.Seen
			waiting := make(map[lease.Node]bool)
			for i := range 1000 {
				waiting[lease.Node(fmt.Sprintf("%08d-0000-4000-8000-000000000000", i))] = true
			}
			refused, round := 0, 0
			for ; len(waiting) > 0; round++ {
				if round > tt.rounds {
					t.Fatalf("%d nodes have no block after %d rounds", len(waiting), round)
				}
				taken := make(map[string]bool)
				before := view
				for n := range waiting {
					s := lease.Search{Node: n, Grid: g, Usable: ranges[0].Usable, Blocks: before, Attempt: round}
					cidr := s.Find().CIDR
					if !cidr.IsValid() {
						t.Fatalf("nothing is left for %s", n)
					}
					if taken[cidr.String()] {
						refused++
						continue
					}
					taken[cidr.String()] = true
					delete(waiting, n)
					view = append(view, lease.Seen{Block: lease.Block{CIDR: cidr, Owner: n}})
				}
			}
			t.Logf("%d blocks: %d rounds, %d swaps refused", g.Len(), round, refused)
		})
	}
}
