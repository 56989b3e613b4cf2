package lease

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Status is what a ledger says of an address of a block, as far as leases
// care.
type Status uint8

const (
	// NotMine: this node must not use it.
	NotMine Status = iota
	// Free: this node's, and nobody uses it. An address that cools after a
	// release is free too: whether it may go already is the caller's to say.
	Free
	// Held: this node's, and not to be given away: in use, in quarantine or
	// reserved.
	Held
	// Giving: on its way out. Nobody on this node may use it any more.
	Giving
)

// Mark is the status of one address, with where it goes to if it is Giving.
type Mark struct {
	Status Status
	To     Entry
}

var (
	// ErrStale is returned for a record that is older than what the ledger
	// has learned already, or compared with.
	ErrStale = errors.New("the record is older than the ledger")
	// ErrBehind is returned for an intent on a record that the ledger has yet
	// to learn.
	ErrBehind = errors.New("the ledger is older than the record")
	// ErrInUse is returned for an intent to give what is not free.
	ErrInUse = errors.New("not free")
)

// Book is what a node's ledger keeps of one block. A Book is a value: Learn
// and Intend return what the ledger has to hold after one durable transaction,
// in which it calls them on what it holds at that moment: plugins turn Free
// into Held and back at any time, also while no agent runs.
type Book struct {
	Node Node
	CIDR netip.Prefix
	// Rev is the highest revision learned or compared with. It is kept for a
	// block of which nothing is left until the registry was listed anew.
	Rev Rev
	// Marks of the addresses that are not NotMine.
	Marks map[netip.Addr]Mark
}

// Learn takes in a record. What is the node's and was not becomes free, or, if
// the pool is not open, giving: it goes back before anybody has used it. open
// is to be judged by what the registry held at s.Rev or later: the pool is not
// being deleted, and its tenant within the quota. Since who deletes a pool
// marks it before counting its leases, one of the two sees the other.
//
// What is not the node's goes out of the ledger, unless it is held. An address
// that is giving stays so while the record shows it as the node's: the swap
// may still be on its way. lost lists addresses that are held and belong to
// somebody else by the record. None of the changes of this package, in any
// order, leads there: the node was removed, or the registry or the ledger is
// not what it was.
func (b Book) Learn(s Seen, open bool) (next Book, lost []netip.Addr, err error) {
	if s.Rev < b.Rev {
		return b, nil, fmt.Errorf("block %s: revision %d, known %d: %w", b.CIDR, s.Rev, b.Rev, ErrStale)
	}
	next = b
	next.Rev = s.Rev
	next.Marks = make(map[netip.Addr]Mark, len(b.Marks))
	for a, m := range b.Marks {
		mine := s.Block.Has(b.Node, a)
		switch {
		case mine:
			next.Marks[a] = m
		case m.Status == Held:
			next.Marks[a] = m
			lost = append(lost, a)
		}
	}
	fresh := Mark{Status: Free}
	if !open {
		fresh.Status = Giving
	}
	gain := func(a netip.Addr) {
		if _, known := b.Marks[a]; !known {
			next.Marks[a] = fresh
		}
	}
	if b.Node != "" && s.Block.Owner == b.Node {
		s.Block.Addrs(func(a netip.Addr) bool {
			if s.Block.Has(b.Node, a) {
				gain(a)
			}
			return true
		})
	} else {
		for a := range s.Block.Given {
			if s.Block.Has(b.Node, a) {
				gain(a)
			}
		}
	}
	slices.SortFunc(lost, netip.Addr.Compare)
	return next, lost, nil
}

// Intend marks free addresses as giving. s is the record that the swap is
// going to be compared with.
func (b Book) Intend(s Seen, to map[netip.Addr]Entry) (Book, error) {
	switch {
	case s.Rev < b.Rev:
		return b, fmt.Errorf("block %s: revision %d, known %d: %w", b.CIDR, s.Rev, b.Rev, ErrStale)
	case s.Rev > b.Rev:
		return b, fmt.Errorf("block %s: revision %d, known %d: %w", b.CIDR, s.Rev, b.Rev, ErrBehind)
	}
	next := b
	next.Marks = maps.Clone(b.Marks)
	for a, e := range to {
		if b.Marks[a].Status != Free {
			return b, fmt.Errorf("block %s: %s: %w", b.CIDR, a, ErrInUse)
		}
		if !s.Block.Has(b.Node, a) {
			return b, moved(s.Block, "%s is not %s's to give", a, b.Node)
		}
		next.Marks[a] = Mark{Status: Giving, To: e}
	}
	return next, nil
}

// Usable reports whether the node may have the address in use after a
// disaster: it is free or held. What is giving may be another node's.
func (b Book) Usable(a netip.Addr) bool {
	s := b.Marks[a].Status
	return s == Free || s == Held
}

// Empty reports whether nothing of the block is the node's.
func (b Book) Empty() bool { return len(b.Marks) == 0 }

// Free lists the addresses that are free, in order.
func (b Book) Free() []netip.Addr {
	var free []netip.Addr
	for a, m := range b.Marks {
		if m.Status == Free {
			free = append(free, a)
		}
	}
	slices.SortFunc(free, netip.Addr.Compare)
	return free
}
