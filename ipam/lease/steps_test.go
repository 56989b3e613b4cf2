package lease_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/underlay-cni/underlay/ipam/lease"
)

// walk collects the successors of a state.
type walk struct {
	w   *world
	out []edge[cluster]
}

func (k *walk) emit(c cluster, fault bool, l label) {
	k.w.tidy(&c)
	k.out = append(k.out, edge[cluster]{c, l, fault})
}

func (w *world) successors(c *cluster) []edge[cluster] {
	k := &walk{w: w}
	for n := range w.nodes {
		if c.m[n].on {
			k.plugins(c, n)
		}
		if c.m[n].on && c.m[n].up {
			k.agent(c, n)
		}
		k.fate(c, n)
	}
	k.network(c)
	k.disasters(c)
	return k.out
}

// plugins use the ledger, agent or no agent.
func (k *walk) plugins(c *cluster, n int) {
	for a := range k.w.addrs {
		switch lease.Status(c.m[n].status[a]) {
		case lease.Free:
			if c.m[n].confirmed || k.w.noConfirm {
				s := *c
				s.m[n].status[a] = int8(lease.Held)
				s.m[n].live[a]++
				k.emit(s, false, say("n%n ADD a%a", n).at(a))
			}
		case lease.Held:
			s := *c
			s.m[n].status[a] = int8(lease.Free)
			s.m[n].live[a] = max(0, s.m[n].live[a]-1)
			k.emit(s, false, say("n%n DEL a%a", n).at(a))
		}
	}
}

// agent takes one step of an agent that runs.
func (k *walk) agent(c *cluster, n int) {
	w, m := k.w, &c.m[n]
	if m.sent {
		s := *c
		if r := m.request; m.done != 0 {
			s.m[n].stop()
			s.m[n].has, s.m[n].view = true, cell{r.val, m.done}
			k.emit(s, false, say("n%n hears that its swap was applied", n))
			s = *c
		}
		s.m[n].stop()
		k.emit(s, false, say("n%n times out", n))
		return
	}
	if !m.has || m.view != c.rec || !m.confirmed && !m.fresh {
		s := *c
		if c.gone[n] && m.life == 0 {
			s.m[n] = machine{on: true, up: true, life: 1, live: m.live, epoch: c.epoch}
			s.asserted[n] = true // what is new has nothing to assert
			k.emit(s, false, say("n%n sees that it was removed and becomes another", n))
			return
		}
		s.m[n].has, s.m[n].view, s.m[n].fresh = true, c.rec, !m.confirmed
		if !m.confirmed && m.base == 0 {
			s.m[n].base = c.rec.rev
		}
		k.emit(s, false, say("n%n reads", n))
	}
	if w.stale && c.prev.rev > 0 && !(m.has && m.view == c.prev) {
		s := *c
		s.m[n].has, s.m[n].view, s.m[n].fresh = true, c.prev, false
		k.emit(s, false, say("n%n sees an older revision", n))
	}
	if !m.has {
		return
	}
	switch k.standing(c, n) {
	case lease.Trading:
		for _, r := range w.decide(c, n, false) {
			k.step(c, n, r)
		}
		k.confirm(c, n)
		k.breakRules(c, n)
	case lease.Asserting:
		k.assert(c, n)
	}
}

func (k *walk) standing(c *cluster, n int) lease.Standing {
	if !k.w.restore {
		return lease.Trading
	}
	at := func(e int8) lease.Epoch { return lease.Epoch{Number: int(e), ID: fmt.Sprint(e)} }
	now := lease.Present{Cluster: "c", Epoch: at(c.epoch), Rev: lease.Rev(c.store), Frozen: c.frozen}
	for i := range k.w.nodes {
		now.Waits = now.Waits || !c.asserted[i]
	}
	past := lease.Past{Cluster: "c", Epoch: at(c.m[n].epoch), Rev: lease.Rev(c.m[n].high)}
	return lease.Stand(past, now)
}

type goal struct {
	lease.Goal
	drops bool // for dropGiven: forget what others were given
}

// goals is all that an agent may come to want.
func (w *world) goals(c *cluster, n int) []goal {
	gs := []goal{
		{Goal: lease.Goal{Lease: true}},
		{Goal: lease.Goal{Return: true, Now: epoch}, drops: w.dropGiven},
		{Goal: lease.Goal{Fence: w.fence(&c.m[n])}},
	}
	give := func(a int, to lease.Entry) {
		gs = append(gs, goal{Goal: lease.Goal{Give: map[netip.Addr]lease.Entry{w.addr[a]: to}}})
	}
	for a := range w.addrs {
		give(a, lease.Entry{})
		if w.parked {
			give(a, w.targets[1])
		}
		for o := range w.nodes {
			if w.named && o != n {
				give(a, lease.Entry{Node: w.id(o, &c.m[o])})
			}
		}
		gs = append(gs, goal{Goal: lease.Goal{Claim: map[netip.Addr]string{w.addr[a]: ""}}})
		if w.parked {
			gs = append(gs, goal{Goal: lease.Goal{Tag: map[netip.Addr]string{w.addr[a]: w.targets[1].Key}}})
		}
	}
	return gs
}

