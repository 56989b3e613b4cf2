package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/arp"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// answerTime is what fast conflict detection waits for answers after all
// else has been done. They have had the time of that too: on a LAN they are
// there already.
const answerTime = time.Millisecond

// macWait bounds the wait for the kernel to let go of a MAC whose former
// namespace has just died.
const macWait = time.Second

// configure brings the link up and gives it what it carries, in one visit to
// the container's namespace.
func (a *adder) configure(ctx context.Context) error {
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	addrs := a.prefixes()
	// Before the link is up: afterwards a router advertisement may have won.
	if hasIPv6(addrs) {
		for _, kv := range [][2]string{{"disable_ipv6", "0"}, {"accept_ra", "0"}} {
			if err := netns.Sysctl("net/ipv6/conf/"+a.req.IfName+"/"+kv[0], kv[1]); err != nil {
				return err
			}
		}
	}
	if a.kind.ParentMAC {
		if err := a.adoptMAC(h); err != nil {
			return err
		}
	}
	if err := a.up(ctx, h); err != nil {
		return err
	}
	if len(addrs) == 0 {
		return nil
	}
	bare := make([]netip.Addr, len(addrs))
	for i, p := range addrs {
		bare[i] = p.Addr()
	}
	prober, err := arp.Open(arp.Iface{Name: a.req.IfName, Index: a.index, MAC: a.mac}, bare)
	if err != nil {
		return err
	}
	defer prober.Close()
	if a.ConflictDetection != DetectOff {
		if err := prober.Probe(); err != nil {
			return err
		}
	}
	if a.ConflictDetection == DetectThorough {
		if err := conflictOf(prober.Thorough(ctx)); err != nil {
			return err
		}
	}
	for _, p := range addrs {
		if err := h.AddAddr(a.index, p); err != nil {
			return err
		}
	}
	if err := a.addRoutes(h); err != nil {
		return err
	}
	if err := a.meetHost(h); err != nil {
		return err
	}
	if a.ConflictDetection == DetectFast {
		if err := conflictOf(prober.Conflicts(answerTime)); err != nil {
			return err
		}
	}
	return prober.Announce()
}

// adoptMAC settles the MAC of a link that takes its parent's: what the user
// asked for instead is set on both, else the link's own is read.
func (a *adder) adoptMAC(h *link.Handle) error {
	if a.plan.mac != nil {
		if err := h.SetMAC(a.index, a.plan.mac); err != nil {
			return err
		}
	}
	l, err := h.ByIndex(a.index)
	a.mac = l.MAC
	return err
}

func (a *adder) up(ctx context.Context, h *link.Handle) error {
	ctx, cancel := context.WithTimeout(ctx, macWait)
	defer cancel()
	for {
		err := h.Up(a.index, alias(a.att))
		if !errors.Is(err, link.ErrMACInUse) {
			return err
		}
		select {
		case <-ctx.Done():
			return cni.Errorf(cni.CodeLink, "mac: %s: %w", a.mac, link.ErrMACInUse)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (a *adder) addRoutes(h *link.Handle) error {
	for _, r := range a.addresses.Routes {
		out, err := routeOf(r)
		if err != nil {
			return err
		}
		if !out.GW.IsValid() {
			out.GW = a.gateway(out.Dst.Addr().Is4())
		}
		if err := h.AddRoute(a.index, out); err != nil {
			return cni.Errorf(types.ErrInvalidNetworkConfig, "routes: %w", err)
		}
	}
	return nil
}

func routeOf(r *types.Route) (link.Route, error) {
	dst, ok := netip.AddrFromSlice(r.Dst.IP)
	if !ok {
		return link.Route{}, fmt.Errorf("route %v has no destination", r)
	}
	ones, _ := r.Dst.Mask.Size()
	out := link.Route{
		Dst: netip.PrefixFrom(dst.Unmap(), ones),
		MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Scope: -1,
	}
	if gw, ok := netip.AddrFromSlice(r.GW); ok {
		out.GW = gw.Unmap()
	}
	if r.Table != nil {
		out.Table = *r.Table
	}
	if r.Scope != nil {
		out.Scope = *r.Scope
	}
	return out, nil
}

// gateway is the first one of the family that IPAM told.
func (a *adder) gateway(is4 bool) netip.Addr {
	for _, ip := range a.addresses.IPs {
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok && gw.Unmap().Is4() == is4 {
			return gw.Unmap()
		}
	}
	return netip.Addr{}
}

// prefixes are the addresses to configure.
func (a *adder) prefixes() []netip.Prefix {
	if a.addresses == nil {
		return nil
	}
	out := make([]netip.Prefix, 0, len(a.addresses.IPs))
	for _, ip := range a.addresses.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			ones, _ := ip.Address.Mask.Size()
			out = append(out, netip.PrefixFrom(addr.Unmap(), ones))
		}
	}
	return out
}

func hasIPv6(ps []netip.Prefix) bool {
	for _, p := range ps {
		if p.Addr().Is6() {
			return true
		}
	}
	return false
}

func conflictOf(found []arp.Conflict, err error) error {
	if err != nil || len(found) == 0 {
		return err
	}
	e := &conflictError{}
	for _, c := range found {
		e.conflicts = append(e.conflicts, ipam.Conflict{Address: c.Addr, Reason: fmt.Sprintf("%s answers for it", c.MAC)})
	}
	return e
}

func deleteLink(index int) error {
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Delete(index)
}
