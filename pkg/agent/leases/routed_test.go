package leases

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// owned counts the blocks of each node, and sees that each is whole.
func (c *cluster) owned() (counts []int) {
	c.t.Helper()
	v, err := registry.Registry{Store: c.store}.View(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, n := range c.nodes {
		count := 0
		for _, s := range v.Seen(c.pool.UUID) {
			if len(s.Block.Given) > 0 {
				c.t.Fatalf("of block %s somebody has a part: %+v", s.Block.CIDR, s.Block)
			}
			if s.Block.Owner == n.id {
				count++
			}
		}
		counts = append(counts, count)
	}
	return counts
}

// TestRoutedWhole: a routed pool is used to its last address, each of them on the
// node whose block it is of, and none that a block has to itself; nodes do not
// trade. Who needs more than a block gets another one.
func TestRoutedWhole(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","kind":"routed","ranges":[[{"subnet":"10.0.0.0/25"}]],"blockPrefix":{"ipv4":29}}`, 3)
	defer c.check()
	c.round()
	var block [16]int // whose it is, plus one
	seen := map[netip.Addr]bool{}
	full := 0
	for i := 0; full < 3; i++ {
		if i > 1000 {
			t.Fatal("the pool has no end")
		}
		at := c.rng.IntN(3)
		a, err := c.nodes[at].get(fmt.Sprint("c", i), "")
		if errors.As(err, new(*ipam.ExhaustedError)) {
			full++
			continue
		}
		full = 0
		last := int(a.As4()[3])
		if err != nil || seen[a] || last%8 < 2 || last%8 == 7 {
			t.Fatalf("%s, known %v, %v", a, seen[a], err)
		}
		if owner := &block[last/8]; *owner == 0 {
			*owner = at + 1
		} else if *owner != at+1 {
			t.Fatalf("%s is on node %d, and its block node %d's", a, at, *owner-1)
		}
		seen[a] = true
		c.owned()
	}
	// What is left is on a node that did not ask again.
	for i := range c.nodes {
		for j := range 1000 {
			a, err := c.nodes[i].get(fmt.Sprint("rest", j), "")
			if err != nil {
				break
			}
			seen[a] = true
		}
	}
	if len(seen) != 16*5 || c.pool.Sets[0].Size() != 16*5 {
		t.Errorf("%d of %d addresses given out", len(seen), c.pool.Sets[0].Size())
	}
	if n := c.owned(); n[0]+n[1]+n[2] != 16 {
		t.Errorf("blocks leased: %v", n)
	}
}

// TestRoutedAheadAndBack: a node leases the next block when half of what it has is
// used, or demand says so, and returns what was idle; of the smallest blocks it
// does not hoard.
func TestRoutedAheadAndBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","kind":"routed","ranges":[[{"subnet":"10.0.0.0/24"}]],"blockPrefix":{"ipv4":28}}`, 1)
	defer c.check()
	n := c.nodes[0]
	add := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if _, err := n.get(fmt.Sprint("c", i), ""); err != nil {
				t.Fatal(err)
			}
			c.now = c.now.Add(3 * time.Second) // no demand to speak of
			c.round()
		}
	}
	want := func(when string, blocks int) {
		t.Helper()
		if got := c.owned(); !slices.Equal(got, []int{blocks}) {
			t.Errorf("%s: %v blocks, want %d", when, got, blocks)
		}
	}
	want("before anybody asks", 0)
	add(0, 7)
	want("with 6 of 13 free", 1)
	add(7, 8)
	want("with 5 of 13 free", 2)
	add(8, 20)
	want("with 6 of 26 free", 2)
	add(20, 21)
	want("with 5 of 26 free", 3)
	for i := range 21 {
		n.release(fmt.Sprint("c", i))
	}
	c.now = c.now.Add(9 * time.Minute)
	c.round()
	want("idle for a while", 3)
	c.now = c.now.Add(2 * time.Minute)
	for range 3 {
		c.round()
	}
	want("idle for long", 1)

	small := newCluster(t, 1, `{"version":1,"name":"a","kind":"routed","ranges":[[{"subnet":"10.0.0.0/26"}]],"blockPrefix":{"ipv4":30}}`, 1)
	defer small.check()
	if _, err := small.nodes[0].get("c", ""); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		small.now = small.now.Add(3 * time.Second)
		small.round()
	}
	if got := small.owned(); got[0] != 2 {
		t.Errorf("with one attachment: %v blocks of one address, want another one ahead", got)
	}
}

// TestRoutedQuota: a quota counts what containers may have, and an ADD that waits
// is told of it.
func TestRoutedQuota(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","tenant":"red","kind":"routed","ranges":[[{"subnet":"10.0.0.0/24"}]],"blockPrefix":{"ipv4":29}}`, 2)
	defer c.check()
	r := registry.Registry{Store: c.store}
	if err := r.PutTenant(t.Context(), record.Tenant{Name: "red", Quota: 10}); err != nil {
		t.Fatal(err)
	}
	c.round()
	for i := range 10 {
		if _, err := c.nodes[i%2].get(fmt.Sprint("c", i), ""); err != nil {
			t.Fatal(err)
		}
	}
	var over *registry.QuotaError
	if _, err := c.nodes[0].get("one too many", ""); !errors.As(err, &over) || over.Leased != 10 || over.More != 5 {
		t.Errorf("beyond the quota: %v", err)
	}
	if got := c.owned(); !slices.Equal(got, []int{1, 1}) {
		t.Errorf("blocks: %v", got)
	}
}

// TestRoutedFetch: who asks for an address by name gets it with its whole block, if
// nobody has anything of that.
func TestRoutedFetch(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","kind":"routed","ranges":[[{"subnet":"10.0.0.0/26"}]],"blockPrefix":{"ipv4":29}}`, 2)
	defer c.check()
	c.round()
	fetch := func(n *node, a string) (bool, error) {
		v, err := n.Registry.View(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n.Fetch(t.Context(), v, c.pool, netip.MustParseAddr(a), "")
	}
	if got, err := fetch(c.nodes[0], "10.0.0.20"); !got || err != nil {
		t.Errorf("one that nobody has: %v, %v", got, err)
	}
	if got, err := fetch(c.nodes[0], "10.0.0.21"); !got || err != nil {
		t.Errorf("another of the block: %v, %v", got, err)
	}
	var taken *ipam.TakenError
	if got, err := fetch(c.nodes[1], "10.0.0.21"); got || !errors.As(err, &taken) || taken.State != ipam.Elsewhere {
		t.Errorf("another node's: %v, %v", got, err)
	}
	if got := c.owned(); !slices.Equal(got, []int{1, 0}) {
		t.Errorf("blocks: %v", got)
	}
	// What a node has of a block that nobody leases keeps all others away.
	cidr := netip.MustParsePrefix("10.0.0.32/29")
	part := lease.Block{CIDR: cidr, Given: map[netip.Addr]lease.Entry{netip.MustParseAddr("10.0.0.34"): {Node: c.nodes[0].id}}}
	value, err := record.EncodeBlock(part)
	if err != nil {
		t.Fatal(err)
	}
	if a := c.store.Swap(t.Context(), record.BlockKey(c.pool.UUID, cidr), 0, value); a.Outcome != registry.Applied {
		t.Fatalf("%+v", a)
	}
	if got, err := fetch(c.nodes[1], "10.0.0.35"); got || !errors.As(err, &taken) {
		t.Errorf("of a block that another node has something of: %v, %v", got, err)
	}
	if got, err := fetch(c.nodes[0], "10.0.0.35"); !got || err != nil {
		t.Errorf("of a block that the node has something of: %v, %v", got, err)
	}
}
