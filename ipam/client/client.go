// Package client is what a plugin calls to manage addresses. It asks the node's
// agent, if one listens, or else opens the ledger itself, for the length of one
// call each; with Answer the agent does the same for those who ask it. So the
// answers, and the errors, are the same with an agent and without.
//
// What holds while agents come, go and die:
//
//   - Who waits for the ledger's lock looks for an agent meanwhile, since one
//     that comes listens before it waits for the lock.
//   - A request whose answer is lost is made again. All of them may be: the
//     same attachment gets the same addresses.
//   - A release never fails for want of a working ledger or of an answer: it is
//     spooled and applied by whoever has the ledger, before it allocates.
package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/digest"
)

// Client manages the addresses of one node.
type Client struct {
	o ledger.Options
	// silent is set once the agent has not answered: what follows is a part of
	// the same call, and does not wait for it as long again.
	silent atomic.Bool
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
			sum := digest.Sum256([]byte(filepath.Clean(dataDir)))
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

// view is do for what only reads. Where there has never been a ledger, nothing
// is on record, and f is not run.
func (c *Client) view(ctx context.Context, q *wire.Request, f func(*ledger.Ledger) error) (*wire.Response, error) {
	a, err := c.do(ctx, q, f)
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ledger.ErrLost) {
		return a, nil
	}
	return a, err
}

// spool writes a release down for whoever has the ledger next.
func (c *Client) spool(req ipam.ReleaseRequest) error {
	return ledger.Spool([]string{c.o.DataDir, c.o.RunDir}, req)
}

// Allocate gives the attachment its addresses. When nothing is left, holders
// whose namespace is gone are looked for; see Reclaim.
//
// decided, unless nil, may be called with the answer while it is being made
// durable, at most once; an agent tells it only with the answer. The answer is
// good only when Allocate returns it.
func (c *Client) Allocate(ctx context.Context, req ipam.AllocateRequest, decided func(ipam.Allocation)) (a ipam.Allocation, err error) {
	req.Token = rand.Uint64() | 1
	r, err := c.do(ctx, &wire.Request{Op: wire.OpAllocate, Allocate: &req}, func(l *ledger.Ledger) (err error) {
		a, err = allocate(l, always, req, decided)
		var full *ipam.ExhaustedError
		if errors.As(err, &full) && full.Cluster && full.More() {
			err = fmt.Errorf("%w; no agent runs on this node: underlayd leases more", err)
		}
		return err
	})
	if r != nil && r.Allocation != nil {
		a = *r.Allocation
	}
	// It may have been given all the same, by this request or by one that was lost
	// before. What an earlier ADD of the attachment was given has another token.
	if errors.Is(err, errSilent) && (!errors.Is(err, errUnread) || errors.Is(err, errLost)) {
		undo := ipam.ReleaseRequest{Attachment: req.Attachment, Token: req.Token, Undo: true}
		err = errors.Join(err, c.spool(undo))
	}
	return a, err
}

// Release gives back what the attachment holds. unlink, unless nil, is called
// before with the attachment's record, if there is one, and its error stops
// the release: an address must not be given on while a link still has it.
// If the ledger cannot be written, or an agent does not answer, the release is
// spooled, and the answer says that nothing is known.
func (c *Client) Release(ctx context.Context, req ipam.ReleaseRequest, unlink func(ipam.AttachmentRecord) error) (r ipam.Released, err error) {
	if c.CheckPlace() != nil {
		return r, nil // nobody was given anything there
	}
	var kept error
	q := &wire.Request{Op: wire.OpRelease, Release: &req}
	if unlink != nil {
		// The first thing is to learn what is to be unlinked: an agent answers
		// a release of what has not been seen with what it is.
		q.Seen = &wire.Seen{}
	}
	for range 8 {
		var a *wire.Response
		a, err = c.do(ctx, q, func(l *ledger.Ledger) error {
			rec, _, ok, err := l.Attachment(req.Attachment)
			if err == nil && ok && unlink != nil {
				if kept = unlink(rec); kept != nil {
					return kept
				}
			}
			r, err = l.Release(req)
			return err
		})
		if err != nil || a == nil {
			break
		}
		if a.Released != nil {
			return *a.Released, nil
		}
		if a.Other == nil {
			err = errors.New("response of the agent: it has no answer")
			break
		}
		if a.Other.Attachment == req.Attachment {
			if kept = unlink(*a.Other); kept != nil {
				return r, kept
			}
		}
		seen := wire.SeenOf(*a.Other)
		q.Seen = &seen
		err = fmt.Errorf("attachment %s: its record changes all the time", req.Attachment)
	}
	if err == nil || kept != nil {
		return r, err
	}
	if serr := c.spool(req); serr != nil {
		return ipam.Released{}, errors.Join(err, serr)
	}
	return ipam.Released{}, nil
}

