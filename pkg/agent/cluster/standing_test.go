package cluster

import (
	"errors"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// TestRemoved: what a removed node had is free for others after its rest, and
// the node comes back as another one.
func TestRemoved(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/29","gateway":"10.0.0.1"}]],"blockPrefix":{"ipv4":30}}`, 2)
		defer b.end()
		n, other := b.nodes[0], b.nodes[1]
		for range 5 {
			if _, _, err := n.add(""); err != nil {
				t.Fatal(err)
			}
		}
		before := n.node.Node
		n.stop()
		time.Sleep(time.Minute)
		if err := b.reg.Remove(t.Context(), before, time.Minute); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if _, _, err := other.add(""); err == nil {
			t.Error("its addresses were given to others without a rest")
		}
		time.Sleep(time.Minute)
		clear(b.used)
		for i := range 5 {
			if _, _, err := other.add(""); err != nil {
				t.Fatalf("the %dth after the rest: %v", i+1, err)
			}
		}
		n.options.BootID = "another boot"
		n.start()
		if n.node.Node == before || !n.log.has("removed from the cluster") {
			t.Errorf("it is back as %s", n.node.Node)
		}
		if _, _, err := n.add(""); err == nil {
			t.Error("it still has what it leased")
		}
	})
}

// TestCopied: an agent with a copy of a ledger gets nowhere.
func TestCopied(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]]}`, 1)
		defer b.end()
		n := b.nodes[0]
		if _, _, err := n.add(""); err != nil {
			t.Fatal(err)
		}
		id, err := n.l.Node()
		if err != nil {
			t.Fatal(err)
		}
		if err := b.reg.Enroll(t.Context(), record.Node{Node: id, Machine: "elsewhere", Name: "copy"}); !errors.Is(err, registry.ErrCopied) {
			t.Errorf("a copy on another machine: %v", err)
		}
		if err := b.reg.Enroll(t.Context(), record.Node{Node: id, Machine: "machine-n0", Boot: "boot", Folder: "1:2", Name: "copy"}); !errors.Is(err, registry.ErrCopied) {
			t.Errorf("a copy in another folder: %v", err)
		}
		if err := b.reg.Enroll(t.Context(), record.Node{Node: id, Machine: "machine-n0", Boot: "later", Folder: "1:2", Name: "n0"}); err != nil {
			t.Errorf("moved, and the machine booted again: %v", err)
		}
		if _, err := b.reg.Bind(t.Context(), record.Live{Node: id, Machine: "machine-n0", Boot: "boot", Inode: 1}, time.Minute); !errors.Is(err, registry.ErrTaken) {
			t.Errorf("a copy beside it: %v", err)
		}
	})
}

// TestRecovered: a registry that was restored from a backup is frozen, and after
// an operator's word it agrees with the ledgers again.
func TestRecovered(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/27","gateway":"10.0.0.1"}]],"blockPrefix":{"ipv4":30}}`, 3)
		defer b.end()
		for i := range 9 {
			if _, _, err := b.nodes[i%3].add(""); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(15 * time.Second)
		backup := b.store.Snapshot()
		for i := range 9 {
			if _, _, err := b.nodes[i%3].add(""); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute) // the ledgers write down how far the registry was
		b.store.Restore(backup)
		time.Sleep(time.Minute)
		v, err := b.reg.View(t.Context())
		if err != nil || v.Cluster.Value.Frozen == nil {
			t.Fatalf("the registry is not frozen: %+v, %v", v.Cluster, err)
		}
		if _, err := b.reg.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		got := len(b.used)
		for ; got < 29; got++ {
			if _, _, err := b.nodes[got%3].add(""); err != nil {
				t.Fatalf("the %dth after the recovery: %v", got+1, err)
			}
		}
	})
}
