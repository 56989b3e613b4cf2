package main

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/forward"
	"github.com/underlay-cni/underlay/pkg/link"
)

// load is the plugin's attach.Load.
func load(stdin []byte) (*attach.Config, attach.Kind, error) {
	c, err := parse(stdin)
	return &c.Config, c.kind(), err
}

// kind is what is special to a pair of this configuration.
func (c *config) kind() attach.Kind {
	pair := &attach.Pair{Routed: c.Bridge == "", Bridge: c.Bridge, Join: c.join, Leave: c.leave}
	var veth link.Veth
	if pair.Routed {
		veth.MAC = link.HopMAC()
	}
	return attach.Kind{
		Name:       "veth",
		Create:     veth.Create,
		Differs:    func(link.Link) string { return "" },
		Pair:       pair,
		Network:    c.cluster(),
		Masquerade: c.cluster() != "" && c.IPMasq,
	}
}

// join completes the host's side of a pair.
func (c *config) join(ctx context.Context, h *link.Handle, e attach.Ends) error {
	if err := c.forwards(e); err != nil {
		return err
	}
	if c.Bridge != "" {
		if err := c.plug(ctx, h, e); err != nil {
			return err
		}
	} else if err := c.route(h, e); err != nil {
		return err
	}
	addrs := make([]netip.Prefix, len(e.Addresses))
	for i, a := range e.Addresses {
		addrs[i] = a.Prefix
	}
	return c.joinNetwork(ctx, h, e.Attachment, addrs)
}

// route has the host reach the container by its end of the pair.
func (c *config) route(h *link.Handle, e attach.Ends) error {
	if err := h.DressPeer(e.Host.Index, e.Alias); err != nil {
		return err
	}
	own, err := h.Addrs(e.Master.Index)
	if err != nil {
		return err
	}
	for _, a := range e.Addresses {
		addr := a.Prefix.Addr()
		if addr.Is6() {
			// To ask for the container's MAC from. It is in no one's way: nobody else
			// is on this link.
			if err := h.AddAddr(e.Host.Index, netip.PrefixFrom(link.Hop(false), 64)); err != nil {
				return err
			}
		}
		for _, r := range hostRoutes(addr, own) {
			if err := h.ReplaceRoute(e.Host.Index, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// leastPreferred is the metric of routes that others of the host may precede.
const leastPreferred = 1 << 20

// hostRoutes are the host's routes to a container, which knows the host by one
// of its own addresses. The kernel deletes an IPv4 route with the address that
// it names as the source (of an IPv6 route it forgets the source), so a second
// one stands behind it that names none.
func hostRoutes(addr netip.Addr, own []link.Addr) []link.Route {
	r := link.Route{Dst: netip.PrefixFrom(addr, addr.BitLen()), Scope: -1}
	host, ok := link.HostAddr(own, addr)
	if !ok {
		return []link.Route{r}
	}
	named, behind := r, r
	named.Src = host
	behind.Priority = leastPreferred
	if addr.Is6() {
		return []link.Route{named}
	}
	return []link.Route{named, behind}
}

// forwards has the host forward for the pair, and for what comes in by master.
func (c *config) forwards(e attach.Ends) error {
	names := []string{e.Host.Name}
	if e.Master.Name != "" {
		names = append(names, e.Master.Name)
	}
	if err := forward.Deaf(e.Host.Name); err != nil {
		return err
	}
	is4 := func(a ipam.Address) bool { return a.Prefix.Addr().Is4() }
	is6 := func(a ipam.Address) bool { return a.Prefix.Addr().Is6() }
	if slices.ContainsFunc(e.Addresses, is4) {
		if err := errors.Join(forward.Strict(e.Host.Name), forward.IPv4(names...)); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(e.Addresses, is6) {
		return nil
	}
	return errors.Join(forward.HaveIPv6(e.Host.Name), forward.IPv6(names...))
}

// leave takes back what join has made beside the pair.
func (c *config) leave(ctx context.Context, h *link.Handle, att ipam.Attachment) error {
	return errors.Join(c.leaveNetwork(ctx, h, att), c.unbridge(ctx, h))
}