// Attachment is what the ledger knows of an attachment; ok is false when it
// knows nothing.
func (c *Client) Attachment(ctx context.Context, att ipam.Attachment) (a ipam.AttachmentRecord, recs []ipam.Record, ok bool, err error) {
	r, err := c.view(ctx, &wire.Request{Op: wire.OpAttachment, Attachment: &att}, func(l *ledger.Ledger) (err error) {
		a, recs, ok, err = l.Attachment(att)
		return err
	})
	if r != nil && len(r.Attachments) > 0 {
		return r.Attachments[0], r.Records, true, err
	}
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
	want := wire.Stale{Network: network, Runtime: runtime, Before: before}
	var all []ipam.AttachmentRecord
	r, err := c.view(ctx, &wire.Request{Op: wire.OpStale, Stale: &want}, func(l *ledger.Ledger) (err error) {
		all, err = stale(l, want)
		return err
	})
	if r != nil {
		all = r.Attachments
	}
	for _, a := range all {
		if (a.Runtime == runtime || !alive.has(a.Netns)) && !valid(a.Attachment.ContainerID, a.Attachment.IfName) {
			out = append(out, a)
		}
	}
	return out, err
}

// Users lists the attachments that share a VLAN sub-interface and those that
// share a host-side sibling with u: so many of each at most, or all for 0.
func (c *Client) Users(ctx context.Context, u ipam.Uses, most int) (vlan, hostAccess []ipam.AttachmentRecord, err error) {
	r, err := c.view(ctx, &wire.Request{Op: wire.OpUsers, Uses: &u, Most: most}, func(l *ledger.Ledger) (err error) {
		vlan, hostAccess, err = l.Users(u, most)
		return err
	})
	if r != nil {
		return r.Attachments, r.Others, err
	}
	return vlan, hostAccess, err
}

// SegmentUsers lists the attachments that the segment of a VNI goes with: so many
// at most, or all for 0.
func (c *Client) SegmentUsers(ctx context.Context, vni, most int) (out []ipam.AttachmentRecord, err error) {
	q := &wire.Request{Op: wire.OpSegment, Uses: &ipam.Uses{Segment: ipam.Segment{VNI: vni}}, Most: most}
	r, err := c.view(ctx, q, func(l *ledger.Ledger) (err error) {
		out, err = l.SegmentUsers(vni, most)
		return err
	})
	if r != nil {
		return r.Attachments, err
	}
	return out, err
}

// SegmentVNI asks for the VNI of a segment that has it by its name. Without an agent
// it is that of who is in the segment on this node.
func (c *Client) SegmentVNI(ctx context.Context, want wire.VNI) (vni int, err error) {
	r, err := c.view(ctx, &wire.Request{Op: wire.OpVNI, VNI: &want}, func(l *ledger.Ledger) (err error) {
		vni, err = knownVNI(l, want)
		return err
	})
	if r != nil {
		return r.VNI, err
	}
	if err == nil && vni == 0 {
		err = &ipam.FieldError{Place: "vni", Code: ipam.CodeTryAgainLater, Msg: fmt.Sprintf("is missing, no container of network %q is on this node, and no agent runs here to ask for the VNI that the cluster has given it: start underlayd, or name the VNI", want.Name)}
	}
	return vni, err
}

// Status reports why an ADD would fail now and go on failing: the ledger cannot
// be used, the node knows no such pool or nobody is there to confirm its leases,
// or, when the configuration asks for it, no address is left.
func (c *Client) Status(ctx context.Context, cfg ipam.Config) error {
	want := wire.Status{Pool: cfg.Pool, Cluster: cfg.Cluster, Exhausted: cfg.StatusOnExhausted}
	_, err := c.do(ctx, &wire.Request{Op: wire.OpStatus, Status: &want}, func(l *ledger.Ledger) error {
		return status(l, want, false)
	})
	return err
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
