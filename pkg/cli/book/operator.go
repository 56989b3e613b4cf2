package book

import (
	"io"
	"net/netip"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// Operator is the part of *ledger.Ledger with which operators see to single
// addresses and to the file.
type Operator interface {
	History(netip.Addr, func(ipam.Hold) error) error
	Reserve(pool string, a netip.Addr, reason string) (ipam.Record, error)
	Clear(netip.Addr, ipam.State) (ipam.Record, error)
	Backup(io.Writer) error
	Import([]ledger.Found) error
}

// History is as of *ledger.Ledger.
func (a *Agent) History(addr netip.Addr, fn func(ipam.Hold) error) error {
	holds, err := a.c.History(a.ctx, addr)
	if err != nil {
		return err
	}
	for _, h := range holds {
		if err := fn(h); err != nil {
			return err
		}
	}
	return nil
}

// Reserve is as of *ledger.Ledger.
func (a *Agent) Reserve(pool string, addr netip.Addr, reason string) (ipam.Record, error) {
	a.dump = nil
	return a.c.Reserve(a.ctx, pool, addr, reason)
}

// Clear is as of *ledger.Ledger.
func (a *Agent) Clear(addr netip.Addr, state ipam.State) (ipam.Record, error) {
	a.dump = nil
	switch state {
	case ipam.Reserved:
		return a.c.Unreserve(a.ctx, addr)
	case ipam.Quarantined:
		return a.c.ClearConflict(a.ctx, addr)
	}
	return a.c.ReleaseAddress(a.ctx, addr)
}

// Backup is as of *ledger.Ledger.
func (a *Agent) Backup(w io.Writer) error { return a.c.Backup(a.ctx, w) }

// Import is as of *ledger.Ledger.
func (a *Agent) Import(found []ledger.Found) error {
	a.dump = nil
	return a.c.Import(a.ctx, found)
}
