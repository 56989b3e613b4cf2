// Package client is what a plugin calls to manage addresses. Today it opens
// the node's ledger itself, for the length of one call each; the requests are
// plain data, so that an agent can serve the same calls over a socket.
//
// A release never fails for want of a working ledger: it is spooled and
// applied by whoever opens the ledger next.
package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// Client manages the addresses of one node.
type Client struct {
	o ledger.Options
}

// New makes a client of the ledger in dataDir; "" means the default. runDir
// follows from dataDir unless it is given.
func New(dataDir, runDir string) *Client {
	if dataDir == "" {
		dataDir = ipam.DefaultDataDir
	}
	if runDir == "" {
		runDir = ipam.DefaultRunDir
		if filepath.Clean(dataDir) != ipam.DefaultDataDir {
			sum := sha256.Sum256([]byte(filepath.Clean(dataDir)))
			runDir = filepath.Join(runDir, fmt.Sprintf("%x", sum[:4]))
		}
	}
	return &Client{o: ledger.Options{DataDir: dataDir, RunDir: runDir}}
}

// Options are those that the client opens the ledger with.
func (c *Client) Options() ledger.Options { return c.o }

// CheckPlace refuses folders that would depend on where the plugin happens to
// be run.
func (c *Client) CheckPlace() error {
	for _, d := range []struct{ key, dir string }{{"dataDir", c.o.DataDir}, {"runDir", c.o.RunDir}} {
		if !filepath.IsAbs(d.dir) {
			return &ipam.FieldError{Place: d.key, Msg: fmt.Sprintf("%q is not an absolute path", d.dir)}
		}
	}
	return nil
}

// update runs f on the ledger, opened for writing.
func (c *Client) update(ctx context.Context, f func(*ledger.Ledger) error) error {
	return c.with(ctx, c.o, f)
}

// view runs f on the ledger, opened for reading. Where there has never been
// one, nothing is on record, and f is not run.
func (c *Client) view(ctx context.Context, f func(*ledger.Ledger) error) error {
	o := c.o
	o.ReadOnly = true
	err := c.with(ctx, o, f)
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ledger.ErrLost) {
		return nil
	}
	return err
}

func (c *Client) with(ctx context.Context, o ledger.Options, f func(*ledger.Ledger) error) (err error) {
	l, err := ledger.Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return f(l)
}

// Allocate gives the attachment its addresses. When nothing is left, holders
// whose namespace is gone are looked for; see reclaim.
//
// decided, unless nil, may be called with the answer while it is being made
// durable, at most once. The answer is good only when Allocate returns it.
func (c *Client) Allocate(ctx context.Context, req ipam.AllocateRequest, decided func(ipam.Allocation)) (a ipam.Allocation, err error) {
	err = c.update(ctx, func(l *ledger.Ledger) error {
		a, err = l.Allocate(req, decided)
		var exhausted *ipam.ExhaustedError
		if !errors.As(err, &exhausted) {
			return err
		}
		freed, rerr := reclaim(l, req.Pool.Name)
		if rerr != nil || !freed {
			return errors.Join(err, rerr)
		}
		a, err = l.Allocate(req, decided)
		return err
	})
	return a, err
}

// Release gives back what the attachment holds. unlink, unless nil, is called
// before with the attachment's record, if there is one, and its error stops
// the release: an address must not be given on while a link still has it.
// If the ledger cannot be written the release is spooled, and the answer says
// that nothing is known.
func (c *Client) Release(ctx context.Context, req ipam.ReleaseRequest, unlink func(ipam.AttachmentRecord) error) (r ipam.Released, err error) {
	var kept error
	err = c.update(ctx, func(l *ledger.Ledger) error {
		rec, _, ok, err := l.Attachment(req.Attachment)
		if err == nil && ok && unlink != nil {
			if kept = unlink(rec); kept != nil {
				return kept
			}
		}
		r, err = l.Release(req)
		return err
	})
	if err == nil || kept != nil {
		return r, err
	}
	if serr := ledger.Spool([]string{c.o.DataDir, c.o.RunDir}, req); serr != nil {
		return ipam.Released{}, errors.Join(err, serr)
	}
	return ipam.Released{}, nil
}

