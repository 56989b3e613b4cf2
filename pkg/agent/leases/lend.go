package leases

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/runfile"
	"github.com/underlay-cni/underlay/pkg/fault"
)

// lentFile is the note in the run folder of what is lent. A ledger that was lost
// does not know, and those who give out the addresses go on.
const lentFile = "lent.json"

// Loan is what this node lends to others on it, who give out the addresses of
// whole blocks. A block is lent from the moment that the ledger says so until
// nobody can be using it.
type Loan struct {
	// Network whose pool a block of each address family is lent of; "" lends
	// nothing more than is lent already.
	Network string
	// To is the file by which the others hear of the blocks.
	To string
	// RunDir is the folder of the note; required.
	RunDir string
	// Over reports whether nobody uses a block any more that was lent by a file,
	// so that it can be used here; nil is never.
	Over func(to string, block netip.Prefix) bool
	// Told, unless nil, hears of each change of the note, and each time that a
	// block is not lent, why.
	Told func(why error)
}

// Lent is a block that is lent, as the note has it.
type Lent struct {
	// Pool by name and UUID.
	Pool  string       `json:"pool"`
	UUID  string       `json:"uuid"`
	Block netip.Prefix `json:"block"`
	To    string       `json:"to"`
}

// ReadLent reads the note of a run folder. What is in it is lent by the ledger.
func ReadLent(runDir string) (all []Lent, err error) {
	return all, runfile.Read(filepath.Join(runDir, lentFile), &all)
}

// note is what the trader knows of the note.
type note struct {
	read bool
	all  []Lent
}

// lendAgain has the ledger know of what was lent before, by the note. It comes
// before the leases are confirmed, that is, before anything is given out by a
// ledger that was made anew.
func (t *Trader) lendAgain(pools []record.Pool) error {
	if t.Loan == nil || t.note.read {
		return nil
	}
	all, err := ReadLent(t.Loan.RunDir)
	if err != nil {
		return fmt.Errorf("what this node lends to those who read a subnet file: %w; remove it if there are none, or reboot", err)
	}
	for _, l := range all {
		if !slices.ContainsFunc(pools, func(p record.Pool) bool { return p.UUID == l.UUID }) {
			continue
		}
		err := t.Ledger.Lend(l.UUID, l.Block, l.To, true)
		if err != nil && !errors.Is(err, lease.ErrInUse) { // it is not this node's any more
			return err
		}
	}
	t.note = note{read: true, all: all}
	return nil
}

// lend lends what is to be lent and is not, and takes back what nobody uses.
func (t *Trader) lend(ctx context.Context, v *registry.View, pools []record.Pool, me lease.Node) error {
	if t.Loan == nil {
		return nil
	}
	n, followed := v.Networks[t.Loan.Network]
	var lent []Lent
	var why error
	for _, p := range pools {
		blocks, err := t.Ledger.Blocks(p.UUID)
		if err != nil {
			return err
		}
		wanted := followed && n.Value.Pool == p.Name
		if wanted {
			why = t.lendOf(ctx, v, p, me, blocks)
			if blocks, err = t.Ledger.Blocks(p.UUID); err != nil {
				return err
			}
		}
		for _, b := range blocks {
			if b.Lent != "" {
				lent = append(lent, Lent{p.Name, p.UUID, b.CIDR, b.Lent})
			}
		}
		if wanted && p.Kind != record.Routed {
			why = fmt.Errorf("pool %q is shared; blocks are lent of routed pools", p.Name)
		}
	}
	for _, l := range t.note.all {
		if !slices.ContainsFunc(pools, func(p record.Pool) bool { return p.UUID == l.UUID }) {
			lent = append(lent, l) // nobody knows what the pool is now
		}
	}
	over := func(l Lent) bool {
		wanted := l.To == t.Loan.To && followed && n.Value.Pool == l.Pool
		return !wanted && t.Loan.Over != nil && t.Loan.Over(l.To, l.Block)
	}
	fault.Point("leases.lent")
	kept := slices.DeleteFunc(slices.Clone(lent), over)
	// What is taken back goes out of the note first: it must not be lent again
	// when others use it.
	err := t.keepNote(kept)
	for _, l := range lent {
		if err == nil && !slices.Contains(kept, l) {
			err = t.Ledger.Reclaim(l.UUID, l.Block)
		}
	}
	if why != nil && t.Loan.Told != nil {
		t.Loan.Told(why)
	}
	return err
}

func (t *Trader) keepNote(all []Lent) error {
	if slices.Equal(all, t.note.all) {
		return nil
	}
	if err := runfile.Write(filepath.Join(t.Loan.RunDir, lentFile), all); err != nil {
		return fmt.Errorf("note what this node lends: %w", err)
	}
	fault.Point("leases.noted")
	t.note.all = all
	if t.Loan.Told != nil {
		t.Loan.Told(nil)
	}
	return nil
}

// lendOf lends a block of each address family of a pool, if none is lent.
func (t *Trader) lendOf(ctx context.Context, v *registry.View, p record.Pool, me lease.Node, blocks []ledger.Block) error {
	if p.Kind != record.Routed || p.State != "" {
		return nil
	}
	var errs []error
	for set := range p.Sets {
		four := p.Sets[set].Is4()
		first := !slices.ContainsFunc(p.Sets[:set], func(s ipam.RangeSet) bool { return s.Is4() == four })
		lent := slices.ContainsFunc(blocks, func(b ledger.Block) bool { return b.Lent == t.Loan.To && b.CIDR.Addr().Is4() == four })
		if first && !lent {
			errs = append(errs, t.lendOne(ctx, v, p, set, me, blocks))
		}
	}
	return errors.Join(errs...)
}

// lendOne lends a block of a range set: one that is unused, or else another.
func (t *Trader) lendOne(ctx context.Context, v *registry.View, p record.Pool, set int, me lease.Node, blocks []ledger.Block) error {
	whole := func(block netip.Prefix) bool {
		keeps := 2 // the network address and the gateway
		if block.Addr().Is4() {
			keeps++ // the broadcast address
		}
		return p.Sets[set].Within(block) == uint64(lease.Block{CIDR: block}.Size()-keeps)
	}
	for _, b := range blocks {
		if b.Lent != "" || !whole(b.CIDR) {
			continue
		}
		if err := t.Ledger.Lend(p.UUID, b.CIDR, t.Loan.To, false); !errors.Is(err, lease.ErrInUse) {
			return err
		}
	}
	search, err := v.Search(p, set, lease.Search{Node: me, Now: t.now(), Attempt: t.refused[p.UUID].swaps})
	if err != nil {
		return err
	}
	// Whoever is lent a block gives out all of it.
	skip, usable := search.Skip, search.Usable
	search.Skip = func(block netip.Prefix) bool { return skip(block) || !whole(block) }
	search.Usable = func(a netip.Addr) bool {
		return usable(a) && whole(netip.PrefixFrom(a, p.Bits(a)).Masked())
	}
	found := search.Find()
	if !found.CIDR.IsValid() {
		return fmt.Errorf("pool %q has no block left, of %s, that nobody uses and that is in its ranges as a whole; enlarge the pool, or end all containers of one block on this node", p.Name, p.Sets[set])
	}
	if err := v.Room(p.UUID, int64(p.Usable(found.CIDR))); err != nil {
		return err
	}
	if err := t.to(ctx, v, p, found.CIDR, found.Goal); err != nil {
		return err
	}
	return t.Ledger.Lend(p.UUID, found.CIDR, t.Loan.To, false)
}
