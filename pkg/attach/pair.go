package attach

import (
	"context"
	"net"
	"net/netip"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/link"
)

// Pair is what a kind brings whose link sits on no parent. Master then is what
// the host is known by, its addresses and its MTU, and need not be there.
type Pair struct {
	// Routed: the container is alone on the link, has each address as a network
	// of its own, and reaches everything by link.Hop. Else by the gateways of IPAM.
	Routed bool
	// Bridge, by name, has the host's end for a port; "" where there is none.
	Bridge string
	// Join completes the host's side when the addresses are known.
	Join func(context.Context, *link.Handle, Ends) error
	// Leave takes back what Join has made beside the pair, which is gone by then.
	Leave func(context.Context, *link.Handle, ipam.Attachment) error
}

// Ends are a pair, and what the container has.
type Ends struct {
	Attachment ipam.Attachment
	// Host is the end on the host, and Alias its mark.
	Host  link.Link
	Alias string
	// Master is zero where there is none.
	Master link.Link
	// Addresses as IPAM gave them.
	Addresses []ipam.Address
}

// PeerName is the name of the host's end of an attachment's pair.
func PeerName(att ipam.Attachment) string {
	return link.PeerName(att.Network + "/" + att.ContainerID + "/" + att.IfName)
}

// checkPair refuses what is about a parent that carries links.
func checkPair(conf *Config) error {
	switch {
	case conf.VLAN != 0:
		return invalid("vlan: %d: the link sits on no parent; name the sub-interface as master", conf.VLAN)
	case conf.LinkInContainer:
		return invalid("linkInContainer: one end of the link is always on the host")
	case conf.HostAccess:
		return invalid("hostAccess: the host reaches these containers without it; leave it out")
	}
	return nil
}

// routed: addresses and routes of the container are those of Pair.Routed.
func (p *plan) routed() bool { return p.kind.Pair != nil && p.kind.Pair.Routed }

// whole makes each address a network of its own, where it is routed to.
func (a *adder) whole() {
	a.given = nil
	for _, ip := range a.addresses.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		gw, _ := netip.AddrFromSlice(ip.Gateway)
		ones, _ := ip.Address.Mask.Size()
		a.given = append(a.given, ipam.Address{Prefix: netip.PrefixFrom(addr.Unmap(), ones), Gateway: gw.Unmap()})
		if a.routed() {
			bits := addr.Unmap().BitLen()
			ip.Address.Mask = net.CIDRMask(bits, bits)
			ip.Gateway = link.Hop(addr.Unmap().Is4()).AsSlice()
		}
	}
}

// join completes the host's side, while the container's is being made.
func (a *adder) join(ctx context.Context) error {
	if a.kind.Pair == nil {
		return nil
	}
	a.joined = true
	l, err := a.parentSide.ByName(PeerName(a.att))
	if err != nil {
		return err
	}
	a.peer = l
	err = a.kind.Pair.Join(ctx, a.parentSide, Ends{
		Attachment: a.att, Host: l, Alias: alias(a.att), Master: a.parent, Addresses: a.given,
	})
	fault.Point("attach.joined")
	return err
}

// leave takes back what join has made beside the pair.
func (a *adder) leave(ctx context.Context) error {
	if !a.joined {
		return nil
	}
	return a.kind.Pair.Leave(ctx, a.parentSide, a.att)
}

// knowHop has the container know its next hop without asking, called inside it.
// The route to it is for others, who make routes by it that do not say onlink:
// sbr, or Multus where another network has the default route.
func (a *adder) knowHop(h *link.Handle) error {
	if !a.routed() {
		return nil
	}
	for _, p := range a.prefixes() {
		hop := link.Hop(p.Addr().Is4())
		if err := h.SetNeighbour(a.index, hop, link.HopMAC()); err != nil {
			return err
		}
		if hop.Is6() { // is on any link
			continue
		}
		if err := h.AddRoute(a.index, link.Route{Dst: netip.PrefixFrom(hop, hop.BitLen()), Scope: -1}); err != nil {
			return err
		}
	}
	return nil
}

// deletePeer removes the host's end of a pair, and so the link, wherever that
// is.
func deletePeer(kind Kind, att ipam.Attachment) error {
	if kind.Pair == nil {
		return nil
	}
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	return h.DeletePeer(PeerName(att), alias(att))
}

// checkPeer finds the host's end of a pair.
func (p *plan) checkPeer(h *link.Handle) (link.Link, error) {
	l, err := h.ByName(PeerName(p.att))
	switch {
	case err != nil:
		return l, differs("the host's end of the pair: %w", err)
	case l.Alias != alias(p.att):
		return l, differs("the host's end of the pair: %q has alias %q, not %q", l.Name, l.Alias, alias(p.att))
	case !l.Up:
		return l, differs("the host's end of the pair: %q is down", l.Name)
	}
	return l, nil
}
