package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/arp"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// answerTime is what fast conflict detection gives others to answer in, from
// the question on. Most of it passes while other things are done.
const answerTime = 500 * time.Microsecond

// Below these the kernel has no IPv4 and no IPv6 on a link (RFC 791, 8200).
const (
	minMTU  = 68
	minMTU6 = 1280
)

// dying bounds the wait for the kernel to let go of a MAC or an address whose
// former namespace has just died.
const dying = time.Second

// prepare brings the link up and asks the wire for its addresses, all that can
// be done before they are this attachment's for good.
func (a *adder) prepare(ctx context.Context, h *link.Handle) error {
	addrs := a.prefixes()
	// Before the link is up: afterwards a router advertisement may have won.
	if hasIPv6(addrs) {
		if mtu := a.mtu(); mtu < minMTU6 {
			return invalid("mtu: %d is less than the %d that IPv6 needs", mtu, minMTU6)
		}
		for _, kv := range [][2]string{{"disable_ipv6", "0"}, {"accept_ra", "0"}} {
			if err := netns.Sysctl("net/ipv6/conf/"+a.req.IfName+"/"+kv[0], kv[1]); err != nil {
				return err
			}
		}
	}
	if err := a.up(ctx, h); err != nil {
		return err
	}
	if a.kind.ParentMAC {
		l, err := h.ByIndex(a.index)
		if err != nil {
			return err
		}
		a.mac = l.MAC
	}
	fault.Point("attach.up")
	if !a.asks() {
		return nil
	}
	own := arp.Iface{Name: a.req.IfName, Index: a.index, MAC: a.mac}
	if !a.kind.Deaf {
		return a.ask(own)
	}
	if a.prober == nil {
		if err := a.hear(); err != nil {
			return err
		}
	}
	if err := a.prober.From(own); err != nil {
		return err
	}
	return a.probe()
}

// asks reports whether the wire can be asked, and told, of any address.
func (a *adder) asks() bool { return len(a.prefixes()) > 0 && !a.kind.noARP() && !a.quiet }

// hear listens on the parent, which is in the thread's namespace, for what does
// not come to the link. A probe under the parent's own MAC can leave from there
// too, and sooner: broadcasts of a link wait in its queue.
func (a *adder) hear() error {
	ifc := arp.Iface{Name: a.carrier.Name, Index: a.carrier.Index, MAC: a.carrier.MAC}
	if a.kind.sharesMAC() {
		return a.ask(ifc)
	}
	return a.listen(ifc)
}

// ask listens on an interface of the thread's namespace, and probes from it.
func (a *adder) ask(ifc arp.Iface) error {
	if err := a.listen(ifc); err != nil {
		return err
	}
	return a.probe()
}

func (a *adder) listen(ifc arp.Iface) (err error) {
	addrs := a.prefixes()
	bare := make([]netip.Addr, len(addrs))
	for i, p := range addrs {
		bare[i] = p.Addr()
	}
	a.prober, err = arp.Open(ifc, bare)
	return err
}

// probe asks once.
func (a *adder) probe() error {
	if a.ConflictDetection == DetectOff || !a.probed.IsZero() {
		return nil
	}
	a.probed = time.Now()
	return a.prober.Probe()
}

func (a *adder) closeProber() {
	if a.prober != nil {
		_ = a.prober.Close() // a descriptor; nothing is lost with it
	}
}

// configure gives the link what it carries, and tells the wire.
func (a *adder) configure(ctx context.Context, h *link.Handle) error {
	if len(a.prefixes()) == 0 {
		return nil
	}
	if err := a.judge(ctx); err != nil {
		return err
	}
	if a.asks() {
		a.prober.Assigned()
	}
	for _, p := range a.prefixes() {
		if err := a.addAddr(ctx, h, p); err != nil {
			return err
		}
	}
	fault.Point("attach.addressed")
	if err := a.knowHop(h); err != nil {
		return err
	}
	if err := a.addRoutes(h); err != nil {
		return err
	}
	if err := a.meetHost(h); err != nil {
		return err
	}
	fault.Point("attach.routed")
	if a.ConflictDetection == DetectFast {
		if err := conflictOf(a.prober.Conflicts(answerTime - time.Since(a.probed))); err != nil {
			return err
		}
	}
	if !a.asks() {
		return nil
	}
	return a.prober.Announce()
}

