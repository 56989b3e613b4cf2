package cluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/leases"
)

// TestWholePool: 256 addresses less two and a gateway go to five nodes, whatever
// the order.
func TestWholePool(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24","gateway":"10.0.0.1"}]]}`, 5)
				defer b.end()
				rng := rand.New(rand.NewPCG(seed, 1))
				for i := range 253 {
					n := b.nodes[rng.IntN(5)]
					if _, _, err := n.add(""); err != nil {
						t.Fatalf("the %dth, on %s: %v", i+1, n.name, err)
					}
				}
				_, _, err := b.nodes[2].add("")
				var full *ipam.ExhaustedError
				if !errors.As(err, &full) || !strings.Contains(err.Error(), "5 nodes lease 253 addresses of it, most of them node") {
					t.Errorf("one too many: %v", err)
				}
			})
		})
	}
}

// TestMoves: an owner keeps its address over moves that follow each other at
// once, and while it is in use elsewhere it has to wait.
func TestMoves(t *testing.T) {
	for _, sticky := range []string{`true`, `"strict"`} {
		t.Run(sticky, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/26"}]],"sticky":`+sticky+`}`, 3)
				defer b.end()
				rng := rand.New(rand.NewPCG(1, 1))
				n := b.nodes[0]
				id, want, err := n.add("ns/web-0")
				if err != nil {
					t.Fatal(err)
				}
				for i := range 100 {
					time.Sleep(time.Duration(rng.IntN(3)) * time.Second)
					n.del(id)
					if rng.IntN(2) == 0 {
						if _, _, err := b.nodes[rng.IntN(3)].add(""); err != nil && i < 30 {
							t.Fatal(err)
						}
					}
					n = b.nodes[rng.IntN(3)]
					var got netip.Addr
					if id, got, err = n.add("ns/web-0"); err != nil || got != want {
						t.Fatalf("move %d, to %s: %s, want %s: %v", i, n.name, got, want, err)
					}
				}
				time.Sleep(time.Second)
				other := b.nodes[0]
				if other == n {
					other = b.nodes[1]
				}
				b.partition(n.name)
				_, _, err = other.add("ns/web-0")
				var held *leases.HolderError
				if !errors.As(err, &held) || held.Addr != want || held.Holder != n.node.Node {
					t.Errorf("while it is in use elsewhere: %v", err)
				}
			})
		})
	}
}

// partition cuts nodes off from the registry; none ends it.
func (b *bed) partition(names ...string) {
	b.store.Rig(func(r memstore.Request) memstore.Fault {
		for _, n := range names {
			if r.Client == n {
				return memstore.Fail
			}
		}
		return memstore.Deliver
	})
}

// TestAway: without a registry a node goes on with what it leases, and what it
// says when that is used up names the registry.
func TestAway(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]],"blockPrefix":{"ipv4":29}}`, 2)
		defer b.end()
		n := b.nodes[0]
		if _, _, err := n.add(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.partition("n0", "n1")
		time.Sleep(time.Minute)
		var err error
		for got := 1; err == nil; got++ {
			if _, _, err = n.add(""); err != nil && got < 6 { // the first block of the pool has six
				t.Fatalf("only %d addresses", got)
			}
		}
		var full *ipam.ExhaustedError
		if !errors.As(err, &full) || !strings.Contains(err.Error(), "the registry does not answer") {
			t.Errorf("when its own are used up: %v", err)
		}
		b.partition()
		time.Sleep(5 * time.Second)
		if _, _, err := n.add(""); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

func TestUnknownPool(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, "", 1)
		defer b.end()
		_, _, err := b.nodes[0].add("")
		var field *ipam.FieldError
		if !errors.As(err, &field) || field.Place != "ipam.pool" || field.CNICode() != ipam.CodeTryAgainLater {
			t.Errorf("a pool that does not exist: %v", err)
		}
		b.pool(`{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]]}`)
		if _, _, err := b.nodes[0].add(""); err != nil {
			t.Errorf("right after it was made: %v", err)
		}
	})
}

// TestQuota: where a tenant's quota has no room for a block, nodes share what is
// leased, and an ADD that gets nothing says why.
func TestQuota(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","tenant":"red","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]],"blockPrefix":{"ipv4":28}}`, 2)
		defer b.end()
		if err := b.reg.PutTenant(t.Context(), record.Tenant{Name: "red", Quota: 20}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for i := range 14 {
			if _, _, err := b.nodes[i%2].add(""); err != nil {
				t.Fatalf("the %dth: %v", i+1, err)
			}
		}
		var err error
		for range 3 {
			_, _, err = b.nodes[1].add("")
		}
		var full *ipam.ExhaustedError
		if !errors.As(err, &full) || !strings.Contains(err.Error(), `quota of 20`) {
			t.Errorf("beyond it: %v", err)
		}
	})
}

// TestByName: an address that is asked for comes from wherever nobody has it.
func TestByName(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]],"blockPrefix":{"ipv4":30}}`, 2)
		defer b.end()
		get := func(n *node, id, addr string) error {
			req := ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "net", ContainerID: id, IfName: "eth0"}, Cluster: "a"}
			req.Ask(netip.MustParseAddr(addr), "ips[0]")
			a, err := n.Allocate(t.Context(), n.l, req, func() (ipam.Allocation, error) { return n.l.Allocate(req, nil) })
			if err == nil && a.Addresses[0].Prefix.Addr().String() != addr {
				t.Errorf("%s: got %v", addr, a)
			}
			return err
		}
		for i, addr := range []string{"10.0.0.7", "10.0.0.200", "10.0.0.201"} {
			if err := get(b.nodes[0], fmt.Sprint("x", i), addr); err != nil {
				t.Errorf("%s: %v", addr, err)
			}
		}
		err := get(b.nodes[1], "y", "10.0.0.6")
		var taken *ipam.TakenError
		if !errors.As(err, &taken) || !strings.Contains(err.Error(), `node "n0"`) {
			t.Errorf("of a block that another node leases: %v", err)
		}
		var field *ipam.FieldError
		if err := get(b.nodes[1], "y", "10.0.9.6"); !errors.As(err, &field) {
			t.Errorf("of no pool: %v", err)
		}
	})
}
