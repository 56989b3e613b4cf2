package cluster

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// TestFrozen: while nobody may trade, an ADD does not either.
func TestFrozen(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]],"blockPrefix":{"ipv4":30}}`, 2)
		defer b.end()
		n := b.nodes[0]
		if _, _, err := n.add(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Second)
		if err := b.reg.Freeze(t.Context(), record.Frozen{Node: n.node.Node, Reason: "a test", Epoch: 1, Rev: 1000}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		before, err := b.reg.View(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			_, _, err = n.add("")
		}
		after, verr := b.reg.View(t.Context())
		if verr != nil {
			t.Fatal(verr)
		}
		if was, is := before.Leased(""), after.Leased(""); was != is {
			t.Errorf("%d addresses were leased, and while the registry is frozen %d are", was, is)
		}
		if err == nil || !strings.Contains(err.Error(), "underlayctl registry recovered") {
			t.Errorf("what it leases is used up: %v", err)
		}
	})
}

// put writes what no version of underlay has written.
func (b *bed) put(key, value string) {
	b.t.Helper()
	item, err := b.store.Get(b.t.Context(), key)
	if err != nil {
		b.t.Fatal(err)
	}
	b.store.Swap(b.t.Context(), key, item.Rev, []byte(value))
}

// TestUnreadNode: what cannot be the record of a node keeps nobody from trading.
func TestUnreadNode(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]],"blockPrefix":{"ipv4":30}}`, 1)
		defer b.end()
		b.put(record.NodeFolder+"junk", `junk`)
		time.Sleep(time.Second)
		for range 9 {
			if _, _, err := b.nodes[0].add(""); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestUnreadPool: a node goes on with what it leases of a pool whose object
// cannot be read.
func TestUnreadPool(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]],"blockPrefix":{"ipv4":28}}`, 1)
		defer b.end()
		n := b.nodes[0]
		if _, _, err := n.add(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.put(record.PoolFolder+"a", `{"version":2,"name":"a","shape":"new"}`)
		time.Sleep(time.Minute)
		if _, _, err := n.add(""); err != nil {
			t.Error(err)
		}
	})
}

// TestUnreadBlock: a record in the way of forgetting a removed node does not
// fill the log.
func TestUnreadBlock(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]],"blockPrefix":{"ipv4":30}}`, 2)
		defer b.end()
		n, gone := b.nodes[0], b.nodes[1]
		if _, _, err := gone.add(""); err != nil {
			t.Fatal(err)
		}
		id := gone.node.Node
		gone.stop()
		time.Sleep(time.Minute)
		b.put(record.BlockFolder+record.NewUUID()+"/10.9.9.0_30", "junk")
		if err := b.reg.Remove(t.Context(), id, time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		n.log.mu.Lock()
		defer n.log.mu.Unlock()
		if lines := strings.Count(n.log.text.String(), "what a removed node had"); lines > 6 {
			t.Errorf("%d lines", lines)
		}
	})
}

// TestTwoFamilies: what a node asks for is given to the last address, and not
// one of the other family in its place.
func TestTwoFamilies(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"fd00::/124"}]],"blockPrefix":{"ipv4":28,"ipv6":126}}`, 3)
		defer b.end()
		for i := range 14 {
			if _, _, err := b.nodes[i%3].add(""); err != nil {
				t.Errorf("the %dth of 14: %v", i+1, err)
			}
		}
	})
}

// TestAheadOfBoth: a node leases of each family ahead of need.
func TestAheadOfBoth(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.4","rangeEnd":"10.0.0.251"}],[{"subnet":"fd00::/120"}]],"blockPrefix":{"ipv4":30,"ipv6":122}}`, 1)
		defer b.end()
		n := b.nodes[0]
		for range 3 {
			if _, _, err := n.add(""); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		b.partition(n.name)
		for i := range 3 {
			if _, _, err := n.add(""); err != nil {
				t.Fatalf("the %dth without the registry: %v", i+1, err)
			}
		}
	})
}

// TestLateStore: an agent that starts before its registry's store joins later.
func TestLateStore(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]]}`, 1)
		defer b.end()
		n := b.nodes[0]
		n.stop()
		n.down = 30
		n.start() // it is ready without
		if err := n.Away(); err == nil {
			t.Error("the registry is followed, and the store was not reached")
		}
		time.Sleep(30 * time.Second)
		if _, _, err := n.add(""); err != nil {
			t.Error(err)
		}
	})
}

// TestNewPool: the first ADD from a pool, however soon, leases no more than it
// needs.
func TestNewPool(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, "", 1)
		defer b.end()
		b.pool(`{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"fd00::/64"}]]}`)
		if _, _, err := b.nodes[0].add(""); err != nil {
			t.Fatal(err)
		}
		v, err := b.reg.View(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if blocks := v.Seen(v.Pools["a"].Value.UUID); len(blocks) != 1 {
			t.Errorf("it leases %d blocks", len(blocks))
		}
	})
}

// TestDelete: a pool of which nobody uses anything can be deleted, although nodes
// lease ahead of need; one that is used goes on as it was.
func TestDelete(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]],"sticky":true}`, 2)
		defer b.end()
		var ids []string
		for i, n := range b.nodes {
			id, _, err := n.add([]string{"", "ns/web-0"}[i])
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		var used *registry.InUseError
		if err := b.reg.DeletePool(t.Context(), "a"); !errors.As(err, &used) {
			t.Errorf("in use: %v", err)
		}
		time.Sleep(time.Second)
		for i, n := range b.nodes {
			id, _, err := n.add("")
			if err != nil {
				t.Fatal(err)
			}
			n.del(id)
			n.del(ids[i])
		}
		time.Sleep(time.Second)
		if err := b.reg.DeletePool(t.Context(), "a"); err != nil {
			t.Errorf("not in use: %v", err)
		}
		if v, err := b.reg.View(t.Context()); err != nil || len(v.Pools)+len(v.Blocks) != 0 {
			for pool := range v.Blocks {
				if len(v.Blocks[pool]) > 0 {
					t.Errorf("left: %v, %v", v.Blocks, err)
				}
			}
		}
	})
}

// TestSessionLost: an agent that has lost its session takes no time to come back.
func TestSessionLost(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]]}`, 1)
		defer b.end()
		n := b.nodes[0]
		time.Sleep(time.Minute)
		item, err := b.reg.Store.Get(t.Context(), record.LiveFolder+string(n.node.Node))
		if err != nil {
			t.Fatal(err)
		}
		live, err := record.DecodeLive(item.Value)
		if err != nil {
			t.Fatal(err)
		}
		session, err := b.reg.Bind(t.Context(), live, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := n.Away(); err != nil || session.Context().Err() == nil {
			t.Errorf("it is not back: %v", err)
		}
		if !n.log.has("the session is lost") {
			t.Error("it did not lose its session")
		}
	})
}
