package main

import (
	"context"
	"errors"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/link"
)

// plugin is the main plugin, and what comes before and after it.
func plugin() cni.Plugin {
	p := attach.Plugin("hostgw", load)
	detach := p.Del
	p.Del = func(ctx context.Context, req *cni.Request) error {
		c, _ := parse(req.Stdin)
		err := detach(ctx, req)
		return errors.Join(err, onHost(func(h *link.Handle) error {
			return c.leave(ctx, h, ipam.Attachment{Network: c.Name, ContainerID: req.ContainerID, IfName: req.IfName})
		}))
	}
	return p
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
