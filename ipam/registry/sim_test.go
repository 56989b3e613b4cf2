package registry_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// cluster is a simulation of some nodes with one pool, one step at a time, so
// that a seed tells all that happens.
type cluster struct {
	t     *testing.T
	ctx   context.Context
	rng   *rand.Rand
	store *memstore.Store
	pool  record.Pool
	nodes []*node
	// holder is who uses an address: the truth that nobody may go against.
	holder map[netip.Addr]lease.Node
	faulty bool
	// undo breaks a rule: an intent whose swap has no known outcome is undone.
	undo bool
}

// broken is what a simulation panics with that came upon a broken promise.
type broken string

// node is a ledger that lasts and an agent that may crash.
type node struct {
	c       *cluster
	id      lease.Node
	reg     registry.Registry
	session registry.Session
	// The ledger.
	books map[netip.Prefix]lease.Book
	// The agent: what it has read, and how often it was refused.
	view    *registry.View
	attempt int
	raised  bool
}

func newCluster(t *testing.T, seed uint64, spec string, nodes int) *cluster {
	c := &cluster{
		t: t, ctx: t.Context(), rng: rand.New(rand.NewPCG(seed, 1)), store: memstore.New(), holder: make(map[netip.Addr]lease.Node),
	}
	p, err := record.LoadPool([]byte(spec))
	if err != nil {
		t.Fatal(err)
	}
	root := registry.Registry{Store: c.store}
	if c.pool, err = root.CreatePool(c.ctx, p); err != nil {
		t.Fatal(err)
	}
	c.store.Rig(func(r memstore.Request) memstore.Fault {
		if !c.faulty || r.Kind == "bind" {
			return memstore.Deliver
		}
		switch c.rng.IntN(10) {
		case 0:
			return memstore.Fail
		case 1:
			return memstore.Lose
		case 2:
			return memstore.Delay
		}
		return memstore.Deliver
	})
	for i := range nodes {
		n := &node{c: c, id: lease.Node(fmt.Sprintf("%08d-0000-4000-8000-000000000000", i)), books: make(map[netip.Prefix]lease.Book)}
		n.reg = registry.Registry{Store: c.store.As(fmt.Sprint(i))}
		if n.session, err = n.reg.Bind(c.ctx, record.Live{Node: n.id}, time.Minute); err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, n)
	}
	return c
}

func (n *node) book(cidr netip.Prefix) lease.Book {
	if b, ok := n.books[cidr]; ok {
		return b
	}
	return lease.Book{Node: n.id, CIDR: cidr}
}

// blocks lists those that the ledger knows.
func (n *node) blocks() []netip.Prefix {
	return slices.SortedFunc(maps.Keys(n.books), netip.Prefix.Compare)
}

// mark changes the status of one address in the ledger.
func (n *node) mark(cidr netip.Prefix, a netip.Addr, s lease.Status) {
	b := n.books[cidr]
	b.Marks = maps.Clone(b.Marks)
	b.Marks[a] = lease.Mark{Status: s}
	n.books[cidr] = b
}

// act takes one step towards a goal for a block, and reports whether there was
// one to take.
func (n *node) act(seen lease.Seen, g lease.Goal) bool {
	cidr := seen.Block.CIDR
	b := n.book(cidr)
	step := lease.Next(b, seen, g)
	switch step.Do {
	case lease.Rest:
		return false
	case lease.Reread:
		n.view = nil
	case lease.Learn:
		open := n.view.Admit(n.c.pool.UUID, seen.Rev)
		if errors.Is(open, registry.ErrOld) {
			n.view = nil
			return true
		}
		next, lost, err := b.Learn(seen, open == nil)
		if err != nil || len(lost) > 0 {
			panic(broken(fmt.Sprintf("node %s, block %s: lost %v, %v", n.id, cidr, lost, err)))
		}
		n.books[cidr] = next
	case lease.Intend:
		next, err := b.Intend(seen, step.To)
		if err != nil {
			n.c.t.Fatal(err)
		}
		n.books[cidr] = next
	case lease.Send:
		got, a := n.reg.Send(n.c.ctx, n.c.pool.UUID, step)
		switch a.Outcome {
		case registry.Applied:
			n.view.Blocks[n.c.pool.UUID][cidr] = got
			n.attempt = 0
		case registry.Refused:
			n.attempt++
			n.view = nil
		case registry.Unknown:
			n.view = nil
			if n.c.undo {
				for a, m := range b.Marks {
					if m.Status == lease.Giving {
						n.mark(cidr, a, lease.Free)
					}
				}
			}
		}
	}
	return true
}

// tend brings to an end what was begun, one step; it reports whether there was
// something to do.
func (n *node) tend() bool {
	if n.view == nil {
		v, err := n.reg.View(n.c.ctx)
		if err != nil {
			return true
		}
		n.view = v
		if v.Blocks[n.c.pool.UUID] == nil {
			v.Blocks[n.c.pool.UUID] = make(map[netip.Prefix]lease.Seen)
		}
		return true
	}
	for _, s := range n.view.Seen(n.c.pool.UUID) {
		if n.act(s, lease.Goal{}) {
			return true
		}
	}
	return false
}

// answer gives to whoever has raised a flag first.
func (n *node) answer() bool {
	wants := slices.Collect(maps.Values(n.view.Wants[n.c.pool.UUID]))
	w, ok := lease.Oldest(wants)
	seen := n.view.Seen(n.c.pool.UUID)
	if !ok || w.Node == n.id || w.Answered(seen) {
		return false
	}
	for _, s := range seen {
		for _, a := range n.book(s.Block.CIDR).Free() {
			if n.usable(a) {
				return n.act(s, lease.Goal{Give: map[netip.Addr]lease.Entry{a: {Node: w.Node}}})
			}
		}
	}
	return false
}

