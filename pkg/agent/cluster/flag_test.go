package cluster

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// up counts the flags that are up.
func (b *bed) up() (n int) {
	b.t.Helper()
	v, err := b.reg.View(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, wants := range v.Wants {
		n += len(wants)
	}
	return n
}

// TestFlagLasts: the flag of an ADD that gave up is answered when somebody can,
// and the ADD that comes again finds that at once. Without one it comes down.
func TestFlagLasts(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/29"}]],"blockPrefix":{"ipv4":29}}`, 2)
		defer b.end()
		owner, other := b.nodes[0], b.nodes[1]
		if _, _, err := owner.add(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.partition("n0")
		var full *ipam.ExhaustedError
		if _, _, err := other.add(""); !errors.As(err, &full) {
			t.Fatalf("while nobody answers: %v", err)
		}
		time.Sleep(lasting / 2)
		if b.up() != 1 {
			t.Error("the flag went down with its ADD")
		}
		if _, _, err := other.add(""); !errors.As(err, &full) {
			t.Fatalf("while nobody answers: %v", err)
		}
		b.partition()
		time.Sleep(lasting / 2)
		if b.up() != 0 {
			t.Error("the flag was not answered")
		}
		came := time.Now()
		_, _, err := other.add("")
		if took := time.Since(came); err != nil || took > time.Millisecond {
			t.Errorf("when it comes again: %s, %v", took, err)
		}
		b.partition("n0")
		if _, _, err := other.add(""); !errors.As(err, &full) {
			t.Fatalf("while nobody answers: %v", err)
		}
		time.Sleep(lasting + every)
		if b.up() != 0 {
			t.Errorf("the flag is up %s after the ADD", lasting+every)
		}
	})
}

// TestRow: where many have an address each and one has all that is free, an ADD
// does not wait for them all.
func TestRow(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/25"}]],"blockPrefix":{"ipv4":25}}`, 50)
		defer b.end()
		for _, n := range b.nodes {
			if _, _, err := n.add(""); err != nil {
				t.Fatalf("%s: %v", n.name, err)
			}
		}
		for i, n := range b.nodes {
			came := time.Now()
			_, _, err := n.add("")
			if took := time.Since(came); err != nil || took > 1500*time.Millisecond {
				t.Fatalf("the second on %s: %s, %v", b.nodes[i].name, took, err)
			}
		}
	})
}

// TestUnbound: what somebody put in the place of a flag, or of a sign of life,
// keeps nobody from anything, and goes.
func TestUnbound(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/29"}]],"blockPrefix":{"ipv4":29}}`, 2)
		defer b.end()
		if _, _, err := b.nodes[0].add(""); err != nil {
			t.Fatal(err)
		}
		v, err := b.reg.View(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n := b.nodes[1]
		pool, me := v.Pools["a"].Value.UUID, n.node.Node
		n.stop()
		b.store.Put(record.LiveFolder+string(me), []byte("junk"))
		n.start()
		if err := n.Away(); err != nil {
			t.Errorf("with a sign of life of its own that is none: %v", err)
		}
		// The agents do not hear of these before the ADD, and then they do.
		b.store.Hold(true)
		junk := []string{record.WantKey(pool, me), record.WantFolder + "x/y"}
		for _, key := range junk {
			b.store.Put(key, record.EncodeWant(record.Want{Node: me, Pool: pool}))
		}
		time.AfterFunc(time.Second, func() { b.store.Hold(false) })
		if _, _, err := n.add(""); err != nil {
			t.Errorf("with a flag of its own that is none: %v", err)
		}
		time.Sleep(every)
		for _, key := range junk {
			if item, err := b.store.Get(t.Context(), key); err != nil || item.Rev != 0 {
				t.Errorf("%s is left: %q, %v", key, item.Value, err)
			}
		}
	})
}

// TestPoolDeleted: an ADD that waits for an address of a pool which is being
// deleted hears of that at once.
func TestPoolDeleted(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/29"}]],"blockPrefix":{"ipv4":29}}`, 2)
		defer b.end()
		if _, _, err := b.nodes[0].add(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.partition("n0")
		deleted := make(chan error)
		time.AfterFunc(time.Second, func() { deleted <- b.reg.DeletePool(t.Context(), "a") })
		came := time.Now()
		_, _, err := b.nodes[1].add("")
		if took := time.Since(came); !errors.Is(err, registry.ErrDeleting) || took > 1100*time.Millisecond {
			t.Errorf("after %s: %v", took, err)
		}
		if err := <-deleted; err == nil {
			t.Error("a pool in use was deleted")
		}
	})
}

// TestFlagOfNoPool: a flag goes with its pool.
func TestFlagOfNoPool(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/29"}]],"blockPrefix":{"ipv4":29}}`, 2)
		defer b.end()
		owner, other := b.nodes[0], b.nodes[1]
		if _, _, err := owner.add(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.partition("n0")
		if _, _, err := other.add(""); err == nil || b.up() != 1 {
			t.Fatalf("%d flags are up, %v", b.up(), err)
		}
		owner.stop()
		b.partition()
		if err := b.reg.Remove(t.Context(), owner.node.Node, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // the other one frees what it had
		if err := b.reg.DeletePool(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(every)
		if b.up() != 0 {
			t.Error("the flag has outlived the pool")
		}
		_, _, err := other.add("")
		if err == nil || !strings.Contains(err.Error(), `the registry knows no pool "a"`) {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// TestUnknownAgain: an ADD from a pool that does not exist, which a runtime
// repeats for ever, reads no more of the registry than it takes.
func TestUnknownAgain(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, "", 1)
		defer b.end()
		lists := 0
		b.store.Rig(func(r memstore.Request) memstore.Fault {
			if r.Kind == "list" {
				lists++
			}
			return memstore.Deliver
		})
		for range 10 {
			if _, _, err := b.nodes[0].add(""); err == nil || !strings.Contains(err.Error(), `the registry knows no pool "a"`) {
				t.Errorf("%v", err)
			}
		}
		if lists > 0 {
			t.Errorf("%d lists for 10 ADDs", lists)
		}
	})
}
