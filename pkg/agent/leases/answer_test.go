package leases

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// fresh reads all of the registry for a node.
func (n *node) fresh() *registry.View {
	n.c.t.Helper()
	v, err := n.Registry.View(n.c.t.Context())
	if err != nil {
		n.c.t.Fatal(err)
	}
	return v
}

// asking is a cluster in which the first nodes have leased all blocks, and the
// others have a flag up.
func asking(t *testing.T, owners, others int) *cluster {
	t.Helper()
	spec := fmt.Sprintf(`{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/%d"}]],"blockPrefix":{"ipv4":29}}`, map[int]int{1: 29, 2: 28}[owners])
	c := newCluster(t, 1, spec, owners+others)
	c.round()
	for i, n := range c.nodes {
		if got, err := n.Need(t.Context(), n.fresh(), c.pool, 0, ""); err != nil || got != (i < owners) {
			t.Fatalf("%s: %v, %v", n.name, got, err)
		}
	}
	for i, n := range c.nodes[owners:] {
		if got, err := n.Need(t.Context(), n.fresh(), c.pool, 0, ""); err != nil || got {
			t.Fatalf("%d: %v, %v", i, got, err)
		}
	}
	if up := c.nodes[0].fresh().Wants[c.pool.UUID]; len(up) != others {
		t.Fatalf("%d flags are up, want %d", len(up), others)
	}
	return c
}

func (c *cluster) dues() (dues []due) {
	for _, w := range c.nodes[0].fresh().Wants[c.pool.UUID] {
		dues = append(dues, due{w, c.now})
	}
	return dues
}

// TestAnsweredOnce: of two nodes that answer the same flag at the same moment,
// with the same view, one gives.
func TestAnsweredOnce(t *testing.T) {
	t.Parallel()
	c := asking(t, 2, 1)
	defer c.check()
	dues := c.dues()
	views := []*registry.View{c.nodes[0].fresh(), c.nodes[1].fresh()}
	// The second comes between what the first reads and its swap.
	second := func() {
		if err := c.nodes[1].giveTo(t.Context(), views[1], c.pool, dues, c.nodes[1].unused(views[1])); err != nil {
			t.Error(err)
		}
	}
	c.store.Rig(func(r memstore.Request) memstore.Fault {
		if r.Client == "n0" && r.Kind == "swap" && second != nil {
			f := second
			second = nil
			f()
		}
		return memstore.Deliver
	})
	if err := c.nodes[0].giveTo(t.Context(), views[0], c.pool, dues, c.nodes[0].unused(views[0])); err != nil {
		t.Fatal(err)
	}
	if got := c.leased()[2]; second != nil || got != 1 {
		t.Errorf("the node that asked has %d addresses", got)
	}
}

// TestAnsweredTogether: what goes to several nodes out of one block is one change
// of its record.
func TestAnsweredTogether(t *testing.T) {
	t.Parallel()
	c := asking(t, 1, 4)
	defer c.check()
	swaps := 0
	c.store.Rig(func(r memstore.Request) memstore.Fault {
		if r.Kind == "swap" && strings.HasPrefix(r.Key, record.BlockFolder) {
			swaps++
		}
		return memstore.Deliver
	})
	c.now = c.now.Add(time.Second)
	if _, err := c.nodes[0].Round(t.Context(), c.nodes[0].fresh()); err != nil {
		t.Fatal(err)
	}
	v := c.nodes[0].fresh()
	for i, n := range c.leased()[1:] {
		if n != 1 {
			t.Errorf("node %d was given %d addresses", i+1, n)
		}
	}
	if swaps != 1 || len(v.Wants[c.pool.UUID]) != 0 {
		t.Errorf("%d swaps, flags %v", swaps, v.Wants)
	}
}

// TestAskedAgain: a flag that somebody took down, and then died, is raised again,
// though not at once.
func TestAskedAgain(t *testing.T) {
	t.Parallel()
	c := asking(t, 1, 1)
	defer c.check()
	n := c.nodes[1]
	if mine, err := n.Registry.Take(t.Context(), c.pool.UUID, c.dues()[0].Want); !mine || err != nil {
		t.Fatal(mine, err)
	}
	if mine, err := n.Registry.Take(t.Context(), c.pool.UUID, lease.Want{Node: n.id, Rev: 1}); mine || err != nil {
		t.Fatal(mine, err)
	}
	for _, tt := range []struct {
		after time.Duration
		up    bool
	}{{0, false}, {answerTime / 2, false}, {answerTime, true}} {
		c.now = c.now.Add(tt.after)
		if _, err := n.Need(t.Context(), n.fresh(), c.pool, 0, ""); err != nil {
			t.Fatal(err)
		}
		if up := len(n.fresh().Wants[c.pool.UUID]) > 0; up != tt.up {
			t.Errorf("after %s more it is up: %v", tt.after, up)
		}
	}
	// A clock that goes back keeps nobody from it.
	if mine, err := n.Registry.Take(t.Context(), c.pool.UUID, c.dues()[0].Want); !mine || err != nil {
		t.Fatal(mine, err)
	}
	for range 2 {
		if _, err := n.Need(t.Context(), n.fresh(), c.pool, 0, ""); err != nil {
			t.Fatal(err)
		}
		c.now = c.now.Add(-time.Hour)
	}
	if len(n.fresh().Wants[c.pool.UUID]) == 0 {
		t.Error("not raised again when the clock went back")
	}
}

// TestTurnOfTheClock: a flag that was seen before the clock was put back is
// answered all the same.
func TestTurnOfTheClock(t *testing.T) {
	t.Parallel()
	c := asking(t, 2, 1)
	defer c.check()
	c.now = c.now.Add(time.Hour)
	for _, n := range c.nodes[:2] {
		var err error
		for ; err == nil; n.next++ {
			_, err = n.Ledger.Allocate(request(fmt.Sprint(n.next), ""), nil)
		}
		if _, err := n.Round(t.Context(), n.fresh()); err != nil {
			t.Fatal(err)
		}
		n.release("0")
	}
	c.now = c.now.Add(-time.Hour)
	c.round()
	c.now = c.now.Add(100 * time.Millisecond)
	c.round()
	if got := c.leased()[2]; got != 1 {
		t.Errorf("the node that asked has %d addresses", got)
	}
}

func (n *node) unused(v *registry.View) [][]netip.Addr {
	n.c.t.Helper()
	spares, err := n.spares(v, n.c.pool)
	if err != nil {
		n.c.t.Fatal(err)
	}
	return spares
}
