package lease_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

const (
	maxNodes = 3
	maxAddrs = 4
	maxLate  = 4
)

// cell is the record as the registry had it at some moment: an index into
// world.blocks, and its revision.
type cell struct {
	val int16
	rev int8
}

// machine is a node with its ledger, its containers and its agent.
type machine struct {
	// The ledger: status and target of each address, and revisions.
	status, to [maxAddrs]int8
	rev, high  int8
	epoch      int8
	// life counts the UUIDs that the machine has had.
	life int8
	// live counts running containers by address. They outlive the agent.
	live              [maxAddrs]int8
	on, up, confirmed bool
	// What the agent has read last, and whether from a quorum since the boot.
	has, fresh bool
	view       cell
	base       int8 // revision of the first read since the boot
	// The request that the agent waits for: the value is what it is to write,
	// the revision what it compares with. done is the revision of the answer.
	sent    bool
	request cell
	done    int8
}

// message is a swap on its way to the registry.
type message struct {
	from int8 // machine, or operator
	cell
}

// epoch is what all clocks show: no decision here depends on the time.
var epoch = time.Unix(0, 0).UTC()

const operator = int8(maxNodes)

// cluster is one state of the exploration. It is comparable: two states that
// differ only in what cannot matter any more are made equal by tidy.
type cluster struct {
	rec, prev cell
	store     int8 // revision of the store
	m         [maxNodes]machine
	late      [maxLate]message
	gone      [maxNodes]bool // the first UUID of the machine was removed

	crashes, faults int8
	backup          bool // of the first machine's ledger
	old             machine
	snapshot        bool
	snap            cell
	epoch           int8
	frozen          bool
	asserted        [maxNodes]bool

	lost bool // a held address turned out to be another's
}

// world is a size of cluster, what may go wrong in it, and which rules are
// broken on purpose.
type world struct {
	name            string
	nodes, addrs    int
	crashes, faults int8
	// What may happen.
	named, parked, closing, stale, power, restore, oldLedger bool
	// How the rules are broken.
	undo, noGuard, byName, swapFirst, takeOver, dropGiven, noConfirm, noFence, unnoticed bool

	cidr    netip.Prefix
	addr    []netip.Addr
	targets []lease.Entry
	blocks  []lease.Block
	bytes   [][]byte
	texts   []string
	index   map[string]int16
	key     string
	replies map[question][]reply
}

func (w *world) open() cluster {
	w.cidr = map[int]netip.Prefix{
		1: netip.MustParsePrefix("192.0.2.1/32"), 2: netip.MustParsePrefix("192.0.2.0/31"), 4: netip.MustParsePrefix("192.0.2.0/30"),
	}[w.addrs]
	w.key = record.BlockKey("a0000000-0000-4000-8000-000000000000", w.cidr)
	w.addr = nil
	lease.Block{CIDR: w.cidr}.Addrs(func(a netip.Addr) bool { w.addr = append(w.addr, a); return true })
	w.targets = []lease.Entry{{}, {Key: "default/web-0", Since: epoch}}
	for n := range w.nodes {
		w.targets = append(w.targets, lease.Entry{Node: uuid(n, 0)}, lease.Entry{Node: uuid(n, 1)})
	}
	w.replies = make(map[question][]reply)
	w.index = map[string]int16{"": 0}
	w.blocks = []lease.Block{{CIDR: w.cidr}}
	w.bytes, w.texts = [][]byte{nil}, []string{"nothing"}
	c := cluster{crashes: w.crashes, faults: w.faults, store: 1, epoch: 1}
	for n := range w.nodes {
		c.m[n] = machine{on: true, up: true, confirmed: true, epoch: 1}
		c.asserted[n] = true
	}
	w.tidy(&c)
	return c
}

func uuid(n int, life int8) lease.Node {
	return lease.Node([...]string{"1", "2", "3"}[n] + "0000000-0000-4000-8000-00000000000" + [...]string{"0", "1"}[life])
}

// id is whom a machine takes itself for.
func (w *world) id(n int, m *machine) lease.Node {
	if w.byName {
		n = 0 // all machines were given one name
	}
	return uuid(n, m.life)
}

// intern returns the index of a block, encoded as it is on the wire.
func (w *world) intern(b lease.Block) int16 {
	data, err := record.EncodeBlock(b)
	if err != nil {
		panic(err)
	}
	i, ok := w.index[string(data)]
	if !ok {
		back, err := record.DecodeBlock(data)
		if err != nil {
			panic(err)
		}
		i = int16(len(w.blocks))
		w.index[string(data)] = i
		w.blocks, w.bytes, w.texts = append(w.blocks, back), append(w.bytes, data), append(w.texts, show(back))
	}
	return i
}