// judge is the verdict on what has been heard before this host answers for an
// address itself. Fast detection goes on listening.
func (a *adder) judge(ctx context.Context) error {
	switch a.ConflictDetection {
	case DetectThorough:
		return conflictOf(a.prober.Thorough(ctx))
	case DetectFast:
		return conflictOf(a.prober.Conflicts(0))
	}
	return nil
}

func (a *adder) up(ctx context.Context, h *link.Handle) error {
	err := persist(ctx, link.ErrMACInUse, func() error { return h.Up(a.index, alias(a.att), a.mac) })
	switch {
	case !errors.Is(err, link.ErrMACInUse):
		return err
	case a.plan.mac == nil && a.addresses != nil && a.ipamType == OwnIPAM:
		// It stands for the address, of which the ledger has lost sight.
		return a.macConflict()
	}
	return cni.Errorf(cni.CodeLink, "mac: %s: %w", a.mac, link.ErrMACInUse)
}

func (a *adder) addAddr(ctx context.Context, h *link.Handle, p netip.Prefix) error {
	err := persist(ctx, link.ErrAddrInUse, func() error { return h.AddAddr(a.index, p) })
	if errors.Is(err, link.ErrAddrInUse) {
		return &conflictError{[]ipam.Conflict{{Address: p.Addr(), Reason: fmt.Sprintf("another link of %q has it", a.carrier.Name)}}}
	}
	return err
}

// persist tries again for a while what the kernel refuses because of what may
// be dying.
func persist(ctx context.Context, cause error, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, dying)
	defer cancel()
	for {
		err := try()
		if !errors.Is(err, cause) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// macConflict is a conflict about the address that the MAC is made of.
func (a *adder) macConflict() error {
	reason := fmt.Sprintf("%s, which stands for it, is in use on %q", a.mac, a.carrier.Name)
	return &conflictError{[]ipam.Conflict{{Address: a.prefixes()[0].Addr(), Reason: reason}}}
}

func (a *adder) addRoutes(h *link.Handle) error {
	if a.kind.noARP() {
		if err := a.hostRoutes(h); err != nil {
			return err
		}
	}
	for _, r := range a.addresses.Routes {
		out, err := routeOf(r)
		if err != nil {
			return err
		}
		out.Onlink = a.routed()
		if !out.GW.IsValid() && !a.kind.Layer3 {
			out.GW = a.gateway(out.Dst.Addr().Is4())
		}
		if err := h.AddRoute(a.index, out); err != nil {
			return cni.Errorf(types.ErrInvalidNetworkConfig, "routes: %w", err)
		}
	}
	return nil
}

// hostRoutes makes of IPAM's routes such as a link has whose other end is the
// host's routing table: that of layer 3 needs no gateway, and where there is but
// one it is that, whatever IPAM says. All that no other interface of the
// container leads to goes there too.
func (a *adder) hostRoutes(h *link.Handle) error {
	var routes []*types.Route
	has := make(map[bool]bool) // IPv4, IPv6: a default route
	for _, r := range a.addresses.Routes {
		r := *r
		ones, bits := r.Dst.Mask.Size()
		switch {
		case a.kind.Layer3:
			r.GW = nil
		case a.routed():
			r.GW = link.Hop(bits == 32).AsSlice()
		}
		routes = append(routes, &r)
		if ones == 0 && (r.Table == nil || *r.Table == link.MainTable) {
			has[bits == 32] = true
		}
	}
	for _, p := range a.prefixes() {
		is4 := p.Addr().Is4()
		if has[is4] {
			continue
		}
		has[is4] = true
		index, err := h.DefaultRoute(is4)
		if err != nil {
			return err
		}
		if index == 0 || index == a.index {
			dst := net.IPNet{IP: make(net.IP, p.Addr().BitLen()/8), Mask: net.CIDRMask(0, p.Addr().BitLen())}
			r := &types.Route{Dst: dst}
			if gw := a.gateway(is4); a.kind.Pair != nil && gw.IsValid() {
				r.GW = gw.AsSlice()
			}
			routes = append(routes, r)
		}
	}
	a.addresses.Routes = routes
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
