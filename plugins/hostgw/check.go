package main

import (
	"bytes"
	"net/netip"
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/link"
)

// check compares the host with what ADD has made there. The link has been
// checked by then.
func (c *config) check(req *cni.Request) error {
	prev, err := c.Previous()
	if err != nil {
		return err
	}
	if prev == nil {
		return invalid("prevResult: is missing; CHECK needs the result of the ADD")
	}
	return onHost(func(h *link.Handle) error {
		if !c.chained() {
			if err := c.checkHostEnd(h, req, prev); err != nil {
				return err
			}
		}
		if c.cluster() != "" {
			return nil // the agent looks after it
		}
		n, err := c.network()
		if err != nil {
			return err
		}
		if err := c.host(h).Check(n, attachmentOf(c.attachment(req))); err != nil {
			return differs("%w", err)
		}
		return nil
	})
}

// checkHostEnd looks at the host's end of the pair.
func (c *config) checkHostEnd(h *link.Handle, req *cni.Request, prev *current.Result) error {
	end, err := h.ByName(attach.PeerName(c.attachment(req)))
	if err != nil {
		return differs("the host's end of the pair: %w", err)
	}
	if c.Bridge != "" {
		return c.checkPort(h, end, prev)
	}
	if !bytes.Equal(end.MAC, link.HopMAC()) {
		return differs("the host's end of the pair: %q has MAC %s, not %s, by which the container knows it", end.Name, end.MAC, link.HopMAC())
	}
	routes, err := h.Routes(end.Index)
	if err != nil {
		return err
	}
	for _, addr := range ownAddresses(prev, req) {
		if !slices.ContainsFunc(routes, func(r link.Route) bool { return r.Dst == netip.PrefixFrom(addr.Addr(), addr.Addr().BitLen()) }) {
			return differs("the host has no route to %s by %q", addr.Addr(), end.Name)
		}
	}
	return nil
}

// checkPort looks at the bridge.
func (c *config) checkPort(h *link.Handle, end link.Link, prev *current.Result) error {
	bridge, err := h.ByName(c.Bridge)
	switch {
	case err != nil:
		return differs("bridge: %w", err)
	case bridge.Kind != "bridge" || !bridge.Up:
		return differs("bridge: %q is no bridge that is up", c.Bridge)
	case end.Master != bridge.Index:
		return differs("the host's end of the pair: %q is no port of bridge %q", end.Name, c.Bridge)
	case !end.Hairpin:
		return differs("the host's end of the pair: port %q of bridge %q does not send back what came from it (hairpin)", end.Name, c.Bridge)
	}
	have, err := h.Addrs(bridge.Index)
	if err != nil {
		return err
	}
	for _, ip := range prev.IPs {
		gw, ok := netip.AddrFromSlice(ip.Gateway)
		ones, _ := ip.Address.Mask.Size()
		want := netip.PrefixFrom(gw.Unmap(), ones)
		if ok && !slices.ContainsFunc(have, func(a link.Addr) bool { return a.Prefix == want }) {
			return differs("bridge: %q has no address %s, the gateway of its containers", c.Bridge, want)
		}
	}
	return nil
}

// ownAddresses are those of the attachment's interface in a result.
func ownAddresses(res *current.Result, req *cni.Request) (out []netip.Prefix) {
	for _, ip := range res.IPs {
		if i := ip.Interface; i != nil && (*i < 0 || *i >= len(res.Interfaces) || res.Interfaces[*i].Name != req.IfName) {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			ones, _ := ip.Address.Mask.Size()
			out = append(out, netip.PrefixFrom(a.Unmap(), ones))
		}
	}
	return out
}

func differs(format string, args ...any) error {
	return cni.Errorf(cni.CodeCheck, format, args...)
}
