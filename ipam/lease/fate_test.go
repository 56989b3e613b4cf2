package lease_test

import (
	"net/netip"
	"slices"

	"github.com/underlay-cni/underlay/ipam/lease"
)

// fate is what befalls a machine.
func (k *walk) fate(c *cluster, n int) {
	w, m := k.w, &c.m[n]
	if m.on && !m.up {
		s := *c
		s.m[n].up = true
		k.emit(s, false, say("n%n agent starts", n))
	}
	if m.on && m.up && c.crashes > 0 {
		s := *c
		s.crashes--
		s.m[n].agentDown()
		k.emit(s, true, say("n%n agent crashes", n))
	}
	if w.takeOver && c.faults > 0 && m.on && !m.up {
		s := *c
		s.faults--
		if k.strip(&s, w.id(n, m)) {
			k.emit(s, true, say("a time-out takes n%n, which is silent but alive, its addresses", n))
		}
	}
	if !w.power {
		return
	}
	if m.on && c.faults > 0 {
		s := *c
		s.faults--
		s.m[n].agentDown()
		s.m[n].on, s.m[n].confirmed = false, false
		s.m[n].live = [maxAddrs]int8{}
		for a, x := range s.m[n].status {
			if lease.Status(x) == lease.Held { // the sweep after the boot
				s.m[n].status[a] = int8(lease.Free)
			}
		}
		k.emit(s, true, say("n%n power off", n))
	}
	if m.on {
		return
	}
	s := *c
	s.m[n].on = true
	k.emit(s, false, say("n%n power on", n))
	if n == 0 && c.backup && c.old.life == m.life {
		s := *c
		s.m[n] = c.old
		s.m[n].on = true
		k.emit(s, true, say("n%n power on, with an old copy of its ledger", n))
	}
	if !c.gone[n] && m.life == 0 {
		s := *c
		s.gone[n] = true
		k.emit(s, false, say("operator removes n%n", n))
	}
}

// strip sends the operator's swap that takes a node's addresses.
func (k *walk) strip(s *cluster, id lease.Node) bool {
	w := k.w
	next, changed := w.blocks[s.rec.val].Strip(func(n lease.Node) bool { return n == id }, epoch)
	return changed && s.post(message{operator, cell{w.intern(next), s.rec.rev}})
}

// network has messages land.
func (k *walk) network(c *cluster) {
	w := k.w
	for i, x := range c.late {
		if x == (message{}) {
			continue
		}
		s := *c
		s.late[i] = message{}
		if !w.land(&s, x.cell) {
			continue // of a revision that is gone
		}
		// Whoever waits for this very swap may hear of it.
		waits := x.from != operator && s.m[x.from].sent && s.m[x.from].request == x.cell && s.m[x.from].done == 0
		if waits {
			s.m[x.from].done = s.rec.rev
		}
		s.changed()
		k.emit(s, false, say("the registry applies a swap of n%n: %s", int(x.from)).with(w.texts[x.val]))
	}
	for n := range w.nodes {
		if c.gone[n] {
			s := *c
			if k.strip(&s, uuid(n, 0)) && s != *c {
				k.emit(s, false, say("a sweep of removed n%n's addresses is sent", n))
			}
		}
	}
}

// disasters are backups that come back.
func (k *walk) disasters(c *cluster) {
	w := k.w
	if w.oldLedger && !c.backup && c.m[0].life == 0 && c.m[0].on {
		s := *c
		s.backup = true
		s.old = machine{status: c.m[0].status, to: c.m[0].to, rev: c.m[0].rev, high: c.m[0].high, epoch: c.m[0].epoch}
		for a, x := range s.old.status {
			if lease.Status(x) == lease.Held {
				s.old.status[a] = int8(lease.Free)
			}
		}
		k.emit(s, true, say("n1 ledger is copied", 0))
	}
	if !w.restore {
		return
	}
	if !c.snapshot {
		s := *c
		s.snapshot, s.snap = true, c.rec
		k.emit(s, true, say("the registry is backed up", 0))
	} else if c.faults > 0 && c.snap != c.rec {
		s := *c
		s.faults--
		s.rec, s.store, s.prev = c.snap, c.snap.rev, cell{}
		s.late = [maxLate]message{} // connections break
		s.frozen = !w.unnoticed
		for n := range s.m {
			if s.m[n].sent && s.m[n].done == 0 {
				s.m[n].stop()
			}
		}
		s.snap = cell{}
		k.emit(s, true, say("the registry is restored", 0))
	}
	if c.frozen {
		// Recovered says the operator, and revisions go on above all known.
		s := *c
		s.frozen = false
		s.epoch++
		for n := range w.nodes {
			s.asserted[n] = false
			s.store = max(s.store, s.m[n].rev, s.m[n].high, s.m[n].view.rev, s.m[n].done)
		}
		s.store++
		k.emit(s, false, say("operator: recovered", 0))
	}
	for n := range w.nodes {
		if m := &c.m[n]; m.on && m.up && m.epoch == c.epoch && !c.asserted[n] {
			s := *c
			s.asserted[n] = true
			k.emit(s, false, say("n%n reports that it has asserted", n))
		}
	}
}

// breakRules is what an agent would do that breaks a rule.
func (k *walk) breakRules(c *cluster, n int) {
	w, m := k.w, &c.m[n]
	if !m.has {
		return
	}
	seen := w.seen(m.view)
	for a, x := range m.status[:w.addrs] {
		mine := seen.Block.Has(w.id(n, m), w.addr[a])
		if w.undo && mine && lease.Status(x) == lease.Giving && int8(seen.Rev) >= m.rev {
			s := *c
			s.m[n].status[a], s.m[n].to[a] = int8(lease.Free), 0
			k.emit(s, false, say("n%n reads that it still has a%a, and takes its intent back", n).at(a))
		}
		if w.swapFirst && mine && lease.Status(x) == lease.Free && m.view == c.rec {
			next, err := seen.Block.Give(w.id(n, m), map[netip.Addr]lease.Entry{w.addr[a]: {}})
			if err != nil {
				panic(err)
			}
			s := *c
			s.m[n].sent, s.m[n].request = true, cell{w.intern(next), m.view.rev}
			if s.post(message{int8(n), s.m[n].request}) {
				k.emit(s, false, say("n%n offers a%a before its ledger knows", n).at(a))
			}
		}
	}
	if w.noGuard && m.view.rev < m.rev {
		book := w.book(n, m)
		book.Rev = 0
		next, _, err := book.Learn(seen, true)
		if err != nil {
			panic(err)
		}
		s := *c
		w.keep(&s.m[n], next)
		k.emit(s, false, say("n%n ledger: learn what is out of date", n))
	}
}

func show(b lease.Block) string {
	who := func(n lease.Node) string {
		if n == "" {
			return "-"
		}
		return "n" + string(n[0]) + map[byte]string{'0': "", '1': "'"}[n[len(n)-1]]
	}
	text := "owner " + who(b.Owner)
	var given []netip.Addr
	for a := range b.Given {
		given = append(given, a)
	}
	slices.SortFunc(given, netip.Addr.Compare)
	for _, a := range given {
		text += " " + a.String() + "=" + who(b.Given[a].Node) + "/" + b.Given[a].Key
	}
	return text
}
