package leases

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// cluster is some nodes with real ledgers and one pool, one step at a time. A seed
// tells what happens but for the UUIDs of nodes, which are random.
type cluster struct {
	t      *testing.T
	rng    *rand.Rand
	now    time.Time
	store  *memstore.Store
	pool   record.Pool
	nodes  []*node
	faulty bool
	// unfenced breaks a rule: leases are confirmed as they are read.
	unfenced bool
	// holder is who uses an address: the truth that nobody may go against.
	holder map[netip.Addr]string
}

// broken is what a simulation panics with that came upon a broken promise.
type broken string

// node is a ledger that lasts, and an agent that may die at any step.
type node struct {
	*Trader
	c       *cluster
	name    string
	options ledger.Options
	session registry.Session
	id      lease.Node
	// What the agent knows.
	view   *registry.View
	fenced map[netip.Prefix]lease.Rev // revisions at the first read
	raised bool
	// What the runtime knows.
	held map[string]netip.Addr // by container
	next int
	// old is a copy of the ledger that somebody may put in its place.
	old []byte
}

func newCluster(t *testing.T, seed uint64, spec string, nodes int) *cluster {
	c := &cluster{t: t, rng: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1_700_000_000, 0), store: memstore.New(), holder: map[netip.Addr]string{}}
	p, err := record.LoadPool([]byte(spec))
	if err != nil {
		t.Fatal(err)
	}
	if c.pool, err = (registry.Registry{Store: c.store}).CreatePool(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	c.store.Rig(func(r memstore.Request) memstore.Fault {
		if !c.faulty || r.Kind == "bind" {
			return memstore.Deliver
		}
		switch c.rng.IntN(12) {
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
		n := &node{c: c, name: fmt.Sprint("n", i), held: map[string]netip.Addr{}}
		dir := t.TempDir()
		n.options = ledger.Options{DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), MachineID: "m", Now: func() time.Time { return c.now }}
		n.boot()
		c.nodes = append(c.nodes, n)
	}
	return c
}

// boot starts a node again after a power cut: nothing is held any more. The
// ledger may be an old copy then.
func (n *node) boot() {
	n.options.BootID += "+"
	if n.Trader != nil {
		n.close()
		path := filepath.Join(n.options.DataDir, "ledger.db")
		var err error
		switch coin := n.c.rng.IntN(3); {
		case coin == 0 || n.old == nil:
			n.old, err = os.ReadFile(path)
		case coin == 1:
			err = os.WriteFile(path, n.old, 0o600)
		}
		if err != nil {
			n.c.t.Fatal(err)
		}
	}
	for _, a := range n.held {
		delete(n.c.holder, a)
	}
	clear(n.held)
	n.start()
}

// start starts the agent, after the last one died.
func (n *node) start() {
	t := n.c.t
	n.close()
	l, err := ledger.Open(t.Context(), n.options)
	if err != nil {
		t.Fatal(err)
	}
	store := n.c.store.As(n.name)
	n.Trader = &Trader{Ledger: l, Registry: registry.Registry{Store: store}, Now: n.options.Now, Lost: func(_ record.Pool, lost []netip.Addr) {
		panic(broken(fmt.Sprintf("%s has lost %v", n.name, lost)))
	}}
	if err := l.SetPools([]ipam.Pool{n.c.pool.IPAM()}); err != nil {
		t.Fatal(err)
	}
	if n.id, err = l.Node(); err != nil {
		t.Fatal(err)
	}
	n.view, n.raised, n.fenced = nil, false, nil
	if n.session != nil {
		_ = n.session.Close(t.Context())
	}
	if n.session, err = n.Registry.Bind(t.Context(), record.Live{Node: n.id}, time.Minute); err != nil {
		t.Fatal(err)
	}
	n.Session = n.session
}

func (n *node) close() {
	if n.Trader == nil {
		return
	}
	if err := n.Ledger.Close(); err != nil {
		n.c.t.Fatal(err)
	}
	n.Trader = nil
}

func (n *node) look() bool {
	if n.view == nil {
		n.view, _ = n.Registry.View(n.c.t.Context())
	}
	return n.view != nil
}

// try takes one step towards a goal, and reports whether there was one.
func (n *node) try(s lease.Seen, g lease.Goal) bool {
	next, more, err := n.act(n.c.t.Context(), n.c.pool, s, g)
	switch {
	case err != nil && !errors.Is(err, memstore.ErrUnavailable) && !errors.Is(err, memstore.ErrTimeout) && !errors.Is(err, registry.ErrOld):
		n.c.t.Fatalf("%s: %v", n.name, err)
	case err != nil:
		n.view = nil
		return true
	case next.Rev != 0:
		if n.view.Blocks[n.c.pool.UUID] == nil {
			n.view.Blocks[n.c.pool.UUID] = map[netip.Prefix]lease.Seen{}
		}
		n.view.Blocks[n.c.pool.UUID][next.Block.CIDR] = next
	}
	return more
}

// tend brings to an end what was begun and confirms the leases after a boot, one
// step.
func (n *node) tend() bool {
	if !n.look() {
		return true
	}
	first := n.fenced == nil && n.Ledger.Unconfirmed() != nil
	if first {
		n.fenced = map[netip.Prefix]lease.Rev{}
	}
	all := n.view.Seen(n.c.pool.UUID)
	for _, s := range all {
		if first && s.Block.Names(n.id) {
			n.fenced[s.Block.CIDR] = s.Rev
		}
		if n.try(s, lease.Goal{}) {
			return true
		}
	}
	if n.Ledger.Unconfirmed() == nil {
		return false
	}
	for _, s := range all {
		rev, fence := n.fenced[s.Block.CIDR]
		if fence && rev == s.Rev && !n.c.unfenced && n.try(s, lease.Goal{Fence: true}) {
			return true
		}
	}
	if err := n.Ledger.Confirm(); err != nil {
		n.c.t.Fatal(err)
	}
	return true
}

func (n *node) answer() bool {
	w, ok := lease.Oldest(slices.Collect(maps.Values(n.view.Wants[n.c.pool.UUID])))
	if !ok || w.Node == n.id || w.Answered(n.view.Seen(n.c.pool.UUID)) {
		return false
	}
	spares, err := n.Ledger.Spares(n.c.pool.UUID, 1)
	if err != nil {
		n.c.t.Fatal(err)
	}
	for _, spare := range spares {
		for _, s := range n.view.Seen(n.c.pool.UUID) {
			to := map[netip.Addr]lease.Entry{spare.Address: {Node: w.Node}}
			switch {
			case !s.Block.CIDR.Contains(spare.Address):
			default:
				return n.try(s, lease.Goal{Give: to})
			}
		}
	}
	return false
}
