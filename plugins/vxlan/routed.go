package main

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// addRouted puts the attachment on record, which has the agent keep what leads
// to the network's peers, and fits the interface of who came before in the chain
// to the device that they are reached through.
func (c *config) addRouted(ctx context.Context, req *cni.Request) (prev *current.Result, err error) {
	prev, err = c.Previous()
	if err != nil {
		return nil, err
	}
	if prev == nil {
		return nil, invalid("prevResult: is missing: in mode routed vxlan stands behind the plugin that makes the interface; put hostgw, bridge or ptp before it")
	}
	if err := c.look(prev, req); err != nil {
		return nil, err
	}
	undo, err := c.allocate(ctx, req, c.uses())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, undo(context.WithoutCancel(ctx)))
		}
	}()
	device, err := c.device()
	if err != nil {
		return nil, err
	}
	mtu := device.MTU
	if c.MTU != 0 {
		mtu = c.MTU
	}
	return prev, c.lower(prev, req, mtu)
}

// look refuses an interface whose packets no route of the host's could lead
// through VXLAN.
func (c *config) look(prev *current.Result, req *cni.Request) error {
	if own(prev, req) == nil {
		return invalid("prevResult: has no interface %q in %q; put the plugin that makes it before vxlan", req.IfName, req.Netns)
	}
	return inside(req, func(h *link.Handle) error {
		l, err := h.ByName(req.IfName)
		switch {
		case err != nil:
			return cni.Errorf(cni.CodeLink, "prevResult: %w", err)
		case l.Kind == "ipvlan" && l.Mode != "l2":
			return invalid("mode: routed: %q is an ipvlan link in mode %s, whose packets leave by its parent alone, whatever routes the host has; put hostgw, bridge or ptp before vxlan", l.Name, l.Mode)
		case slices.Contains([]string{"ipvlan", "macvlan", "ipvtap", "macvtap"}, l.Kind):
			return invalid("mode: routed: %q is a %s link, whose packets do not come by the host's routes; put hostgw, bridge or ptp before vxlan", l.Name, l.Kind)
		}
		return nil
	})
}

// own is the attachment's interface in a result.
func own(prev *current.Result, req *cni.Request) *current.Interface {
	for _, i := range prev.Interfaces {
		if i.Name == req.IfName && i.Sandbox != "" {
			return i
		}
	}
	return nil
}

// device is that of the network, which the agent makes, as the configuration has
// to agree with it.
func (c *config) device() (vxlan.Device, error) {
	d, found, err := vxlan.FindNetwork(nil, c.network())
	switch {
	case err != nil:
		return d, err
	case !found:
		return d, cni.Errorf(types.ErrTryAgainLater, "network: the VXLAN device of %q is not there, which underlayd makes: see that it runs, has the network among its networks, and that the network's backend is vxlan", c.network())
	case c.VNI != 0 && c.VNI != d.VNI:
		return d, invalid("vni: %d, and network %q has %d in the registry; leave vni out", c.VNI, c.network(), d.VNI)
	case c.Port != 0 && c.Port != d.Port:
		return d, invalid("port: %d, and network %q has %d in the registry; leave port out", c.Port, c.network(), d.Port)
	case c.MTU > d.MTU:
		return d, invalid("mtu: %d is more than the %d of %q, by which the peers of network %q are reached", c.MTU, d.MTU, vxlan.Name(d.VNI), c.network())
	}
	return d, nil
}

// lower brings the MTU of the interface, of its other end if that is on the host,
// and of routes that have one of their own down to what VXLAN leaves. prev is the
// result then.
func (c *config) lower(prev *current.Result, req *cni.Request, mtu int) error {
	if mtu < minMTU6 && slices.ContainsFunc(prev.IPs, func(ip *current.IPConfig) bool { return ip.Address.IP.To4() == nil }) {
		return invalid("mtu: %d, which is what VXLAN leaves, is less than the %d that IPv6 needs", mtu, minMTU6)
	}
	var was, peer link.Link
	err := inside(req, func(h *link.Handle) (err error) {
		if was, err = h.ByName(req.IfName); err != nil {
			return err
		}
		if err := lowerTo(h, was, mtu); err != nil {
			return err
		}
		return lowerRoutes(h, was.Index, prev.Routes, mtu)
	})
	if err != nil {
		return cni.Errorf(cni.CodeLink, "%w", err)
	}
	fault.Point("vxlan.lowered")
	if was.Kind == "veth" {
		err = onHost(func(h *link.Handle) (err error) {
			// That the one is the other's end is known by both.
			if peer, err = h.ByIndex(was.Parent); errors.Is(err, link.ErrNotFound) || err == nil && (peer.Kind != "veth" || peer.Parent != was.Index) {
				peer = link.Link{}
				return nil
			}
			if err != nil {
				return err
			}
			return lowerTo(h, peer, mtu)
		})
	}
	if err != nil {
		raise := inside(req, func(h *link.Handle) error { return h.SetMTU(was.Index, was.MTU) })
		return errors.Join(cni.Errorf(cni.CodeLink, "%w", err), raise)
	}
	for _, i := range prev.Interfaces {
		switch {
		case i == own(prev, req):
			i.Mtu = min(was.MTU, mtu)
		case i.Sandbox == "" && i.Name == peer.Name && peer.Name != "":
			i.Mtu = min(peer.MTU, mtu)
		}
	}
	for _, r := range prev.Routes {
		if r.MTU > mtu {
			r.MTU = mtu
		}
	}
	return nil
}

func lowerTo(h *link.Handle, l link.Link, mtu int) error {
	if l.MTU <= mtu {
		return nil
	}
	return h.SetMTU(l.Index, mtu)
}

// lowerRoutes: the kernel takes the MTU of a route for that of its link, also
// where it is larger.
func lowerRoutes(h *link.Handle, index int, routes []*types.Route, mtu int) error {
	for _, r := range routes {
		dst, ok := netip.AddrFromSlice(r.Dst.IP)
		if r.MTU <= mtu || !ok {
			continue
		}
		ones, _ := r.Dst.Mask.Size()
		want := link.Route{Dst: netip.PrefixFrom(dst.Unmap(), ones), MTU: mtu, AdvMSS: r.AdvMSS, Priority: r.Priority, Scope: -1}
		if gw, ok := netip.AddrFromSlice(r.GW); ok {
			want.GW, want.Onlink = gw.Unmap(), true
		}
		if r.Table != nil {
			want.Table = *r.Table
		}
		if r.Scope != nil {
			want.Scope = *r.Scope
		}
		if err := h.ReplaceRoute(index, want); err != nil {
			return err
		}
	}
	return nil
}

// checkFits compares the interface with the network's device.
func (c *config) checkFits(req *cni.Request) error {
	device, err := c.device()
	if err != nil {
		return err
	}
	return inside(req, func(h *link.Handle) error {
		l, err := h.ByName(req.IfName)
		switch {
		case err != nil:
			return differs("interface %w", err)
		case l.MTU > device.MTU:
			return differs("interface %q has MTU %d, and the peers of network %q are reached with %d", l.Name, l.MTU, c.network(), device.MTU)
		case c.MTU != 0 && l.MTU > c.MTU:
			return differs("interface %q has MTU %d, not %d", l.Name, l.MTU, c.MTU)
		}
		return nil
	})
}

// inside opens a handle in the container.
func inside(req *cni.Request, f func(*link.Handle) error) error {
	ns, err := netns.Open(req.Netns)
	if err != nil {
		return cni.Errorf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: %w", err)
	}
	defer ns.Close()
	h, err := link.OpenAt(ns.Fd())
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}
