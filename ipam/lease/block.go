// Package lease is the protocol by which nodes share the addresses of a pool,
// without any I/O: the record of a block, the changes that it goes through,
// what a node's ledger keeps of it, and what a node does next about it.
//
// What holds, whatever is late, lost, repeated or killed:
//
//   - A block is one record, and each change is a compare-and-swap of it, so
//     that an address belongs to one node or to nobody. Two blocks of a pool
//     never overlap.
//   - A node uses an address only while its ledger has it, and gives it away
//     in this order: the ledger turns it from free to giving, with the revision
//     that the swap will compare; then the swap is sent; then a record that
//     shows the address elsewhere takes it out of the ledger. An intent is
//     completed, never undone: a request thought lost may still land.
//   - A record older than the ledger's revision of the block is ignored.
//   - The answer to a swap is applied, refused or unknown. The last two are
//     followed by a new read, and the ledger then learns from it.
//   - A node is the UUID of its ledger. Nobody but an operator takes addresses
//     from a node, and a UUID that was removed is never used again.
//
// The exploration in the tests runs this code through every interleaving of
// small clusters.
//
// Left out: reading and writing the records (package registry), the ledger's
// file, timers. Whoever calls Next does what it says and calls it again.
package lease

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"
)

// MaxBits limits a block to 1<<MaxBits addresses: a record lists what of it
// was given away, and a node walks over it.
const MaxBits = 12

// Node is the UUID of a node's ledger; "" is nobody.
type Node string

// Rev is the revision at which the registry last changed a record; 0 stands
// for a record that was never written. Records of blocks are not deleted as
// long as their pool lives, so that a revision never comes again.
type Rev int64

// Entry says whom an address was given to.
type Entry struct {
	// Node that has the address; "" when anybody may claim it.
	Node Node
	// Key of the sticky owner that the address is kept for; "" for none.
	Key string
	// Since is when an address without a node was parked for Key, by the
	// clock of the node that parked it; zero otherwise.
	Since time.Time
}

// Parked reports whether the address waits for a sticky owner.
func (e Entry) Parked() bool { return e.Node == "" && e.Key != "" }

// Block is the record of a block: who leases it, and which of its addresses
// belong to somebody else. A Block is a value: changes return a new one.
type Block struct {
	// CIDR is aligned and of the size that its pool fixes.
	CIDR netip.Prefix
	// Owner has all addresses that are not in Given; "" is nobody.
	Owner Node
	// Given lists the addresses that do not follow Owner. Entries outlive the
	// lease: they stay when the owner returns the block or is removed.
	Given map[netip.Addr]Entry
}

// Seen is a record as it was read, or as an applied swap has written it.
type Seen struct {
	Block Block
	Rev   Rev
}

// Validate reports what no change can have brought about.
func (b Block) Validate() error {
	if err := ValidCIDR(b.CIDR); err != nil {
		return err
	}
	for a, e := range b.Given {
		if !b.CIDR.Contains(a) {
			return fmt.Errorf("given: %s is outside %s", a, b.CIDR)
		}
		if e.Node != "" && !e.Since.IsZero() {
			return fmt.Errorf("given[%s]: since stands beside a node", a)
		}
	}
	return nil
}

// ValidCIDR reports whether p can be a block.
func ValidCIDR(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("cidr: is missing or no prefix")
	case p.Addr().Is4In6():
		return fmt.Errorf("cidr: %s is an IPv4 prefix in IPv6 form", p)
	case p.Masked() != p:
		return fmt.Errorf("cidr: %s has host bits set", p)
	case p.Addr().BitLen()-p.Bits() > MaxBits:
		return fmt.Errorf("cidr: %s has more than %d addresses", p, 1<<MaxBits)
	}
	return nil
}

// Size counts the addresses of the block, usable or not.
func (b Block) Size() int { return 1 << (b.CIDR.Addr().BitLen() - b.CIDR.Bits()) }

// At returns whom the address belongs to: the entry in Given, else the owner.
func (b Block) At(a netip.Addr) Entry {
	if e, ok := b.Given[a]; ok {
		return e
	}
	return Entry{Node: b.Owner}
}

// Has reports whether the address belongs to n.
func (b Block) Has(n Node, a netip.Addr) bool {
	return n != "" && b.CIDR.Contains(a) && b.At(a).Node == n
}

// Names reports whether n owns the block or was given an address of it.
func (b Block) Names(n Node) bool {
	if n == "" {
		return false
	}
	if b.Owner == n {
		return true
	}
	for _, e := range b.Given {
		if e.Node == n {
			return true
		}
	}
	return false
}

// Sole reports whether nobody but n has anything of the block.
func (b Block) Sole(n Node) bool {
	for other := range b.Nodes() {
		if other != n {
			return false
		}
	}
	return true
}

// Nodes returns everybody that Names is true of, with the number of addresses
// that each has.
func (b Block) Nodes() map[Node]int {
	count := make(map[Node]int)
	if b.Owner != "" {
		count[b.Owner] = b.Size() - len(b.Given)
	}
	for _, e := range b.Given {
		if e.Node != "" {
			count[e.Node]++
		}
	}
	return count
}

// Addrs calls f for each address of the block, in order, until f returns
// false.
func (b Block) Addrs(f func(netip.Addr) bool) {
	a := b.CIDR.Addr()
	for range b.Size() {
		if !f(a) {
			return
		}
		a = a.Next()
	}
}

// clone copies what a change is going to write to.
func (b Block) clone() Block {
	b.Given = maps.Clone(b.Given)
	if b.Given == nil {
		b.Given = make(map[netip.Addr]Entry)
	}
	return b
}

// normal brings the block into the one form of its meaning: an owner that has
// no address left is no owner, and an entry that says what Owner says is none.
func (b Block) normal() Block {
	if b.Owner != "" && b.Nodes()[b.Owner] == 0 {
		b.Owner = ""
	}
	maps.DeleteFunc(b.Given, func(_ netip.Addr, e Entry) bool { return e.Node == b.Owner && e.Key == "" })
	if len(b.Given) == 0 {
		b.Given = nil
	}
	return b
}
