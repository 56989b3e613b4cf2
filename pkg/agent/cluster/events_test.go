package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// events lists kind and place of what a node has told of so far.
func (n *node) events() (out []string) {
	all, _ := n.conf.Events.Since(0)
	for _, e := range all {
		out = append(out, strings.TrimSpace(fmt.Sprintln(e.Kind, e.Pool, e.Node)))
	}
	return out
}

func (n *node) count(k api.EventKind) (count int) {
	all, _ := n.conf.Events.Since(0)
	for _, e := range all {
		if e.Kind == k {
			count++
		}
	}
	return count
}

// TestEvents: each turn of things is told of once, on the node that it is about.
func TestEvents(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const pool = `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/29","gateway":"10.0.0.1"}]],"blockPrefix":{"ipv4":29}}`
		b := newBed(t, pool, 2)
		defer b.end()
		one, two := b.nodes[0], b.nodes[1]
		time.Sleep(time.Second)
		if _, _, err := one.add(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if _, _, err := two.add(""); err != nil { // of the only block, which is one's
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if diff := cmp.Diff([]string{"registryConnected", "blockLeased a", "addressesGiven a n1"}, one.events()); diff != "" {
			t.Errorf("on n0 (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"registryConnected", "addressesClaimed a n0"}, two.events()); diff != "" {
			t.Errorf("on n1 (-want +got):\n%s", diff)
		}
		b.partition("n1")
		b.store.Break()
		time.Sleep(time.Minute)
		b.partition()
		time.Sleep(time.Minute)
		p, err := record.LoadPool([]byte(strings.Replace(pool, `"blockPrefix"`, `"coolDown":"1s","blockPrefix"`, 1)))
		if err == nil {
			_, err = b.reg.UpdatePool(t.Context(), p)
		}
		if err != nil {
			t.Fatal(err)
		}
		b.pool(`{"version":1,"name":"b","kind":"shared","ranges":[[{"subnet":"10.1.0.0/29"}]],"blockPrefix":{"ipv4":30}}`)
		time.Sleep(time.Second)
		if err := b.reg.DeletePool(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		want := []string{"registryConnected", "addressesClaimed a n0", "registryAway", "registryConnected", "poolChanged a", "poolChanged b", "poolChanged b"}
		if diff := cmp.Diff(want, two.events()); diff != "" {
			t.Errorf("on n1 afterwards (-want +got):\n%s", diff)
		}
		if one.count(api.PoolChanged) != 3 {
			t.Errorf("on n0 afterwards: %q", one.events())
		}
	})
}

// TestRemovedEvents: that a node was removed is told where it comes back, and
// that what it had is free, where that was done.
func TestRemovedEvents(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]]}`, 2)
		defer b.end()
		n, other := b.nodes[0], b.nodes[1]
		if _, _, err := n.add(""); err != nil {
			t.Fatal(err)
		}
		before := n.node.Node
		n.stop()
		time.Sleep(time.Minute)
		if err := b.reg.Remove(t.Context(), before, time.Minute); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		n.options.BootID = "another boot"
		n.start()
		time.Sleep(time.Minute)
		if n.count(api.NodeRenewed) != 1 || other.count(api.NodeSwept) != 1 || n.count(api.AddressLost) != 0 {
			t.Errorf("on the node %q, on the other %q", n.events(), other.events())
		}
	})
}

// TestRemovedAlive: a node that an operator removed while it ran tells which of
// its containers have addresses that others get now.
func TestRemovedAlive(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]]}`, 2)
		defer b.end()
		n := b.nodes[0]
		first, _, err := n.add("")
		if err != nil {
			t.Fatal(err)
		}
		second, a, err := n.add("")
		if err != nil {
			t.Fatal(err)
		}
		n.del(first)
		req := ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "lan", ContainerID: "local", IfName: "eth0"}}
		req.Pool.Name = "lan"
		if req.Pool.Sets, err = ipam.LoadRanges([][]json.RawMessage{{json.RawMessage(`{"subnet":"192.0.2.0/24"}`)}}, false); err != nil {
			t.Fatal(err)
		}
		if _, err := n.l.Allocate(req, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.partition("n0")
		b.store.Expire(record.LiveFolder + string(n.node.Node))
		if err := b.reg.Remove(t.Context(), n.node.Node, 0); err != nil {
			t.Fatal(err)
		}
		b.partition()
		time.Sleep(time.Minute)
		if n.count(api.NodeRenewed) != 1 || n.count(api.AddressLost) != 1 || !n.log.has("container="+second) || !n.log.has("addr="+a.String()) {
			t.Errorf("%s with %s: %q\n%s", second, a, n.events(), n.log.text.String())
		}
	})
}

// TestFrozenEvent: that the registry went back is told once for each time, and
// that it goes on.
func TestFrozenEvent(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]]}`, 1)
		defer b.end()
		n := b.nodes[0]
		if _, _, err := n.add(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		v, err := b.reg.View(t.Context())
		if err == nil {
			err = b.reg.Freeze(t.Context(), record.Frozen{Node: n.node.Node, Reason: "for the test", Epoch: 1, Cluster: v.Cluster.Value.ID})
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := b.reg.PutTenant(t.Context(), record.Tenant{Name: "c", Quota: 1}); err != nil { // news while it is frozen
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n.count(api.RegistryFrozen) != 1 || n.count(api.RegistryConnected) != 1 {
			t.Errorf("while it is frozen: %q", n.events())
		}
		if _, err := b.reg.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n.count(api.RegistryFrozen) != 1 || n.count(api.RegistryConnected) != 2 {
			t.Errorf("after the recovery: %q", n.events())
		}
	})
}
