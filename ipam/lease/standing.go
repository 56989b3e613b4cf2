package lease

import (
	"maps"
	"net/netip"
)

// Epoch names a stretch of the registry's history without a step back. A
// registry that was restored from a backup begins a new one, on the word of an
// operator.
type Epoch struct {
	// Number grows with each; the first is 1.
	Number int `json:"number"`
	// ID tells two apart that got the same number, one of them from a backup.
	ID string `json:"id"`
}

// Past is what a ledger remembers of the registry.
type Past struct {
	// Cluster is the registry's UUID; "" before the first contact.
	Cluster string
	Epoch   Epoch
	// Rev is the highest revision seen of the registry as a whole.
	Rev Rev
}

// Present is what the registry says of itself, in one read.
type Present struct {
	Cluster string
	Epoch   Epoch
	Rev     Rev
	// Frozen: somebody saw the registry go back, and no operator has said yet
	// that it is to go on from there.
	Frozen bool
	// Waits: a node that is not removed has yet to assert what it has in this
	// epoch.
	Waits bool
	// Removed: an operator removed this node.
	Removed bool
}

// Standing of a node: what it may do in the registry.
type Standing uint8

const (
	// Trading: all of it.
	Trading Standing = iota
	// Joining: take over cluster and epoch into the ledger first; this ledger
	// has never met a registry.
	Joining
	// Freezing: the registry went back: say so in it, and change nothing else,
	// nor learn from it.
	Freezing
	// Frozen: as Freezing, but it is said already.
	Frozen
	// Asserting: bring the records into line with the ledger (NextAssert), take
	// over the epoch, and report to have done so.
	Asserting
	// Waiting: change nothing before all others have asserted.
	Waiting
	// Removed: the ledger's UUID is dead. Get a new one; nothing is this
	// node's any more.
	Removed
)

// Stand judges the registry by what the ledger remembers.
func Stand(past Past, now Present) Standing {
	switch {
	case now.Removed:
		return Removed
	case past.Cluster == "" && now.Cluster != "" && !now.Frozen:
		return Joining
	case now.Frozen:
		return Frozen
	case now.Cluster != past.Cluster, now.Epoch.Number < past.Epoch.Number,
		now.Epoch.Number == past.Epoch.Number && now.Epoch.ID != past.Epoch.ID,
		now.Epoch == past.Epoch && now.Rev < past.Rev:
		return Freezing
	case now.Epoch != past.Epoch:
		return Asserting
	case now.Waits:
		return Waiting
	}
	return Trading
}

// NextAssert says what a node that is Asserting does about a block, until it
// says Rest. It does so for each block that the ledger knows or whose record
// names the node.
func NextAssert(b Book, s Seen) Step {
	next, changed := s.Block.Assert(b.Node, b.Usable)
	if changed {
		return Step{Do: Send, Block: next, Rev: s.Rev}
	}
	if adopted := b.Adopt(s); adopted.Rev != b.Rev || len(adopted.Marks) != len(b.Marks) {
		return Step{Do: Adopt}
	}
	return Step{}
}

// Adopt takes in a record that agrees with what is free and held, whatever
// revision the ledger knew: that was of another history. What was giving is
// not the node's any more: the record offers it, or somebody else has it.
func (b Book) Adopt(s Seen) Book {
	b.Rev = s.Rev
	b.Marks = maps.Clone(b.Marks)
	maps.DeleteFunc(b.Marks, func(_ netip.Addr, m Mark) bool { return m.Status == Giving })
	return b
}
