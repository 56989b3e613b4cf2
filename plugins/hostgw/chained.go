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
	"github.com/underlay-cni/underlay/pkg/forward"
	"github.com/underlay-cni/underlay/pkg/link"
)

// record is what the ledger has a chained attachment of a cluster network by. It
// is not the network's name alone: by that the plugin before in the chain may
// have its addresses on record, for the same container. A slash is in no name.
func (c *config) record(req *cni.Request) ipam.Attachment {
	att := c.attachment(req)
	att.Network = c.recordName()
	return att
}

func (c *config) recordName() string { return c.Name + "/hostgw" }

// add makes what the link of who came before in the chain needs, and passes its
// result on.
func (c *config) add(ctx context.Context, req *cni.Request) (prev *current.Result, err error) {
	prev, err = c.Previous()
	switch {
	case err != nil:
		return nil, err
	case prev == nil:
		return nil, invalid("ipam: is missing, and so is prevResult: hostgw makes an interface with ipam, or is in a chain behind a plugin that does")
	case len(ownAddresses(prev, req)) == 0:
		return nil, invalid("prevResult: has no addresses that the host could route to")
	}
	ledger := attach.Client(&c.Config)
	if err := ledger.CheckPlace(); err != nil {
		return nil, err
	}
	err = onHost(func(h *link.Handle) (err error) {
		if c.cluster() != "" {
			got, aerr := ledger.Allocate(ctx, ipam.AllocateRequest{
				Attachment: c.record(req), Owner: req.Args.Owner, Runtime: client.Runtime(req.Path),
				Netns: client.Identify(req.Netns), Uses: ipam.Uses{Network: c.cluster(), Masquerade: c.IPMasq},
			}, nil)
			if aerr != nil {
				return aerr
			}
			defer func() {
				if err != nil && !got.Known {
					_, rerr := ledger.Release(context.WithoutCancel(ctx), ipam.ReleaseRequest{Attachment: c.record(req), Undo: true}, nil)
					err = errors.Join(err, rerr)
				}
			}()
		}
		if err := c.forwardFor(h, prev, req); err != nil {
			return err
		}
		// An ADD may come again while the container lives, whose link is not ours to
		// take away: what it has, it keeps.
		had := c.host(h).Has(c.Name, attachmentOf(c.attachment(req)))
		defer func() {
			if err != nil && !had {
				err = errors.Join(err, c.leaveNetwork(context.WithoutCancel(ctx), h, c.attachment(req)))
			}
		}()
		return c.joinNetwork(ctx, h, c.attachment(req), ownAddresses(prev, req))
	})
	if err != nil {
		return nil, err
	}
	return prev, nil
}

// forwardFor has the host forward what comes in by its interfaces in the result,
// a bridge or an end of a pair, and by master.
func (c *config) forwardFor(h *link.Handle, prev *current.Result, req *cni.Request) error {
	name, err := c.Master, error(nil)
	if name == "" {
		if name, err = h.DefaultRouteLink(); err != nil && !errors.Is(err, link.ErrNotFound) {
			return err
		}
	}
	var names []string
	if name != "" {
		l, err := h.Parent(name)
		if err != nil {
			return cni.Errorf(cni.CodeParent, "master: %w", err)
		}
		names = append(names, l.Name)
	}
	for _, i := range prev.Interfaces {
		if i.Sandbox != "" {
			continue
		}
		if _, err := h.ByName(i.Name); err == nil {
			names = append(names, i.Name)
		}
	}
	var errs []error
	for _, addr := range ownAddresses(prev, req) {
		if addr.Addr().Is4() {
			errs = append(errs, forward.IPv4(names...))
		} else {
			errs = append(errs, forward.IPv6(names...))
		}
	}
	return errors.Join(errs...)
}

// release gives back what the ledger has on record of a chained attachment.
func (c *config) release(ctx context.Context, req *cni.Request) error {
	ledger, att := attach.Client(&c.Config), c.record(req)
	if c.cluster() == "" {
		// The configuration may have named a network at the ADD.
		if _, _, known, err := ledger.Attachment(ctx, att); !known && err == nil {
			return nil
		}
	}
	_, err := ledger.Release(ctx, ipam.ReleaseRequest{Attachment: att}, nil)
	return err
}

// collect releases chained attachments that the runtime does not list as valid.
func (c *config) collect(ctx context.Context, req *cni.Request, valid map[types.GCAttachment]bool) error {
	began := fault.Now()
	ledger := attach.Client(&c.Config)
	stale, err := ledger.Stale(ctx, c.recordName(), client.Runtime(req.Path), began, func(containerID, ifName string) bool {
		return valid[types.GCAttachment{ContainerID: containerID, IfName: ifName}]
	})
	errs := []error{err}
	for _, rec := range stale {
		_, err := ledger.Release(ctx, ipam.ReleaseRequest{Attachment: rec.Attachment, Before: began}, nil)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// checkRecord looks for the record of a chained attachment.
func (c *config) checkRecord(ctx context.Context, req *cni.Request) error {
	if c.cluster() == "" {
		return nil
	}
	rec, _, ok, err := attach.Client(&c.Config).Attachment(ctx, c.record(req))
	switch {
	case err != nil:
		return err
	case !ok:
		return differs("the ledger has no record that the attachment uses network %q", c.cluster())
	case rec.Uses.Network != c.cluster() || rec.Uses.Masquerade != c.IPMasq:
		return differs("the ledger has the attachment as one of network %q, with ipMasq %t", rec.Uses.Network, rec.Uses.Masquerade)
	}
	return nil
}

// recordable reports why the ledger could not take a record.
func (c *config) recordable(ctx context.Context) error {
	if c.cluster() == "" {
		return nil
	}
	if err := attach.Client(&c.Config).Status(ctx, ipam.Config{}); err != nil {
		return cni.Errorf(cni.CodeNotAvailable, "%w", err)
	}
	return nil
}
