package main

import (
	"context"
	"errors"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/link"
)

// plugin does what the mode asks for. What an attachment needs on the host is on
// record before it is made: DEL and GC take back what the record says, whatever
// has become of the configuration.
func plugin() cni.Plugin {
	valid := func(act func(*config, context.Context, *cni.Request) error) func(context.Context, *cni.Request) error {
		return func(ctx context.Context, req *cni.Request) error {
			c, err := parse(req.Stdin)
			if err != nil {
				return err
			}
			return act(c, ctx, req)
		}
	}
	return cni.Plugin{
		Name: "vxlan",
		Add: func(ctx context.Context, req *cni.Request) (*current.Result, error) {
			c, err := parse(req.Stdin)
			if err != nil {
				return nil, err
			}
			if err := attach.Client(&c.Config).CheckPlace(); err != nil {
				return nil, err
			}
			if c.Mode == modeSegment {
				return c.addSegment(ctx, req)
			}
			return c.addRouted(ctx, req)
		},
		Del: func(ctx context.Context, req *cni.Request) error {
			c, _ := parse(req.Stdin)
			return c.del(ctx, req)
		},
		Check: valid((*config).check),
		GC: func(ctx context.Context, req *cni.Request) error {
			c, _ := parse(req.Stdin)
			return c.collect(ctx, req)
		},
		Status: valid((*config).status),
	}
}

// record is what the ledger has an attachment by. It is not the network's name
// alone: by that the plugin that makes the interface has its own on record. A
// slash is in no name.
func (c *config) record(req *cni.Request) ipam.Attachment {
	return ipam.Attachment{Network: c.recordName(), ContainerID: req.ContainerID, IfName: req.IfName}
}

func (c *config) recordName() string { return c.Name + "/vxlan" }

// allocate puts the attachment on record; undo takes that back, unless it was
// there before.
func (c *config) allocate(ctx context.Context, req *cni.Request, uses ipam.Uses) (undo func(context.Context) error, err error) {
	ledger := attach.Client(&c.Config)
	got, err := ledger.Allocate(ctx, ipam.AllocateRequest{
		Attachment: c.record(req), Owner: req.Args.Owner, Runtime: client.Runtime(req.Path),
		Netns: client.Identify(req.Netns), Uses: uses,
	}, nil)
	if err != nil {
		return nil, err
	}
	undo = func(ctx context.Context) error {
		if got.Known {
			return nil
		}
		rec := ipam.AttachmentRecord{Attachment: c.record(req), Uses: uses}
		return c.unmake(ctx, rec, func() error {
			_, err := ledger.Release(ctx, ipam.ReleaseRequest{Attachment: c.record(req), Undo: true}, nil)
			return err
		})
	}
	fault.Point("vxlan.recorded")
	// An earlier ADD may have been of another segment.
	if old := got.Replaced; old.Uses.Segment.VNI != uses.Segment.VNI {
		if err := c.unmake(ctx, old, func() error { return nil }); err != nil {
			return nil, errors.Join(err, undo(context.WithoutCancel(ctx)))
		}
	}
	return undo, nil
}

// del takes back what the attachment has on record. Where the ledger cannot tell
// what that is, the release is spooled, and GC makes up for the rest.
func (c *config) del(ctx context.Context, req *cni.Request) error {
	ledger := attach.Client(&c.Config)
	rec, _, ok, err := ledger.Attachment(ctx, c.record(req))
	if err != nil || !ok {
		rec = ipam.AttachmentRecord{Attachment: c.record(req), Uses: c.uses()}
	}
	return c.unmake(ctx, rec, func() error {
		_, err := ledger.Release(ctx, ipam.ReleaseRequest{Attachment: c.record(req)}, nil)
		fault.Point("vxlan.released")
		return err
	})
}

// uses is what an attachment of the configuration has on record.
func (c *config) uses() ipam.Uses {
	if c.Mode == modeRouted {
		return ipam.Uses{Network: c.network()}
	}
	return ipam.Uses{Parent: c.Master, Segment: c.segment()}
}

// collect takes back what attachments that the runtime does not list as valid
// have on record, and a segment that nobody is in any more: an unreadable ledger
// could not tell, and a sweep of the agent's releases records alone.
func (c *config) collect(ctx context.Context, req *cni.Request) error {
	began := fault.Now()
	valid, err := c.Valid()
	if err != nil {
		return err
	}
	ledger := attach.Client(&c.Config)
	stale, err := ledger.Stale(ctx, c.recordName(), client.Runtime(req.Path), began, func(containerID, ifName string) bool {
		return valid[types.GCAttachment{ContainerID: containerID, IfName: ifName}]
	})
	errs := []error{err}
	for _, rec := range stale {
		errs = append(errs, c.unmake(ctx, rec, func() error {
			_, err := ledger.Release(ctx, ipam.ReleaseRequest{Attachment: rec.Attachment, Before: began}, nil)
			return err
		}))
	}
	if c.Mode == modeSegment {
		_ = c.askVNI(ctx, true) // while nobody can tell, the next GC does it
	}
	left := ipam.AttachmentRecord{Uses: c.uses()}
	return errors.Join(append(errs, c.unmake(ctx, left, func() error { return nil }))...)
}

// check compares with what ADD has made: the record, and what the mode makes.
func (c *config) check(ctx context.Context, req *cni.Request) error {
	prev, err := c.Previous()
	switch {
	case err != nil:
		return err
	case prev == nil:
		return invalid("prevResult: is missing; CHECK needs the result of the ADD")
	}
	rec, _, ok, err := attach.Client(&c.Config).Attachment(ctx, c.record(req))
	switch {
	case err != nil:
		return err
	case !ok:
		return differs("the ledger has no record that the attachment uses %s", c.what())
	case c.Mode == modeSegment:
		return c.checkMade(rec, prev)
	case rec.Uses.Network != c.network():
		return differs("the ledger has the attachment as one of network %q, not %q", rec.Uses.Network, c.network())
	}
	return c.checkFits(req)
}

// status reports, with code 50, why an ADD would fail.
func (c *config) status(ctx context.Context, _ *cni.Request) error {
	err := attach.Client(&c.Config).Status(ctx, ipam.Config{})
	if err == nil && c.Mode == modeSegment {
		err = c.askVNI(ctx, true)
	}
	if err == nil && c.Mode == modeSegment {
		err = onHost(func(h *link.Handle) error {
			_, err := c.wanted(h)
			return err
		})
	} else if err == nil {
		_, err = c.device()
	}
	if err != nil {
		return cni.Errorf(cni.CodeNotAvailable, "%w", err)
	}
	return nil
}

// onHost opens a handle on the host's namespace.
func onHost(f func(*link.Handle) error) error {
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}
