package lease

import (
	"net/netip"
	"time"
)

// Do is what to do next about a block.
type Do uint8

const (
	// Rest: nothing, the goal is reached or out of reach.
	Rest Do = iota
	// Reread: the record is older than the ledger; read it again, from a
	// quorum.
	Reread
	// Learn: a ledger transaction of Book.Learn on the record.
	Learn
	// Intend: a ledger transaction of Book.Intend with Step.To.
	Intend
	// Send: swap the record for Step.Block if it is still of Step.Rev. When
	// applied, the record seen is Step.Block at the revision of the answer;
	// when refused or unknown, read the record again.
	Send
	// Adopt: a ledger transaction of Book.Adopt on the record.
	Adopt
)

// Step is one step of a node. Steps of one block are taken one after the
// other, each to its end.
type Step struct {
	Do Do
	// To is set for Intend.
	To map[netip.Addr]Entry
	// Block and Rev are set for Send.
	Block Block
	Rev   Rev
}

// Goal is what the node wants of a block at the moment. The zero Goal wants
// nothing but to bring to an end what was begun.
type Goal struct {
	// Lease the block if nobody does.
	Lease bool
	// Return the block, and what the node was given of it; only when nothing
	// of it is held.
	Return bool
	// Fence writes the record as it is, if it names the node, so that whatever
	// was sent before cannot land any more. After a boot the ledger may be an
	// old copy that knows nothing of an intent; before the node confirms its
	// leases, each of their records has to be of another revision than at its
	// first read.
	Fence bool
	// Now is the time of Return, for what it parks.
	Now time.Time
	// Give away those of these addresses that are free.
	Give map[netip.Addr]Entry
	// Claim those of these addresses that nobody has, each for a sticky key.
	Claim map[netip.Addr]string
	// Tag those of these addresses that the node has with a sticky key.
	Tag map[netip.Addr]string
}

// Next says what a node does about a block, of which its ledger says b and
// the registry s. What was begun goes before what is wanted. It is called
// again after each step, with what is known then; that is also how a node
// goes on after a crash.
func Next(b Book, s Seen, g Goal) Step {
	switch {
	case s.Rev < b.Rev:
		return Step{Do: Reread}
	case s.Rev > b.Rev && (!b.Empty() || s.Block.Names(b.Node)):
		return Step{Do: Learn}
	case differs(b, s):
		return Step{Do: Learn}
	}
	if to := giving(b, s); len(to) > 0 {
		return send(s, func(r Block) (Block, error) { return r.Give(b.Node, to) })
	}
	if to := wanted(b, s, g); len(to) > 0 {
		return Step{Do: Intend, To: to}
	}
	if g.Lease && s.Block.Owner == "" {
		return send(s, func(r Block) (Block, error) { return r.Lease(b.Node) })
	}
	if keys := filter(g.Claim, func(a netip.Addr) bool {
		e, ok := s.Block.Given[a]
		return ok && e.Node == ""
	}); len(keys) > 0 {
		return send(s, func(r Block) (Block, error) { return r.Claim(b.Node, keys) })
	}
	if keys := filter(g.Tag, func(a netip.Addr) bool {
		return s.Block.Has(b.Node, a) && s.Block.At(a).Key != g.Tag[a]
	}); len(keys) > 0 {
		return send(s, func(r Block) (Block, error) { return r.Tag(b.Node, keys) })
	}
	if g.Fence && s.Block.Names(b.Node) {
		return Step{Do: Send, Block: s.Block, Rev: s.Rev}
	}
	return Step{}
}

// differs reports whether the ledger would learn something from a record of
// its own revision: one that it has compared with, but not taken in.
func differs(b Book, s Seen) bool {
	mine := 0
	for a, m := range b.Marks {
		if s.Block.Has(b.Node, a) {
			mine++
		} else if m.Status != Held {
			return true
		}
	}
	return b.Node != "" && s.Block.Nodes()[b.Node] > mine
}

// giving lists what is on its way out and did not arrive.
func giving(b Book, s Seen) map[netip.Addr]Entry {
	to := make(map[netip.Addr]Entry)
	for a, m := range b.Marks {
		if m.Status == Giving && s.Block.Has(b.Node, a) {
			to[a] = m.To
		}
	}
	return to
}

// wanted lists what is to be given away and is free to go.
func wanted(b Book, s Seen, g Goal) map[netip.Addr]Entry {
	to := make(map[netip.Addr]Entry)
	for a, e := range g.Give {
		if b.Marks[a].Status == Free && s.Block.Has(b.Node, a) {
			to[a] = e
		}
	}
	if !g.Return {
		return to
	}
	for a, m := range b.Marks {
		if m.Status == Held {
			return nil
		}
		if m.Status != Free {
			continue
		}
		to[a] = Entry{}
		// An address kept for a sticky owner stays kept for it.
		if key := s.Block.At(a).Key; key != "" {
			to[a] = Entry{Key: key, Since: g.Now}
		}
	}
	return to
}

func filter(keys map[netip.Addr]string, want func(netip.Addr) bool) map[netip.Addr]string {
	out := make(map[netip.Addr]string)
	for a, key := range keys {
		if want(a) {
			out[a] = key
		}
	}
	return out
}

// send makes a step of a change; one that the record does not allow is none.
func send(s Seen, change func(Block) (Block, error)) Step {
	next, err := change(s.Block)
	if err != nil {
		return Step{}
	}
	return Step{Do: Send, Block: next, Rev: s.Rev}
}
