package hostnet

import (
	"context"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// Watch calls heard once, and whenever the State may be another one, until ctx
// ends. Own are the protocol numbers of routes that decide nothing here.
func (h *Host) Watch(ctx context.Context, own []uint8, heard func()) error {
	fd := -1
	if h.ns != nil {
		fd = h.ns.Fd()
	}
	w, err := nlsock.Watch(fd, unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return err
	}
	heard()
	return w.Listen(ctx, func(m nlsock.Message) {
		if concerns(m, own) {
			heard()
		}
	}, heard)
}

// concerns reports whether a message may be about the State. Containers come and
// go, with routes to single addresses, and peers with routes of ours.
func concerns(m nlsock.Message, own []uint8) bool {
	switch m.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(m.Body) < unix.SizeofRtMsg {
			return true
		}
		msg := nl.DeserializeRtMsg(m.Body)
		width := uint8(32)
		if msg.Family == unix.AF_INET6 {
			width = 128
		}
		for _, p := range own {
			if msg.Protocol == p {
				return false
			}
		}
		return msg.Flags&unix.RTM_F_CLONED == 0 && msg.Table != unix.RT_TABLE_LOCAL && msg.Dst_len < width
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Body) < unix.SizeofIfAddrmsg {
			return true
		}
		return nl.DeserializeIfAddrmsg(m.Body).Scope == unix.RT_SCOPE_UNIVERSE
	}
	return true
}
