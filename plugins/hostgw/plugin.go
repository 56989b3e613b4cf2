package main

import (
	"context"
	"errors"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/link"
)

// plugin does what the configuration asks for: with ipam a link and all that
// belongs to it (package attach), without it what is missing to the link of who
// came before in the chain; and for both what their network needs on the host.
func plugin() cni.Plugin {
	main := attach.Plugin("hostgw", load)
	return cni.Plugin{
		Name: main.Name,
		Add: func(ctx context.Context, req *cni.Request) (*current.Result, error) {
			c, err := parse(req.Stdin)
			switch {
			case err != nil:
				return nil, err
			case c.chained():
				return c.add(ctx, req)
			}
			return main.Add(ctx, req)
		},
		Del: func(ctx context.Context, req *cni.Request) error {
			c, _ := parse(req.Stdin) // what was made when it was valid is taken back
			if c.chained() {
				return errors.Join(c.release(ctx, req), c.left(ctx, req))
			}
			return errors.Join(main.Del(ctx, req), c.left(ctx, req))
		},
		Check: func(ctx context.Context, req *cni.Request) error {
			c, err := parse(req.Stdin)
			switch {
			case err != nil:
				return err
			case c.chained():
				return errors.Join(c.checkRecord(ctx, req), c.check(req))
			}
			if err := main.Check(ctx, req); err != nil {
				return err
			}
			return c.check(req)
		},
		GC: func(ctx context.Context, req *cni.Request) error {
			began := fault.Now()
			c, _ := parse(req.Stdin)
			valid, err := c.Valid()
			if err != nil {
				return err
			}
			if c.chained() {
				err = c.collect(ctx, req, valid)
			} else {
				err = main.GC(ctx, req)
			}
			return errors.Join(err, onHost(func(h *link.Handle) error {
				err := c.host(h).Prune(ctx, c.Name, began, func(containerID, ifName string) bool {
					return valid[types.GCAttachment{ContainerID: containerID, IfName: ifName}]
				})
				return errors.Join(err, c.unbridge(ctx, h))
			}))
		},
		Status: func(ctx context.Context, req *cni.Request) error {
			c, err := parse(req.Stdin)
			switch {
			case err != nil:
				return err
			case c.chained():
				err = c.recordable(ctx)
			default:
				err = main.Status(ctx, req)
			}
			if err != nil {
				return err
			}
			return c.ready(ctx)
		},
	}
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

func (c *config) attachment(req *cni.Request) ipam.Attachment {
	return ipam.Attachment{Network: c.Name, ContainerID: req.ContainerID, IfName: req.IfName}
}

// left takes back what an attachment has on the host beside its link.
func (c *config) left(ctx context.Context, req *cni.Request) error {
	return onHost(func(h *link.Handle) error { return c.leave(ctx, h, c.attachment(req)) })
}

// ready reports why an ADD would fail for want of something on the host.
func (c *config) ready(ctx context.Context) error {
	if c.cluster() != "" {
		return nil
	}
	n, err := c.network()
	if err != nil {
		return err
	}
	err = onHost(func(h *link.Handle) error { return c.host(h).Ready(ctx, n) })
	if err != nil {
		return cni.Errorf(cni.CodeNotAvailable, "%w", err)
	}
	return nil
}
