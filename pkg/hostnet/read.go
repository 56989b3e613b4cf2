package hostnet

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// Read reads the State; reach are addresses to look up in the routing table.
func (h *Host) Read(ctx context.Context, reach []netip.Addr) (s State, err error) {
	err = h.with(ctx, "read the host's network", func() (err error) {
		h.names.Forget()
		if s.Links, err = h.links(); err != nil {
			return err
		}
		if s.Default, err = h.defaults(); err != nil {
			return err
		}
		s.Reach = make(map[netip.Addr]string)
		for _, a := range reach {
			if dev, err := h.route(a); err != nil {
				return err
			} else if dev != "" {
				s.Reach[a] = dev
			}
		}
		return nil
	})
	return s, err
}

func (h *Host) links() ([]Link, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	payloads, err := h.conn.Dump(req)
	if err != nil {
		return nil, err
	}
	byIndex := make(map[int]*Link)
	for _, p := range payloads {
		l, index, err := parseLink(p)
		if err != nil {
			return nil, err
		}
		byIndex[index] = &l
	}
	req = nl.NewNetlinkRequest(unix.RTM_GETADDR, 0)
	req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
	if payloads, err = h.conn.Dump(req); err != nil {
		return nil, err
	}
	for _, p := range payloads {
		a, index, usable, err := parseAddr(p)
		if err != nil {
			return nil, err
		}
		if l := byIndex[index]; l != nil && usable {
			l.Addrs = append(l.Addrs, a)
		}
	}
	var out []Link
	for _, l := range byIndex {
		if len(l.Addrs) > 0 {
			out = append(out, *l)
		}
	}
	slices.SortFunc(out, func(a, b Link) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// parseLink reads of RTM_NEWLINK (linux/if_link.h) what matters here.
func parseLink(payload []byte) (l Link, index int, err error) {
	if len(payload) < unix.SizeofIfInfomsg {
		return l, 0, nlsock.ErrCutOff
	}
	msg := nl.DeserializeIfInfomsg(payload)
	attrs, err := nlsock.Attributes(payload[unix.SizeofIfInfomsg:])
	for _, a := range attrs {
		switch a.Kind {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(a.Value)
		case unix.IFLA_MTU:
			l.MTU = number(a.Value)
		}
	}
	const alone = unix.IFF_LOOPBACK | unix.IFF_POINTOPOINT | unix.IFF_NOARP
	l.Up = msg.Flags&unix.IFF_UP != 0
	l.Broadcast = msg.Flags&unix.IFF_BROADCAST != 0 && msg.Flags&alone == 0
	return l, int(msg.Index), err
}

// parseAddr reads what RTM_NEWADDR says, and whether the address is one that the
// host is reached by: of global scope, and nobody else's.
func parseAddr(payload []byte) (addr Addr, index int, usable bool, err error) {
	a, err := nlsock.ParseAddress(payload)
	addr = Addr{Prefix: a.Prefix, Passing: a.Passing()}
	usable = addr.IsValid() && a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&unix.IFA_F_DADFAILED == 0 && !addr.Addr().IsLoopback()
	return addr, a.Index, usable, err
}

// defaults finds the interfaces of the default routes, one of each family, of
// the lowest metric. The kernel cannot be asked for them alone.
func (h *Host) defaults() (out []string, err error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
		req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: family}})
		req.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(unix.RT_TABLE_MAIN)))
		payloads, err := h.conn.Dump(req)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
			continue // there is no such table yet, or no IPv6
		case err != nil:
			return nil, err
		}
		best, found := route{}, false
		for _, p := range payloads {
			r, err := parseRoute(p)
			if err != nil {
				return nil, err
			}
			if r.bits == 0 && r.dev != 0 && r.unicast && (!found || r.metric < best.metric) {
				best, found = r, true
			}
		}
		name, err := h.name(best.dev)
		if err != nil {
			return nil, err
		}
		if name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out, nil
}

// route looks up by which interface an address is reached; "" if by none.
func (h *Host) route(a netip.Addr) (string, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: family(a), Dst_len: uint8(a.BitLen())}})
	req.AddData(nl.NewRtAttr(unix.RTA_DST, a.AsSlice()))
	payload, err := h.conn.Get(req)
	var no unix.Errno
	if errors.As(err, &no) {
		return "", nil // unreachable, prohibited, no family
	}
	if err != nil {
		return "", err
	}
	r, err := parseRoute(payload)
	if err != nil || !r.unicast {
		return "", err
	}
	return h.name(r.dev)
}

func (h *Host) name(index int) (string, error) {
	if index == 0 {
		return "", nil
	}
	name, err := h.names.Name(index)
	if errors.Is(err, nlsock.ErrNoInterface) {
		return "", nil // gone by now
	}
	return name, err
}

// route is what matters of one.
type route struct {
	bits, dev, metric int
	unicast           bool
}

// parseRoute reads RTM_NEWROUTE (linux/rtnetlink.h). Of several next hops it
// takes the first.
func parseRoute(payload []byte) (r route, err error) {
	if len(payload) < unix.SizeofRtMsg {
		return r, nlsock.ErrCutOff
	}
	msg := nl.DeserializeRtMsg(payload)
	r.bits, r.unicast = int(msg.Dst_len), msg.Type == unix.RTN_UNICAST
	attrs, err := nlsock.Attributes(payload[unix.SizeofRtMsg:])
	for _, a := range attrs {
		switch a.Kind {
		case unix.RTA_OIF:
			r.dev = number(a.Value)
		case unix.RTA_PRIORITY:
			r.metric = number(a.Value)
		case unix.RTA_MULTIPATH:
			if len(a.Value) >= unix.SizeofRtNexthop {
				r.dev = number(a.Value[4:8])
			}
		}
	}
	return r, err
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
