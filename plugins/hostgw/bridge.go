package main

import (
	"context"
	"net/netip"
	"slices"

	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/forward"
	"github.com/underlay-cni/underlay/pkg/link"
)

// plug makes the host's end of a pair a port of the node's bridge, which is made
// for the first one and goes with the last. Whoever makes or removes it holds
// its lock.
func (c *config) plug(ctx context.Context, h *link.Handle, e attach.Ends) error {
	unlock, err := attach.Lock(ctx, &c.Config, c.Bridge)
	if err != nil {
		return err
	}
	defer unlock()
	bridge, ours, err := h.EnsureBridge(c.Bridge)
	if err != nil {
		return cni.Errorf(cni.CodeParent, "%w", err)
	}
	fault.Point("hostgw.bridged")
	if err := h.Plug(e.Host.Index, bridge.Index); err != nil {
		return err
	}
	if err := h.DressPeer(e.Host.Index, e.Alias); err != nil {
		return err
	}
	have, err := h.Addrs(bridge.Index)
	if err != nil {
		return err
	}
	for _, a := range e.Addresses {
		if err := c.putGateway(h, bridge, ours, have, a.Prefix, a.Gateway); err != nil {
			return err
		}
	}
	fault.Point("hostgw.plugged")
	return nil
}

// putGateway gives the bridge the address that containers know it by. On a
// bridge of somebody else's it has to be there already: there it may be that of
// a router elsewhere.
func (c *config) putGateway(h *link.Handle, bridge link.Link, ours bool, have []link.Addr, addr netip.Prefix, gw netip.Addr) error {
	on := netip.PrefixFrom(gw, addr.Bits())
	switch {
	case !gw.IsValid():
		return invalid("ipam: tells no gateway for %s; on bridge %q it is the bridge's own address, so name one", addr.Masked(), c.Bridge)
	case !addr.Contains(gw) || gw == addr.Addr():
		return invalid("ipam: gateway %s cannot be that of bridge %q for %s", gw, c.Bridge, addr)
	}
	there := slices.ContainsFunc(have, func(a link.Addr) bool { return a.Prefix == on })
	if !ours && !there {
		return cni.Errorf(cni.CodeParent, "bridge: %q is not one that this plugin has made, and has not the gateway of ipam; if it is to have that: ip addr add %s dev %s", c.Bridge, on, c.Bridge)
	}
	if gw.Is4() {
		if ours {
			if err := forward.Strict(c.Bridge); err != nil {
				return err
			}
		}
		if err := forward.IPv4(c.Bridge); err != nil {
			return err
		}
	} else {
		if ours {
			if err := forward.HaveIPv6(c.Bridge); err != nil {
				return err
			}
			if err := forward.Deaf(c.Bridge); err != nil {
				return err
			}
			// To ask for MACs from, on behalf of others.
			if err := h.AddAddr(bridge.Index, netip.PrefixFrom(link.Hop(false), 64)); err != nil {
				return err
			}
		}
		if err := forward.IPv6(c.Bridge); err != nil {
			return err
		}
	}
	if there {
		return nil
	}
	return h.AddAddr(bridge.Index, on)
}

// unbridge removes the bridge when nothing is on it any more.
func (c *config) unbridge(ctx context.Context, h *link.Handle) error {
	if c.Bridge == "" {
		return nil
	}
	unlock, err := attach.Lock(ctx, &c.Config, c.Bridge)
	if err != nil {
		return err
	}
	defer unlock()
	return h.DeleteBridge(c.Bridge)
}
