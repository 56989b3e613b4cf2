package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddAddr gives a link an address with the length of its subnet; one that it
// has is success. IPv6 addresses are added without duplicate address
// detection: address management owns them, and has asked on the wire.
func (h *Handle) AddAddr(index int, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.nl.AddrAdd(byIndex(index), a); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s: %w", p, err)
	}
	return nil
}

// Route is a route out of a link.
type Route struct {
	Dst netip.Prefix
	// GW is the next hop; the zero value means that Dst is on the link.
	GW netip.Addr
	// Src is the preferred source; the zero value leaves it to the kernel.
	Src      netip.Addr
	MTU      int
	AdvMSS   int
	Priority int
	Table    int
	// Scope as in linux/rtnetlink.h; -1 for what fits GW.
	Scope int
}

// AddRoute adds a route beside those of other networks of the container: a
// second default route does not replace the first.
func (h *Handle) AddRoute(index int, r Route) error {
	if err := h.nl.RouteAddEcmp(r.netlink(index)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add route %s: %w", r, err)
	}
	return nil
}

// ReplaceRoute makes the route to Dst this one.
func (h *Handle) ReplaceRoute(index int, r Route) error {
	if err := h.nl.RouteReplace(r.netlink(index)); err != nil {
		return fmt.Errorf("replace route %s: %w", r, err)
	}
	return nil
}

// DeleteRoute removes the route to dst out of a link; none is success.
func (h *Handle) DeleteRoute(index int, dst netip.Prefix) error {
	err := h.nl.RouteDel(&netlink.Route{LinkIndex: index, Dst: ipNet(dst)})
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete route %s: %w", dst, err)
	}
	return nil
}

// Routes lists the routes out of a link, of all tables that the kernel shows
// without being asked (main).
func (h *Handle) Routes(index int) ([]Route, error) {
	list, err := h.nl.RouteList(byIndex(index), netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes of link %d: %w", index, err)
	}
	out := make([]Route, 0, len(list))
	for _, r := range list {
		dst, ok := fromIPNet(r.Dst)
		if !ok {
			if r.Family == unix.AF_INET6 {
				dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			} else {
				dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			}
		}
		out = append(out, Route{Dst: dst, GW: fromIP(r.Gw), Src: fromIP(r.Src), Priority: r.Priority, Table: r.Table, Scope: int(r.Scope)})
	}
	return out, nil
}

func (r Route) String() string {
	if r.GW.IsValid() {
		return fmt.Sprintf("%s via %s", r.Dst, r.GW)
	}
	return r.Dst.String()
}

func (r Route) netlink(index int) *netlink.Route {
	out := &netlink.Route{
		LinkIndex: index, Dst: ipNet(r.Dst), MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table,
	}
	if r.Src.IsValid() {
		out.Src = r.Src.AsSlice()
	}
	switch {
	case r.GW.IsValid():
		out.Gw = r.GW.AsSlice()
	default:
		out.Scope = netlink.SCOPE_LINK
	}
	if r.Scope >= 0 {
		out.Scope = netlink.Scope(r.Scope)
	}
	return out
}

// SetNeighbour makes the neighbour entry of addr on a link permanent.
func (h *Handle) SetNeighbour(index int, addr netip.Addr, mac net.HardwareAddr) error {
	if err := h.nl.NeighSet(neigh(index, addr, mac)); err != nil {
		return fmt.Errorf("set neighbour %s lladdr %s: %w", addr, mac, err)
	}
	return nil
}

// DeleteNeighbour removes the entry of addr on a link; none is success.
func (h *Handle) DeleteNeighbour(index int, addr netip.Addr) error {
	err := h.nl.NeighDel(neigh(index, addr, nil))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete neighbour %s: %w", addr, err)
	}
	return nil
}

func neigh(index int, addr netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	return &netlink.Neigh{LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac}
}

func byIndex(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func fromIPNet(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}

func fromIP(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