func (w *world) seen(c cell) lease.Seen {
	return lease.Seen{Block: w.blocks[c.val], Rev: lease.Rev(c.rev)}
}

func (w *world) book(n int, m *machine) lease.Book {
	b := lease.Book{Node: w.id(n, m), CIDR: w.cidr, Rev: lease.Rev(m.rev), Marks: make(map[netip.Addr]lease.Mark, w.addrs)}
	for a := range w.addrs {
		if m.status[a] != 0 {
			b.Marks[w.addr[a]] = lease.Mark{Status: lease.Status(m.status[a]), To: w.targets[m.to[a]]}
		}
	}
	return b
}

// keep writes a book back into a machine.
func (w *world) keep(m *machine, b lease.Book) {
	m.rev = int8(b.Rev)
	m.status, m.to = [maxAddrs]int8{}, [maxAddrs]int8{}
	for a := range w.addrs {
		mark := b.Marks[w.addr[a]]
		m.status[a] = int8(mark.Status)
		m.to[a] = int8(slices.Index(w.targets, mark.To))
	}
}

// land has the real store judge a swap.
func (w *world) land(c *cluster, x cell) bool {
	var items []registry.Item
	if c.rec.rev != 0 {
		items = []registry.Item{{Key: w.key, Value: w.bytes[c.rec.val], Rev: lease.Rev(c.rec.rev)}}
	}
	answer := memstore.Open(lease.Rev(c.store), items...).Swap(context.Background(), w.key, lease.Rev(x.rev), w.bytes[x.val])
	if answer.Outcome != registry.Applied {
		return false
	}
	c.prev = c.rec
	c.rec = cell{x.val, int8(answer.Rev)}
	c.store = c.rec.rev
	return true
}

// changed is called when the record has moved on: whatever compares with its
// old revision is going to be refused, which to the sender is the same as to
// hear nothing and read again.
func (c *cluster) changed() {
	c.late = [maxLate]message{}
	for n := range c.m {
		if m := &c.m[n]; m.sent && m.done == 0 {
			m.stop()
		}
	}
}

// stop ends what an agent was waiting for and forgets what it has read.
func (m *machine) stop() {
	m.sent, m.request, m.done = false, cell{}, 0
	m.has, m.fresh, m.view = false, false, cell{}
}

func (m *machine) agentDown() {
	m.stop()
	m.up, m.base = false, 0
}

// post puts a message on its way; ok is false when there are too many.
func (c *cluster) post(x message) (ok bool) {
	if x.rev != c.rec.rev || slices.Contains(c.late[:], x) {
		return true // refused for sure, or as good as there
	}
	for i := range c.late {
		if c.late[i] == (message{}) {
			c.late[i] = x
			return true
		}
	}
	return false
}

// tidy makes states equal that cannot be told apart: messages are sorted, and
// revisions are renumbered in their order. 0 stays 0.
func (w *world) tidy(c *cluster) {
	slices.SortFunc(c.late[:], func(x, y message) int {
		switch {
		case x == y:
			return 0
		case x.val != y.val:
			return int(y.val) - int(x.val)
		case x.rev != y.rev:
			return int(y.rev) - int(x.rev)
		}
		return int(y.from) - int(x.from)
	})
	if !w.stale {
		c.prev = cell{}
	}
	revs := []*int8{&c.rec.rev, &c.prev.rev, &c.store, &c.snap.rev, &c.old.rev, &c.old.high}
	for i := range c.late {
		revs = append(revs, &c.late[i].rev)
	}
	for n := range w.nodes {
		m := &c.m[n]
		if !w.restore {
			m.high = 0
		}
		revs = append(revs, &m.rev, &m.high, &m.view.rev, &m.request.rev, &m.done, &m.base)
	}
	var rank [128]int8
	for _, r := range revs {
		rank[*r] = 1
	}
	k := int8(0)
	for i := range rank {
		if i == 0 {
			continue
		}
		if rank[i] != 0 {
			k++
			rank[i] = k
		}
	}
	rank[0] = 0
	for _, r := range revs {
		*r = rank[*r]
	}
}

// broken says which invariant a state breaks, "" for none.
func (w *world) broken(c *cluster) string {
	if c.lost {
		return "a held address belongs to another node"
	}
	for a := range w.addrs {
		live, usable := int8(0), 0
		for n := range w.nodes {
			m := &c.m[n]
			live += m.live[a]
			if s := lease.Status(m.status[a]); m.on && m.confirmed && (s == lease.Free || s == lease.Held) {
				usable++
			}
		}
		if live > 1 {
			return fmt.Sprintf("address %d has %d containers", a, live)
		}
		if usable > 1 {
			return fmt.Sprintf("address %d may be used by %d nodes", a, usable)
		}
	}
	return ""
}
