package attach

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// Check compares what ADD returned with the container, the parent and the
// ledger. It lets pass what later plugins change without a word in the result:
// Multus and others the default route, sbr and vrf the table that routes are
// in, tuning the MTU, where the configuration asks for none.
func Check(ctx context.Context, req *cni.Request, conf *Config, kind Kind) error {
	p, err := newPlan(req, conf, kind)
	if err != nil {
		return err
	}
	prev, err := conf.Previous()
	if err != nil {
		return err
	}
	if prev == nil {
		return invalid("prevResult: is missing; CHECK needs the result of the ADD")
	}
	position, want := interfaceOf(prev, req)
	if want == nil {
		return differs("prevResult has no interface %q in %q", req.IfName, req.Netns)
	}
	if p.foreignType() {
		if err := p.foreignIPAM().Check(ctx); err != nil {
			return err
		}
	}
	ns, err := netns.Open(req.Netns)
	if err != nil {
		return cni.Errorf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: %w", err)
	}
	defer ns.Close()
	h, err := p.openParentSide(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	parent, err := p.checkParent(h)
	if err != nil {
		return err
	}
	if p.kind.Pair != nil {
		if parent, err = p.checkPeer(h); err != nil {
			return err
		}
	}
	addrs := addressesOf(prev, position)
	if err := ns.Do(func() error { return p.checkLink(parent, want, addrs, prev.Routes) }); err != nil {
		return err
	}
	if p.ipamType != OwnIPAM {
		return nil
	}
	bare := make([]netip.Addr, len(addrs))
	for i, a := range addrs {
		bare[i] = a.Addr()
	}
	return p.client.Check(ctx, p.att, bare)
}

func differs(format string, args ...any) error {
	return cni.Errorf(cni.CodeCheck, format, args...)
}

func (p *plan) foreignType() bool { return p.ipamType != "" && p.ipamType != OwnIPAM }

// checkParent finds what the link is to sit on.
func (p *plan) checkParent(h *link.Handle) (link.Link, error) {
	parent, err := p.findParent(h)
	if err != nil || p.VLAN == 0 {
		return parent, err
	}
	name, _ := link.VLANName(parent.Name, p.VLAN)
	l, err := h.ByName(name)
	if err != nil {
		return link.Link{}, differs("vlan: %w", err)
	}
	if l.VLAN != p.VLAN || l.Parent != parent.Index {
		return link.Link{}, differs("vlan: %q is not VLAN %d of %q", name, p.VLAN, parent.Name)
	}
	if !l.Up {
		return link.Link{}, differs("vlan: %q is down", name)
	}
	return l, nil
}

func (p *plan) checkLink(parent link.Link, want *current.Interface, addrs []netip.Prefix, routes []*types.Route) error {
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.ByName(p.req.IfName)
	if err != nil {
		return differs("interface %w", err)
	}
	// Later plugins may have changed the MTU, and the result says so from 1.1.0 on.
	mtu, mac := want.Mtu, want.Mac
	if mtu == 0 && (p.kind.Pair == nil || l.MTU > p.MTU) {
		mtu = p.MTU
	}
	if p.kind.sharesMAC() { // also when the parent gets another
		mac = parent.MAC.String()
	}
	switch diff := p.kind.Differs(l); {
	case l.Kind != p.kind.Name:
		return differs("interface %q is %s, not a %s", l.Name, kindOf(l), p.kind.Name)
	case diff != "":
		return differs("interface %q: %s", l.Name, diff)
	case !l.Up:
		return differs("interface %q is down", l.Name)
	case l.Parent != parent.Index:
		return differs("interface %q does not sit on %q", l.Name, parent.Name)
	case mac != "" && l.MAC.String() != mac:
		return differs("interface %q has MAC %s, not %s", l.Name, l.MAC, mac)
	case mtu != 0 && (l.MTU > mtu || l.MTU < mtu && p.MTU != 0):
		return differs("interface %q has MTU %d, not %d", l.Name, l.MTU, mtu)
	}
	if err := checkAddresses(h, l, addrs); err != nil {
		return err
	}
	return checkRoutes(h, l, routes)
}

func checkAddresses(h *link.Handle, l link.Link, want []netip.Prefix) error {
	have, err := h.Addrs(l.Index)
	if err != nil {
		return err
	}
	for _, w := range want {
		i := slices.IndexFunc(have, func(a link.Addr) bool { return a.Prefix == w })
		if i < 0 {
			return differs("interface %q has no address %s", l.Name, w)
		}
		if have[i].DADFailed {
			return differs("interface %q: address %s is a duplicate (DAD failed)", l.Name, w)
		}
	}
	return nil
}

func checkRoutes(h *link.Handle, l link.Link, want []*types.Route) error {
	have, err := h.RoutesOfTables(l.Index)
	if err != nil {
		return err
	}
	for _, r := range want {
		w, err := routeOf(r)
		if err != nil {
			return fmt.Errorf("prevResult.routes: %w", err)
		}
		if w.Dst.Bits() == 0 || w.Table != 0 {
			continue
		}
		if !slices.ContainsFunc(have, func(r link.Route) bool {
			return r.Dst == w.Dst && (!w.GW.IsValid() || r.GW == w.GW)
		}) {
			return differs("interface %q has no route %s", l.Name, w)
		}
	}
	return nil
}

// interfaceOf finds the attachment's interface in a result, and its position.
func interfaceOf(res *current.Result, req *cni.Request) (int, *current.Interface) {
	for i, x := range res.Interfaces {
		if x.Name == req.IfName && x.Sandbox == req.Netns {
			return i, x
		}
	}
	return -1, nil
}

// addressesOf are the addresses of a result that belong to the interface at
// position.
func addressesOf(res *current.Result, position int) []netip.Prefix {
	var out []netip.Prefix
	for _, ip := range res.IPs {
		if ip.Interface != nil && *ip.Interface != position {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			ones, _ := ip.Address.Mask.Size()
			out = append(out, netip.PrefixFrom(a.Unmap(), ones))
		}
	}
	return out
}
