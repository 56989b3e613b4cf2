package cluster

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// TestAddresses: the registry is told at which addresses a node is reached, and
// of others when it has others, not that it has none.
func TestAddresses(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, "", 1)
		defer b.end()
		n := b.nodes[0]
		n.stop()
		var mu sync.Mutex
		have := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		n.change = func(c *Config) {
			c.Addresses = func() []netip.Addr {
				mu.Lock()
				defer mu.Unlock()
				return have
			}
		}
		n.start()
		expect := func(what, want string) {
			t.Helper()
			time.Sleep(time.Second)
			var all []record.Node
			if err := n.Look(t.Context(), func(v *registry.View, me lease.Node) { all = append(all, v.Nodes[me].Value) }); err != nil {
				t.Fatal(err)
			}
			if len(all[0].Addresses) != 1 || all[0].Addresses[0].String() != want || all[0].Asserted != 1 {
				t.Errorf("%s: %+v", what, all[0])
			}
		}
		expect("when it comes", "192.0.2.1")
		for _, tt := range []struct {
			what string
			have []netip.Addr
			want string
		}{
			{"another one", []netip.Addr{netip.MustParseAddr("2001:db8::1")}, "2001:db8::1"},
			{"none", nil, "2001:db8::1"},
		} {
			mu.Lock()
			have = tt.have
			mu.Unlock()
			n.Stir()
			expect(tt.what, tt.want)
		}
		n.stop()
		n.start()
		expect("none, when it comes again", "2001:db8::1")
	})
}

// TestLook: networks are looked at when they may be others, and not while nobody
// follows the registry.
func TestLook(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"routed","ranges":[[{"subnet":"10.0.0.0/24"}]]}`, 1)
		defer b.end()
		n := b.nodes[0]
		time.Sleep(time.Second)
		heard := func() bool {
			time.Sleep(time.Second)
			select {
			case <-n.Peers():
				return true
			default:
				return false
			}
		}
		others := func() bool {
			select {
			case <-n.Members():
				return true
			default:
				return false
			}
		}
		heard()
		others()
		var names []string
		look := func() error {
			names = nil
			return n.Look(t.Context(), func(v *registry.View, _ lease.Node) {
				for name := range v.Networks {
					names = append(names, name)
				}
			})
		}
		if err := b.reg.PutTenant(t.Context(), record.Tenant{Name: "red", Quota: 9}); err != nil || heard() || others() {
			t.Errorf("heard of a tenant, or %v", err)
		}
		if err := b.reg.CreateNetwork(t.Context(), record.Network{Name: "net", Pool: "a", Backend: record.HostGW}); err != nil || !heard() || !others() {
			t.Errorf("did not hear of a network, or %v", err)
		}
		if err := look(); err != nil || !slices.Equal(names, []string{"net"}) {
			t.Errorf("networks %q, %v", names, err)
		}
		if _, _, err := n.add(""); err != nil || !heard() {
			t.Errorf("did not hear of a block of its own, or %v", err)
		}
		b.partition("n0")
		b.store.Break()
		time.Sleep(time.Minute)
		if err := look(); !errors.As(err, new(*AwayError)) || names != nil {
			t.Errorf("while it is away: %q, %v", names, err)
		}
		b.partition()
		back := false
		for range 6 {
			back = back || heard() && others()
		}
		if !back {
			t.Error("did not hear that it is back")
		}
		n.mu.Lock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := n.Look(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while it is busy: %v", err)
		}
		n.mu.Unlock()
	})
}
