package client

import (
	"context"
	"errors"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// Cluster gets an agent what its ledger does not have. Try is to allocate from
// the ledger.
type Cluster interface {
	Allocate(ctx context.Context, l *ledger.Ledger, req ipam.AllocateRequest, try func() (ipam.Allocation, error)) (ipam.Allocation, error)
}

// Answer does what a plugin asks the agent for, with the agent's open ledger,
// and in a cluster unless that is nil. Before anything is changed wanted is
// asked whether the plugin still waits; its error ends the request.
func Answer(ctx context.Context, l *ledger.Ledger, c Cluster, q *wire.Request, wanted func() error) *wire.Response {
	a := &wire.Response{Version: wire.Version}
	if err := answer(ctx, l, c, q, wanted, a); err != nil {
		return &wire.Response{Version: wire.Version, Failure: wire.NewFailure(err)}
	}
	return a
}

func answer(ctx context.Context, l *ledger.Ledger, c Cluster, q *wire.Request, wanted func() error, a *wire.Response) (err error) {
	switch q.Op {
	case wire.OpAllocate:
		if err := l.Look(); err != nil {
			return err
		}
		if err := l.Drain(); err != nil {
			return err
		}
		got, err := allocateFor(ctx, l, c, wanted, *q.Allocate)
		a.Allocation = &got
		return err
	case wire.OpRelease:
		return release(l, q, wanted, a)
	case wire.OpAttachment:
		rec, recs, found, err := l.Attachment(*q.Attachment)
		if found {
			a.Attachments, a.Records = []ipam.AttachmentRecord{rec}, recs
		}
		return err
	case wire.OpStale:
		a.Attachments, err = stale(l, *q.Stale)
	case wire.OpUsers:
		a.Attachments, a.Others, err = l.Users(*q.Uses, q.Most)
	case wire.OpSegment:
		a.Attachments, err = l.SegmentUsers(q.Uses.Segment.VNI, q.Most)
	case wire.OpVNI:
		a.VNI, err = knownVNI(l, *q.VNI)
	case wire.OpStatus:
		return status(l, *q.Status, c != nil)
	}
	return err
}

// allocateFor looks for leaks once, and then to the cluster.
func allocateFor(ctx context.Context, l *ledger.Ledger, c Cluster, wanted func() error, req ipam.AllocateRequest) (ipam.Allocation, error) {
	if req.Cluster == "" || c == nil {
		return allocate(l, wanted, req, nil)
	}
	first := true
	return c.Allocate(ctx, l, req, func() (ipam.Allocation, error) {
		if first {
			first = false
			return allocate(l, wanted, req, nil)
		}
		return l.AllocateIf(wanted, req, nil)
	})
}

// always is what a plugin that has the ledger itself says of its wishes.
func always() error { return nil }

func allocate(l *ledger.Ledger, wanted func() error, req ipam.AllocateRequest, decided func(ipam.Allocation)) (ipam.Allocation, error) {
	a, err := l.AllocateIf(wanted, req, decided)
	var exhausted *ipam.ExhaustedError
	if !errors.As(err, &exhausted) {
		return a, err
	}
	freed, rerr := reclaimFor(l, req)
	if rerr != nil {
		return a, errors.Join(err, rerr)
	}
	if len(freed.Released) == 0 {
		return a, err
	}
	return l.AllocateIf(wanted, req, decided)
}

var errOther = errors.New("the record is not the one that was seen")

func release(l *ledger.Ledger, q *wire.Request, wanted func() error, a *wire.Response) error {
	other := func(rec ipam.AttachmentRecord) bool { return q.Seen != nil && !q.Seen.Equal(wire.SeenOf(rec)) }
	// Most often this is known without waiting for the transactions of others.
	if rec, _, ok, err := l.Attachment(q.Release.Attachment); ok && err == nil && other(rec) {
		a.Other = &rec
		return nil
	}
	var found ipam.AttachmentRecord
	got, err := l.ReleaseIf(func(rec ipam.AttachmentRecord) error {
		if other(rec) {
			found = rec
			return errOther
		}
		return wanted()
	}, *q.Release)
	if errors.Is(err, errOther) {
		a.Other = &found
		return nil
	}
	a.Released = &got
	return err
}

// knownVNI is that of who is in the segment on this node.
func knownVNI(l *ledger.Ledger, want wire.VNI) (vni int, err error) {
	found := errors.New("found")
	err = l.AttachmentsOf(want.Network, func(a ipam.AttachmentRecord) error {
		if a.Uses.Segment.Port == 0 {
			return nil
		}
		vni = a.Uses.Segment.VNI
		return found
	})
	if errors.Is(err, found) {
		err = nil
	}
	return vni, err
}

// stale lists what want is about.
func stale(l *ledger.Ledger, want wire.Stale) (out []ipam.AttachmentRecord, err error) {
	err = l.AttachmentsOf(want.Network, func(a ipam.AttachmentRecord) error {
		if (a.Runtime == want.Runtime || a.Runtime == "") && a.Since.Before(want.Before) {
			out = append(out, a)
		}
		return nil
	})
	return out, err
}

// status says why an ADD would fail. In a cluster, that is with an agent that has
// a registry, this mends itself in part: the agent confirms the node's leases
// and gets more.
func status(l *ledger.Ledger, want wire.Status, cluster bool) error {
	if err := l.Refused(); err != nil {
		return err
	}
	p := want.Pool
	if want.Cluster != "" {
		var err error
		if p, err = l.Cluster(want.Cluster); err != nil {
			return err
		}
		if err := l.Unconfirmed(); err != nil && !cluster {
			return err
		}
	}
	if !want.Exhausted {
		return nil
	}
	counts, err := l.Counts(p)
	if err != nil {
		return err
	}
	for i, n := range counts {
		full := &ipam.ExhaustedError{Pool: p.Name, Ranges: p.Sets[i].String(), Counts: n, Cluster: want.Cluster != ""}
		if !n.Free() && !(cluster && full.More()) {
			return full
		}
	}
	return nil
}