// Attachment is what the ledger knows of an attachment; ok is false when it
// knows nothing.
func (c *Client) Attachment(ctx context.Context, att ipam.Attachment) (a ipam.AttachmentRecord, recs []ipam.Record, ok bool, err error) {
	err = c.view(ctx, func(l *ledger.Ledger) error {
		a, recs, ok, err = l.Attachment(att)
		return err
	})
	return a, recs, ok, err
}

// Stale lists the attachments of network and runtime that were made before a
// time and that valid does not name. Of those that a rebuild found it is not
// known who made them: they are listed when their namespace is gone.
func (c *Client) Stale(ctx context.Context, network, runtime string, before time.Time, valid func(containerID, ifName string) bool) (out []ipam.AttachmentRecord, err error) {
	alive, err := livingNamespaces()
	if err != nil {
		return nil, err
	}
	err = c.view(ctx, func(l *ledger.Ledger) error {
		return l.Attachments(func(a ipam.AttachmentRecord) error {
			att := a.Attachment
			mine := a.Runtime == runtime || a.Runtime == "" && !alive.has(a.Netns)
			if att.Network == network && mine && a.Since.Before(before) && !valid(att.ContainerID, att.IfName) {
				out = append(out, a)
			}
			return nil
		})
	})
	return out, err
}

// Users lists the attachments that share a VLAN sub-interface and those that
// share a host-side sibling with u.
func (c *Client) Users(ctx context.Context, u ipam.Uses) (vlan, hostAccess []ipam.AttachmentRecord, err error) {
	err = c.view(ctx, func(l *ledger.Ledger) error {
		vlan, hostAccess, err = l.Users(u)
		return err
	})
	return vlan, hostAccess, err
}

// Status reports why an ADD would fail now: the ledger cannot be used, or,
// when the pool asks for it, no address is left.
func (c *Client) Status(ctx context.Context, cfg ipam.Config) error {
	return c.update(ctx, func(l *ledger.Ledger) error {
		if err := l.Refused(); err != nil {
			return err
		}
		if !cfg.StatusOnExhausted {
			return nil
		}
		counts, err := l.Counts(cfg.Pool)
		if err != nil {
			return err
		}
		for i, n := range counts {
			if n.Held+n.Quarantined+n.Reserved+n.Other >= n.Usable {
				return &ipam.ExhaustedError{Pool: cfg.Pool.Name, Ranges: cfg.Pool.Sets[i].String(), Counts: n}
			}
		}
		return nil
	})
}

// Check compares an attachment's record with the addresses that its ADD
// returned.
func (c *Client) Check(ctx context.Context, att ipam.Attachment, want []netip.Addr) error {
	_, recs, ok, err := c.Attachment(ctx, att)
	if err != nil {
		return err
	}
	if !ok || len(recs) == 0 {
		return &CheckError{Msg: fmt.Sprintf("the ledger has no record of attachment %s", att)}
	}
	held := make(map[netip.Addr]bool, len(recs))
	for _, r := range recs {
		if r.State == ipam.Held && r.Attachment == att {
			held[r.Address.Addr()] = true
		}
	}
	for _, a := range want {
		if !held[a] {
			return &CheckError{Msg: fmt.Sprintf("the ledger does not have address %s as held by %s", a, att)}
		}
	}
	return nil
}

// CheckError is a difference that CHECK found.
type CheckError struct{ Msg string }

func (e *CheckError) Error() string { return e.Msg }

// CNICode is the code of a failed CHECK.
func (e *CheckError) CNICode() uint { return ipam.CodeCheck }
