package leases

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
)

// add is a plugin that wants an address: from the ledger, else by one step of
// the agent towards one.
func (n *node) add(owner string) bool {
	n.next++
	id := fmt.Sprint("c", n.next)
	a, err := n.Ledger.Allocate(ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "a", ContainerID: id, IfName: "eth0"}, Cluster: "a", Owner: owner}, nil)
	if err == nil {
		addr := a.Addresses[0].Prefix.Addr()
		if other, held := n.c.holder[addr]; held {
			panic(broken(fmt.Sprintf("%s is held by %s, and now by %s/%s", addr, other, n.name, id)))
		}
		n.c.holder[addr], n.held[id] = n.name+"/"+id, addr
		if n.raised && n.Registry.Lower(n.c.t.Context(), n.c.pool.UUID, n.id) == nil {
			n.raised = false
		}
		return true
	}
	var full *ipam.ExhaustedError
	if !errors.Is(err, ledger.ErrUnconfirmed) && !errors.As(err, &full) {
		n.c.t.Fatal(err)
	}
	if n.tend() {
		return false
	}
	search, err := n.view.Search(n.c.pool, 0, lease.Search{Node: n.id, Key: owner, Now: n.c.now, Waiting: true, Attempt: n.refused[n.c.pool.UUID].swaps})
	if err != nil {
		n.c.t.Fatal(err)
	}
	switch found := search.Find(); {
	case found.CIDR.IsValid():
		n.try(seen(n.view, n.c.pool.UUID, found.CIDR), found.Goal)
	case found.Ask && !n.raised:
		have := 0
		for _, s := range n.view.Seen(n.c.pool.UUID) {
			have += s.Block.Nodes()[n.id]
		}
		n.raised = n.Registry.Raise(n.c.t.Context(), n.session, n.c.pool.UUID, n.id, 0, have).Outcome == registry.Applied
		n.view = nil
	default:
		n.view = nil // look again
	}
	return false
}

// del is a plugin that lets an address go.
func (n *node) del() {
	for _, id := range slices.Sorted(maps.Keys(n.held)) {
		if n.c.rng.IntN(2) == 0 {
			continue
		}
		delete(n.c.holder, n.held[id])
		delete(n.held, id)
		if _, err := n.Ledger.Release(ipam.ReleaseRequest{Attachment: ipam.Attachment{Network: "a", ContainerID: id, IfName: "eth0"}}); err != nil {
			n.c.t.Fatal(err)
		}
		return
	}
}

// trouble is a random step of a random node.
func (c *cluster) trouble() {
	n := c.nodes[c.rng.IntN(len(c.nodes))]
	if late := len(c.store.Late()); late > 0 && c.rng.IntN(4) == 0 {
		c.store.Land(c.rng.IntN(late))
	}
	c.now = c.now.Add(time.Duration(c.rng.IntN(10)) * time.Second)
	switch c.rng.IntN(40) {
	case 0:
		n.start()
	case 1:
		n.boot()
	case 2, 3:
		n.view = nil
	case 4, 5, 6, 7, 8, 9:
		n.del()
	case 10, 11, 12, 13, 14, 15, 16, 17:
		n.add("")
	case 18, 19, 20:
		n.add("ns/web-0")
	default:
		if n.tend() || n.answer() {
			return
		}
		for _, s := range n.view.Seen(c.pool.UUID) {
			book, err := n.Ledger.Book(c.pool.UUID, s.Block.CIDR)
			if err != nil {
				c.t.Fatal(err)
			}
			g := lease.Goal{Return: c.rng.IntN(2) == 0, Now: c.now}
			if free := book.Free(); !g.Return && len(free) > 0 {
				to := []lease.Entry{{}, {Key: "ns/web-0", Since: c.now.UTC()}}[c.rng.IntN(2)]
				g.Give = map[netip.Addr]lease.Entry{free[c.rng.IntN(len(free))]: to}
			}
			if c.rng.IntN(3) == 0 && n.try(s, g) {
				return
			}
		}
	}
}

// fill has nodes take turns until every address of the pool is in use.
func (c *cluster) fill() {
	c.faulty = false
	c.now = c.now.Add(24 * time.Hour)
	want := int(c.pool.Sets[0].Size())
	for turn := range 200 * want {
		if len(c.holder) == want {
			return
		}
		// What was claimed for a strict owner rests for it before others get it.
		c.now = c.now.Add(time.Minute)
		n := c.nodes[turn%len(c.nodes)]
		n.view = nil
		for n.tend() {
		}
		if !n.answer() {
			n.add("")
		}
	}
	panic(broken(fmt.Sprintf("%d of %d addresses can be used", len(c.holder), want)))
}

// check has every ledger looked through.
func (c *cluster) check() {
	for _, n := range c.nodes {
		if findings, err := n.Ledger.Check(); err != nil || len(findings) > 0 {
			c.t.Errorf("%s: %v %s", n.name, err, strings.Join(findings, "\n"))
		}
		n.close()
	}
}

