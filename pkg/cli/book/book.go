// Package book is where the commands of underlayctl read what the ledger holds:
// from the agent's Admin API while an agent has the ledger open, else from the
// file. Both say the same.
package book

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// Book is the part of *ledger.Ledger that commands use.
type Book interface {
	Attachment(ipam.Attachment) (att ipam.AttachmentRecord, recs []ipam.Record, found bool, err error)
	Attachments(func(ipam.AttachmentRecord) error) error
	Records(func(ipam.Record) error) error
	Pools() ([]ipam.Pool, error)
	Counts(ipam.Pool) ([]ipam.Counts, error)
	Info() (ledger.Info, error)
	Check() (findings []string, err error)
	Export(io.Writer) error
	ReleaseAddress(netip.Addr) (ipam.Record, error)
	Operator
}

var (
	_ Book = (*ledger.Ledger)(nil)
	_ Book = (*Agent)(nil)
)

// ErrNoAgent is returned by Ask when no agent has the ledger open.
var ErrNoAgent = api.ErrNoAgent

// Agent is the Book of an agent's ledger. It asks for all records once, when
// the first are wanted: what a command reads is of one moment.
type Agent struct {
	ctx  context.Context
	c    *api.Client
	dump *ledger.Dump
	// pools with their counts, asked for once too.
	pools []api.Pool
}

// Ask returns the Book of the agent that has the ledger open, good until ctx
// ends and until Close; ErrNoAgent when there is none, or none that answers.
func Ask(ctx context.Context, o ledger.Options) (*Agent, error) {
	a := &Agent{ctx: ctx, c: api.NewClient(o.RunDir)}
	node, err := a.c.Node(ctx)
	if err == nil && same(node.DataDir, o.DataDir) {
		return a, nil
	}
	a.Close()
	if ctx.Err() != nil {
		return nil, err
	}
	// An agent without a ledger leaves it to others, and who may not ask the
	// agent is told what he may not by the file.
	return nil, errors.Join(ErrNoAgent, err)
}

func same(a, b string) bool {
	if a == b {
		return true
	}
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// Close ends the conversation.
func (a *Agent) Close() { a.c.Close() }

func (a *Agent) read() (*ledger.Dump, error) {
	if a.dump == nil {
		d, err := a.c.Ledger(a.ctx)
		if err != nil {
			return nil, err
		}
		a.dump = &d
	}
	return a.dump, nil
}

// Attachment is as of *ledger.Ledger.
func (a *Agent) Attachment(at ipam.Attachment) (att ipam.AttachmentRecord, recs []ipam.Record, found bool, err error) {
	d, err := a.read()
	if err != nil {
		return att, nil, false, err
	}
	for _, x := range d.Attachments {
		if x.Attachment == at {
			att, found = x, true
		}
	}
	for _, addr := range att.Addresses {
		for _, r := range d.Addresses {
			if r.Address.Addr() == addr {
				recs = append(recs, r)
			}
		}
	}
	return att, recs, found, nil
}

// Attachments is as of *ledger.Ledger.
func (a *Agent) Attachments(fn func(ipam.AttachmentRecord) error) error {
	d, err := a.read()
	if err != nil {
		return err
	}
	for _, x := range d.Attachments {
		if err := fn(x); err != nil {
			return err
		}
	}
	return nil
}

// Records is as of *ledger.Ledger.
func (a *Agent) Records(fn func(ipam.Record) error) error {
	d, err := a.read()
	if err != nil {
		return err
	}
	for _, r := range d.Addresses {
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

// Pools is as of *ledger.Ledger.
func (a *Agent) Pools() ([]ipam.Pool, error) {
	d, err := a.read()
	if err != nil {
		return nil, err
	}
	return d.Pools, nil
}

// Counts is as of *ledger.Ledger, of a pool that it has. A local pool and one of
// the cluster may have the same name.
func (a *Agent) Counts(p ipam.Pool) ([]ipam.Counts, error) {
	if a.pools == nil {
		all, err := a.c.Pools(a.ctx)
		if err != nil {
			return nil, err
		}
		a.pools = all
	}
	for _, known := range a.pools {
		if known.ID() == p.ID() {
			return known.Counts, nil
		}
	}
	return nil, fmt.Errorf("the agent's ledger has no pool %q any more", p.Name)
}

// Info is as of *ledger.Ledger.
func (a *Agent) Info() (ledger.Info, error) {
	d, err := a.read()
	if err != nil {
		return ledger.Info{}, err
	}
	return d.Ledger, nil
}

// Check is as of *ledger.Ledger.
func (a *Agent) Check() (findings []string, err error) {
	v, err := a.c.Check(a.ctx)
	return v.Findings, err
}

// Export is as of *ledger.Ledger.
func (a *Agent) Export(w io.Writer) error {
	d, err := a.read()
	if err == nil {
		_, err = d.WriteTo(w)
	}
	return err
}

// ReleaseAddress is as of *ledger.Ledger.
func (a *Agent) ReleaseAddress(addr netip.Addr) (ipam.Record, error) {
	a.dump, a.pools = nil, nil // what comes after is to see it
	return a.c.ReleaseAddress(a.ctx, addr)
}
