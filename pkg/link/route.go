package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// MainTable is the table of routes that name none (RT_TABLE_MAIN).
const MainTable = unix.RT_TABLE_MAIN

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
	// Onlink: GW is on the link, whatever the addresses there say.
	Onlink bool
	// Protocol is a number that tells whose the route is; 0 is nobody's.
	Protocol uint8

	link int // index of the link it leaves by, when read
}

// Link is the index of the link that the route, as read, leaves by.
func (r Route) Link() int { return r.link }

func (r Route) String() string {
	if r.GW.IsValid() {
		return fmt.Sprintf("%s via %s", r.Dst, r.GW)
	}
	return r.Dst.String()
}

// AddRoute adds a route beside those of other networks of the container: a
// second default route does not replace the first.
func (h *Handle) AddRoute(index int, r Route) error {
	if err := h.setRoute(index, r, unix.NLM_F_CREATE); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add route %s: %w", r, err)
	}
	return nil
}

// ErrRouteExists is returned where there is a route to that destination.
var ErrRouteExists = errors.New("there is another route to it")

// InsertRoute adds a route to where none leads; else the error wraps
// ErrRouteExists.
func (h *Handle) InsertRoute(index int, r Route) error {
	err := h.setRoute(index, r, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	if errors.Is(err, unix.EEXIST) {
		err = ErrRouteExists
	}
	if err != nil {
		return fmt.Errorf("add route %s: %w", r, err)
	}
	return nil
}

// ReplaceRoute makes the route to Dst this one.
func (h *Handle) ReplaceRoute(index int, r Route) error {
	if err := h.setRoute(index, r, unix.NLM_F_CREATE|unix.NLM_F_REPLACE); err != nil {
		return fmt.Errorf("replace route %s: %w", r, err)
	}
	return nil
}

func (h *Handle) setRoute(index int, r Route, flags uint16) error {
	if r.GW.IsValid() && r.GW.Is4() != r.Dst.Addr().Is4() {
		return errors.New("the gateway is of another address family")
	}
	msg := nl.NewRtMsg()
	switch {
	case r.Scope >= 0:
		msg.Scope = uint8(r.Scope)
	case !r.GW.IsValid():
		msg.Scope = unix.RT_SCOPE_LINK
	}
	if r.Onlink {
		msg.Flags = unix.RTNH_F_ONLINK
	}
	if r.Protocol != 0 {
		msg.Protocol = r.Protocol
	}
	req := routeRequest(unix.RTM_NEWROUTE, index, r.Dst, msg)
	req.Flags |= flags
	if r.GW.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, r.GW.AsSlice()))
	}
	if r.Src.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, r.Src.AsSlice()))
	}
	if r.Priority > 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(r.Priority))))
	}
	if r.Table > 0 {
		msg.Table = unix.RT_TABLE_UNSPEC // it has one octet; the attribute has four
		req.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(r.Table))))
	}
	if r.MTU > 0 || r.AdvMSS > 0 {
		metrics := nl.NewRtAttr(unix.RTA_METRICS, nil)
		if r.MTU > 0 {
			metrics.AddRtAttr(unix.RTAX_MTU, nl.Uint32Attr(uint32(r.MTU)))
		}
		if r.AdvMSS > 0 {
			metrics.AddRtAttr(unix.RTAX_ADVMSS, nl.Uint32Attr(uint32(r.AdvMSS)))
		}
		req.AddData(metrics)
	}
	return h.conn.Execute(req)
}

// DeleteRoute removes the route to dst out of a link; none is success.
func (h *Handle) DeleteRoute(index int, dst netip.Prefix) error {
	return h.DeleteRouteBy(0, index, dst)
}

// DeleteRouteBy is DeleteRoute for one that has a protocol number; 0 is any.
func (h *Handle) DeleteRouteBy(protocol uint8, index int, dst netip.Prefix) error {
	msg := nl.NewRtDelMsg()
	msg.Protocol = protocol
	err := h.conn.Execute(routeRequest(unix.RTM_DELROUTE, index, dst, msg))
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete route %s: %w", dst, err)
	}
	return nil
}

func routeRequest(kind, index int, dst netip.Prefix, msg *nl.RtMsg) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, 0)
	msg.Family, msg.Dst_len = family(dst.Addr()), uint8(dst.Bits())
	req.AddData(msg)
	if dst.Bits() > 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_DST, dst.Masked().Addr().AsSlice()))
	}
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	return req
}