// run makes trouble and then fills the pool; it returns which promise was
// broken, "" for none.
func (c *cluster) run(steps int) (why string) {
	defer func() {
		switch e := recover().(type) {
		case nil:
		case broken:
			why = string(e)
		default:
			panic(e)
		}
	}()
	defer c.check()
	c.faulty = true
	for range steps {
		c.trouble()
	}
	c.fill()
	return ""
}

// TestTrade drives real ledgers against a registry that loses and delays
// requests, with agents and nodes that die at any step: nobody uses what somebody
// else does, and all can be used in the end.
func TestTrade(t *testing.T) {
	t.Parallel()
	const single = `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/28"}]],"blockPrefix":{"ipv4":32}}`
	for name, spec := range map[string]string{
		"single addresses":       single,
		"blocks of four, sticky": `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/27"}]],"blockPrefix":{"ipv4":30},"sticky":true,"stickyFor":"1h"}`,
		"strict":                 `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/28"}]],"blockPrefix":{"ipv4":30},"sticky":"strict","stickyFor":"1h"}`,
		"IPv6":                   `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"2001:db8::/64","rangeStart":"2001:db8::1f","rangeEnd":"2001:db8::30"}]],"blockPrefix":{"ipv6":125}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(3) {
				c := newCluster(t, seed, spec, 3)
				if why := c.run(500); why != "" || t.Failed() {
					t.Fatalf("seed %d: %s", seed, why)
				}
			}
		})
	}
}

// TestOldCopy has a node come back with a copy of its ledger that does not know
// what it was giving, while the swap is still on its way.
func TestOldCopy(t *testing.T) {
	t.Parallel()
	for _, unfenced := range []bool{false, true} {
		c := newCluster(t, 1, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/30","gateway":"10.0.0.1"}]],"blockPrefix":{"ipv4":32}}`, 2)
		c.unfenced = unfenced
		a, b := c.nodes[0], c.nodes[1]
		for _, n := range c.nodes {
			for n.tend() {
			}
		}
		for range 9 {
			if a.add("") {
				break
			}
			a.view = nil
		}
		a.boot() // the copy is made
		a.old = a.copy()
		for a.tend() {
		}
		c.store.Rig(func(r memstore.Request) memstore.Fault {
			if r.Client == a.name && r.Kind == "swap" {
				return memstore.Delay
			}
			return memstore.Deliver
		})
		s := a.view.Seen(c.pool.UUID)[0]
		to := map[netip.Addr]lease.Entry{s.Block.CIDR.Addr(): {Node: b.id}}
		for len(c.store.Late()) == 0 && a.try(s, lease.Goal{Give: to}) {
		}
		if len(c.store.Late()) != 1 {
			t.Fatalf("on its way: %v", c.store.Late())
		}
		c.store.Rig(nil)
		a.options.BootID += "+"
		a.close()
		if err := os.WriteFile(filepath.Join(a.options.DataDir, "ledger.db"), a.old, 0o600); err != nil {
			t.Fatal(err)
		}
		a.start()
		for a.tend() {
		}
		if !a.add("") {
			t.Fatal("the node has not got back what it had")
		}
		landed := c.store.Land(0)
		if want := map[bool]registry.Outcome{false: registry.Refused, true: registry.Applied}[unfenced]; landed != want {
			t.Errorf("unfenced %v: what was on its way is %s, want %s", unfenced, landed, want)
		}
		for _, n := range c.nodes {
			n.close()
		}
	}
}

// copy is what a backup of the ledger has.
func (n *node) copy() []byte {
	n.close()
	b, err := os.ReadFile(filepath.Join(n.options.DataDir, "ledger.db"))
	if err != nil {
		n.c.t.Fatal(err)
	}
	n.start()
	return b
}

// TestBrokenRule gives an address away without an intent: what the tests above
// look for is found then.
func TestBrokenRule(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/30","gateway":"10.0.0.1"}]],"blockPrefix":{"ipv4":32}}`, 2)
	a, b := c.nodes[0], c.nodes[1]
	for range 20 {
		if a.add("") {
			break
		}
		a.view = nil
	}
	for len(a.held) > 0 {
		a.del()
	}
	a.view = nil
	a.look()
	s := a.view.Seen(c.pool.UUID)[0]
	next, err := s.Block.Give(a.id, map[netip.Addr]lease.Entry{s.Block.CIDR.Addr(): {Node: b.id}})
	if err != nil {
		t.Fatal(err)
	}
	if _, answer := a.Registry.Send(t.Context(), c.pool.UUID, lease.Step{Do: lease.Send, Block: next, Rev: s.Rev}); answer.Outcome != registry.Applied {
		t.Fatal(answer)
	}
	if !a.add("") {
		t.Fatal("the address was not free")
	}
	defer func() {
		if why, ok := recover().(broken); !ok {
			t.Error("nothing is found")
		} else {
			t.Log(why)
		}
		c.check()
	}()
	for range 20 {
		b.view = nil
		b.add("")
	}
}