// question is all that the decisions of an agent depend on.
type question struct {
	n          int
	lives      [maxNodes]int8
	status, to [maxAddrs]int8
	order      int // of the revisions of view and ledger
	view       int16
	fence      bool
	asserting  bool
}

// reply is a step that an agent may take, and what it leads to.
type reply struct {
	do         lease.Do
	status, to [maxAddrs]int8
	lost       bool
	send       int16
	text       string
}

// decide asks the real code what the agent may do, once for each question.
func (w *world) decide(c *cluster, n int, asserting bool) []reply {
	m := &c.m[n]
	q := question{
		n: n, status: m.status, to: m.to, order: cmp.Compare(m.view.rev, m.rev),
		view: m.view.val, fence: w.fence(m), asserting: asserting,
	}
	for i := range w.nodes {
		q.lives[i] = c.m[i].life
	}
	if known, ok := w.replies[q]; ok {
		return known
	}
	book, seen := w.book(n, m), w.seen(m.view)
	var out []reply
	if asserting {
		out = append(out, w.reply(book, seen, lease.NextAssert(book, seen), true, false))
	} else {
		for _, g := range w.goals(c, n) {
			step := lease.Next(book, seen, g.Goal)
			for _, open := range []bool{true, !w.closing} {
				if r := w.reply(book, seen, step, open, g.drops); !slices.Contains(out, r) {
					out = append(out, r)
				}
			}
		}
	}
	w.replies[q] = out
	return out
}

func (w *world) reply(book lease.Book, seen lease.Seen, step lease.Step, open, drop bool) reply {
	r := reply{do: step.Do}
	next, err := book, error(nil)
	switch step.Do {
	case lease.Learn:
		var lost []netip.Addr
		next, lost, err = book.Learn(seen, open)
		r.lost = len(lost) > 0
	case lease.Intend:
		next, err = book.Intend(seen, step.To)
	case lease.Adopt:
		next = book.Adopt(seen)
	case lease.Send:
		if drop {
			step.Block.Given = nil
		}
		if step.Rev != seen.Rev {
			panic("a swap compares with what was not read")
		}
		r.send, r.text = w.intern(step.Block), show(step.Block)
	}
	if err != nil {
		panic(err) // Next has promised that it can be done
	}
	var m machine
	w.keep(&m, next)
	r.status, r.to = m.status, m.to
	return r
}

// step does what was decided.
func (k *walk) step(c *cluster, n int, r reply) {
	s := *c
	m := &s.m[n]
	switch r.do {
	case lease.Reread:
		m.stop()
		k.emit(s, false, say("n%n has to read again", n))
	case lease.Learn, lease.Adopt:
		m.status, m.to, m.rev = r.status, r.to, m.view.rev
		m.high = max(m.high, m.rev)
		s.lost = r.lost
		k.emit(s, false, say("n%n ledger: learns", n))
	case lease.Intend:
		m.status, m.to = r.status, r.to
		k.emit(s, false, say("n%n ledger: giving", n))
	case lease.Send:
		m.sent, m.request = true, cell{r.send, m.view.rev}
		if m.view.rev != c.rec.rev {
			m.stop()
			k.emit(s, false, say("n%n swap is refused", n))
		} else if s.post(message{int8(n), m.request}) {
			k.emit(s, false, say("n%n sends: %s", n).with(r.text))
		}
	}
}

// fence reports whether requests of an earlier life may still be on their way
// that the ledger, perhaps an old copy, knows nothing of.
func (w *world) fence(m *machine) bool {
	return w.oldLedger && !w.noFence && !m.confirmed && m.view.rev == m.base
}

// confirm opens the ledger after a boot, when it agrees with a read from a
// quorum.
func (k *walk) confirm(c *cluster, n int) {
	m := &c.m[n]
	if m.confirmed || !m.fresh {
		return
	}
	switch lease.Next(k.w.book(n, m), k.w.seen(m.view), lease.Goal{Fence: k.w.fence(m)}).Do {
	case lease.Learn, lease.Reread, lease.Send:
		return
	}
	s := *c
	s.m[n].confirmed, s.m[n].fresh, s.m[n].base = true, false, 0
	k.emit(s, false, say("n%n confirms its leases", n))
}

// assert is what follows the restore of a registry.
func (k *walk) assert(c *cluster, n int) {
	w, m := k.w, &c.m[n]
	if m.view != c.rec {
		return // an assertion is decided by what a quorum says
	}
	if r := w.decide(c, n, true)[0]; r.do != lease.Rest {
		k.step(c, n, r)
		return
	}
	s := *c
	s.m[n].epoch, s.m[n].high = c.epoch, c.store
	s.m[n].stop()
	k.emit(s, false, say("n%n ledger: new epoch", n))
}
