package leases

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// TestClockPutBack: what was in use by a clock that was far ahead is idle some
// minutes later all the same, and the registry's revision is written down.
func TestClockPutBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]],"blockPrefix":{"ipv4":29}}`, 1)
	defer c.check()
	n := c.nodes[0]
	c.round()
	c.now = c.now.Add(365 * 24 * time.Hour)
	for i := range 20 {
		if _, err := n.get(fmt.Sprint("c", i), ""); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		n.release(fmt.Sprint("c", i))
	}
	before := c.leased()[0]
	c.now = c.now.Add(-365 * 24 * time.Hour)
	c.round()
	past, err := n.Ledger.Past()
	if err != nil {
		t.Fatal(err)
	}
	if now := n.fresh().Rev; past.Rev < now-2 {
		t.Errorf("the ledger knows of revision %d, and the registry is at %d", past.Rev, now)
	}
	c.now = c.now.Add(11 * time.Minute)
	for range 3 {
		c.round()
	}
	if got := c.leased()[0]; before < 24 || got != 8 {
		t.Errorf("%d leased, and %d after 11 minutes, want one block", before, got)
	}
}

// TestParkedTogether: what rests for sticky owners in one block is one change of
// its record.
func TestParkedTogether(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/28"}]],"blockPrefix":{"ipv4":28},"sticky":true}`, 1)
	defer c.check()
	c.round()
	n := c.nodes[0]
	for i := range 5 {
		if _, err := n.get(fmt.Sprint("c", i), fmt.Sprint("ns/web-", i)); err != nil {
			t.Fatal(err)
		}
	}
	c.round()
	for i := range 5 {
		n.release(fmt.Sprint("c", i))
	}
	swaps := 0
	c.store.Rig(func(r memstore.Request) memstore.Fault {
		if r.Kind == "swap" && strings.HasPrefix(r.Key, record.BlockFolder) {
			swaps++
		}
		return memstore.Deliver
	})
	c.round()
	parked := 0
	for _, s := range n.fresh().Seen(c.pool.UUID) {
		for _, e := range s.Block.Given {
			if e.Parked() {
				parked++
			}
		}
	}
	if parked != 5 || swaps != 1 {
		t.Errorf("%d are parked, in %d swaps", parked, swaps)
	}
}

// TestRecordOfAnotherSize: a node takes nothing from a record that overlaps the
// blocks of others.
func TestRecordOfAnotherSize(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/28"}]],"blockPrefix":{"ipv4":30}}`, 2)
	defer c.check()
	c.round()
	if _, err := c.nodes[0].get("c", ""); err != nil {
		t.Fatal(err)
	}
	cidr := netip.MustParsePrefix("10.0.0.0/28")
	value, err := record.EncodeBlock(lease.Block{CIDR: cidr, Owner: c.nodes[1].id})
	if err != nil {
		t.Fatal(err)
	}
	c.store.Put(record.BlockKey(c.pool.UUID, cidr), value)
	c.round()
	if spares, err := c.nodes[1].Ledger.Spares(c.pool.UUID, maxSpares); err != nil || len(spares) != 0 {
		t.Errorf("the node has %v, %v", spares, err)
	}
}
