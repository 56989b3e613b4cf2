package route

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// Watch implements Kernel. A link that goes down, and an address that goes, take
// IPv4 routes along of which nothing is told.
func (t *table) Watch(ctx context.Context, heard func(reconcile.News)) error {
	w, err := t.conn.Watch(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return err
	}
	heard(reconcile.Around)
	return w.Listen(ctx, func(m nlsock.Message) {
		if n := t.news(m); n != 0 {
			heard(n)
		}
	}, func() { heard(reconcile.Around) })
}

// news is what a message means; 0 is nothing. Interfaces of containers come and
// go all the time, with their link-local addresses.
func (t *table) news(m nlsock.Message) reconcile.News {
	switch m.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(m.Body) < unix.SizeofRtMsg {
			break
		}
		msg := nl.DeserializeRtMsg(m.Body)
		switch {
		case msg.Flags&unix.RTM_F_CLONED != 0, msg.Table == unix.RT_TABLE_LOCAL:
			return 0
		case msg.Protocol == t.protocol:
			return reconcile.Ours
		}
		return reconcile.Foreign
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if !t.names.KnowsLink(m) {
			return 0
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Body) < unix.SizeofIfAddrmsg {
			break
		}
		msg := nl.DeserializeIfAddrmsg(m.Body)
		if msg.Scope == unix.RT_SCOPE_LINK && !t.names.Knows(int(msg.Index), "") {
			return 0
		}
	}
	return reconcile.Around
}

// parse reads what RTM_NEWROUTE says (linux/rtnetlink.h), and whether the route
// is one of ours.
func (t *table) parse(payload []byte, family uint8) (r Route, ours bool, err error) {
	if len(payload) < unix.SizeofRtMsg {
		return r, false, nlsock.ErrCutOff
	}
	msg := nl.DeserializeRtMsg(payload)
	if msg.Family != family || msg.Protocol != t.protocol || msg.Flags&unix.RTM_F_CLONED != 0 {
		return r, false, nil
	}
	attrs, err := nlsock.Attributes(payload[unix.SizeofRtMsg:])
	if err != nil {
		return r, false, err
	}
	dst := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	id, dev := int(msg.Table), 0
	r.Onlink, r.odd.tos = msg.Flags&unix.RTNH_F_ONLINK != 0, msg.Tos
	for _, a := range attrs {
		switch a.Kind {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_GATEWAY:
			r.Via, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_PREFSRC:
			r.Src, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_OIF:
			dev = number(a.Value)
		case unix.RTA_PRIORITY:
			r.Metric = number(a.Value)
		case unix.RTA_TABLE:
			id = number(a.Value)
		case unix.RTA_METRICS:
			r.MTU, err = mtu(a.Value)
		case unix.RTA_MULTIPATH, rtaNhID:
			r.odd.many = true
		}
	}
	r.Dst = netip.PrefixFrom(dst, int(msg.Dst_len))
	switch {
	case err == nil && (!r.Dst.IsValid() || dst.Is4() != (family == unix.AF_INET)):
		return r, false, nlsock.ErrCutOff
	case err != nil || id != t.id:
		return r, false, err
	case msg.Type == unix.RTN_UNREACHABLE:
		r.Unreachable, dev = true, 0 // IPv6 hangs them on lo
	case msg.Type != unix.RTN_UNICAST:
		r.odd.kind = msg.Type
	}
	if family == unix.AF_INET6 && r.Metric == defaultMetric {
		r.Metric = 0
	}
	if r.odd.many {
		r.Via, dev = netip.Addr{}, 0 // of the first one, or of an object of its own
	}
	if dev != 0 {
		// An interface that is gone by now takes the route along.
		if r.Dev, err = t.names.Name(dev); errors.Is(err, nlsock.ErrNoInterface) {
			return r, false, nil
		}
	}
	return r, err == nil, err
}

const rtaNhID = 30 // RTA_NH_ID of linux/rtnetlink.h

func mtu(metrics []byte) (mtu int, err error) {
	attrs, err := nlsock.Attributes(metrics)
	for _, a := range attrs {
		if a.Kind == unix.RTAX_MTU {
			mtu = number(a.Value)
		}
	}
	return mtu, err
}

// number reads a u32.
func number(v []byte) int {
	if len(v) != 4 {
		return 0
	}
	return int(binary.NativeEndian.Uint32(v))
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