// Routes lists the routes out of a link, of the main table.
func (h *Handle) Routes(index int) ([]Route, error) {
	return h.routesThat(func(r *Route) bool { return r.link == index && r.Table == MainTable })
}

// RoutesOfTables lists the routes out of a link, whichever table they are in:
// those of a VRF, or for packets of some sources, have one of their own.
func (h *Handle) RoutesOfTables(index int) ([]Route, error) {
	return h.routesThat(func(r *Route) bool { return r.link == index })
}

// RoutesBy lists the routes of the main table that have a protocol number.
func (h *Handle) RoutesBy(protocol uint8) ([]Route, error) {
	return h.routesThat(func(r *Route) bool { return r.Protocol == protocol && r.Table == MainTable })
}

// routesThat lists the routes of both families that are as asked for.
func (h *Handle) routesThat(are func(*Route) bool) (out []Route, err error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		all, err := h.routes(family)
		if err != nil {
			return nil, err
		}
		for i := range all {
			if are(&all[i]) {
				out = append(out, all[i])
			}
		}
	}
	return out, nil
}

// routes lists the routes of one family, of all links and tables.
func (h *Handle) routes(family uint8) (out []Route, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: family}})
	payloads, err := h.conn.Dump(req)
	for i := 0; i < len(payloads) && err == nil; i++ {
		var found []Route
		found, err = parseRoute(payloads[i], family)
		out = append(out, found...)
	}
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return out, nil
}

// parseRoute reads what RTM_NEWROUTE says (linux/rtnetlink.h), one Route for
// each next hop; none for a route of another family, a copy in the cache, one
// that leads nowhere (unreachable, which IPv6 hangs on lo) or to the host itself.
func parseRoute(payload []byte, family uint8) ([]Route, error) {
	if len(payload) < unix.SizeofRtMsg {
		return nil, nlsock.ErrCutOff
	}
	msg := nl.DeserializeRtMsg(payload)
	attrs, err := nlsock.Attributes(payload[unix.SizeofRtMsg:])
	if err != nil {
		return nil, err
	}
	base := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		base = netip.IPv6Unspecified()
	}
	r := Route{Dst: netip.PrefixFrom(base, int(msg.Dst_len)), Table: int(msg.Table), Scope: int(msg.Scope), Protocol: msg.Protocol}
	r.Onlink = msg.Flags&unix.RTNH_F_ONLINK != 0
	var hops []byte
	for _, a := range attrs {
		switch a.Kind {
		case unix.RTA_DST:
			dst, _ := netip.AddrFromSlice(a.Value)
			r.Dst = netip.PrefixFrom(dst, int(msg.Dst_len))
		case unix.RTA_GATEWAY:
			r.GW, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_PREFSRC:
			r.Src, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_OIF:
			r.link = number(a.Value)
		case unix.RTA_PRIORITY:
			r.Priority = number(a.Value)
		case unix.RTA_TABLE:
			r.Table = number(a.Value)
		case unix.RTA_MULTIPATH:
			hops = a.Value
		}
	}
	switch {
	case msg.Family != family, msg.Flags&unix.RTM_F_CLONED != 0, msg.Type != unix.RTN_UNICAST:
		return nil, nil
	case hops == nil:
		return []Route{r}, nil
	}
	return r.split(hops)
}

// split reads a list of next hops, each with attributes of its own.
func (r Route) split(hops []byte) (out []Route, err error) {
	for len(hops) >= unix.SizeofRtNexthop {
		hop := nl.DeserializeRtNexthop(hops)
		size := int(hop.RtNexthop.Len)
		if size < unix.SizeofRtNexthop || size > len(hops) {
			return nil, nlsock.ErrCutOff
		}
		attrs, err := nlsock.Attributes(hops[unix.SizeofRtNexthop:size])
		if err != nil {
			return nil, err
		}
		one := r
		one.link = int(hop.Ifindex)
		for _, a := range attrs {
			if a.Kind == unix.RTA_GATEWAY {
				one.GW, _ = netip.AddrFromSlice(a.Value)
			}
		}
		out = append(out, one)
		hops = hops[min(len(hops), nlsock.Align(size)):]
	}
	return out, nil
}