func (n *node) usable(a netip.Addr) bool {
	_, ok := n.c.pool.Sets[0].Find(a)
	return ok
}

// add is a plugin that needs an address: from the ledger, else by one step of
// the agent towards one. It reports whether it got one.
func (n *node) add(key string) bool {
	for _, cidr := range n.blocks() {
		b := n.books[cidr]
		for _, a := range b.Free() {
			if !n.usable(a) {
				continue
			}
			if other, held := n.c.holder[a]; held {
				panic(broken(fmt.Sprintf("%s is held by %s and now by %s", a, other, n.id)))
			}
			n.c.holder[a] = n.id
			n.mark(cidr, a, lease.Held)
			if n.raised && n.reg.Lower(n.c.ctx, n.c.pool.UUID, n.id) == nil {
				n.raised = false
			}
			return true
		}
	}
	if n.tend() {
		return false
	}
	search, err := n.view.Search(n.c.pool, 0, lease.Search{Node: n.id, Key: key, Now: time.Unix(1000, 0), Waiting: true, Attempt: n.attempt})
	if err != nil {
		n.c.t.Fatal(err)
	}
	found := search.Find()
	switch {
	case found.CIDR.IsValid():
		seen, ok := n.view.Blocks[n.c.pool.UUID][found.CIDR]
		if !ok {
			seen = lease.Seen{Block: lease.Block{CIDR: found.CIDR}}
		}
		n.act(seen, found.Goal)
	case found.Ask && !n.raised:
		have := 0
		for _, s := range n.view.Seen(n.c.pool.UUID) {
			have += s.Block.Nodes()[n.id]
		}
		n.raised = n.reg.Raise(n.c.ctx, n.session, n.c.pool.UUID, n.id, 0, have).Outcome == registry.Applied
		n.view = nil
	default:
		n.view = nil // look again
	}
	return false
}

// del is a plugin that lets an address go.
func (n *node) del() {
	for _, cidr := range n.blocks() {
		b := n.books[cidr]
		for _, a := range slices.SortedFunc(maps.Keys(b.Marks), netip.Addr.Compare) {
			if b.Marks[a].Status == lease.Held {
				n.mark(cidr, a, lease.Free)
				delete(n.c.holder, a)
				return
			}
		}
	}
}

// trouble is a random step of a random node.
func (c *cluster) trouble() {
	n := c.nodes[c.rng.IntN(len(c.nodes))]
	if late := len(c.store.Late()); late > 0 && c.rng.IntN(4) == 0 {
		c.store.Land(c.rng.IntN(late))
	}
	switch c.rng.IntN(12) {
	case 0:
		n.view = nil // crash, or a new list
	case 1, 2:
		n.del()
	case 3, 4, 5:
		n.add("")
	case 6:
		n.add("ns/web-0")
	default:
		if n.tend() || n.answer() {
			return
		}
		for _, s := range n.view.Seen(c.pool.UUID) {
			g := lease.Goal{Return: c.rng.IntN(2) == 0, Now: time.Unix(900, 0)}
			if free := n.book(s.Block.CIDR).Free(); !g.Return && len(free) > 0 {
				to := []lease.Entry{{}, {Key: "ns/web-0", Since: time.Unix(900, 0).UTC()}}[c.rng.IntN(2)]
				g.Give = map[netip.Addr]lease.Entry{free[c.rng.IntN(len(free))]: to}
			}
			if c.rng.IntN(3) == 0 && n.act(s, g) {
				return
			}
		}
	}
}

// fill has nodes take turns until every address of the pool is in use.
func (c *cluster) fill() {
	c.faulty = false
	want := int(c.pool.Sets[0].Size())
	for turn := range 200 * want {
		if len(c.holder) == want {
			return
		}
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
	c.faulty = true
	for range steps {
		c.trouble()
	}
	c.fill()
	return ""
}

// TestTrouble runs random trouble, then fills the pool to its last address.
func TestTrouble(t *testing.T) {
	t.Parallel()
	const single = `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/28"}]],"blockPrefix":{"ipv4":32}}`
	pools := map[string]string{
		"single addresses":       single,
		"blocks of four, sticky": `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/27"}]],"blockPrefix":{"ipv4":30},"sticky":true}`,
		"IPv6":                   `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"2001:db8::/64","rangeStart":"2001:db8::1f","rangeEnd":"2001:db8::30"}]],"blockPrefix":{"ipv6":125}}`,
	}
	for name, spec := range pools {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(10) {
				if why := newCluster(t, seed, spec, 4).run(1000); why != "" {
					t.Fatalf("seed %d: %s", seed, why)
				}
			}
		})
	}
	t.Run("a broken rule is found", func(t *testing.T) {
		t.Parallel()
		for seed := range uint64(100) {
			c := newCluster(t, seed, single, 4)
			c.undo = true
			if why := c.run(1000); why != "" {
				t.Logf("seed %d: %s", seed, why)
				return
			}
		}
		t.Error("nothing is found")
	})
}

// TestWholePool: 256 addresses, 5 nodes.
func TestWholePool(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/23","rangeStart":"10.0.0.1","rangeEnd":"10.0.1.0","gateway":"10.0.1.254"}]],"expectedNodes":5}`, 5)
	if got := c.pool.Sets[0].Size(); got != 256 || c.pool.Sticky != ipam.NotSticky {
		t.Fatalf("%d addresses", got)
	}
	if why := c.run(0); why != "" {
		t.Fatal(why)
	}
}
