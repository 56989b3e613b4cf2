package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// Addr is an address of a link.
type Addr struct {
	netip.Prefix
	// DADFailed: IPv6 only, the kernel found that somebody else has it.
	DADFailed bool
	// Passing: it is temporary, or on its way out; others should not count on it.
	Passing bool
}

// ErrAddrInUse is returned when another ipvlan link of the same parent has the
// address.
var ErrAddrInUse = errors.New("another ipvlan link on the parent has it")

// AddAddr gives a link an address with the length of its subnet; one that it
// has is success. IPv6 addresses are added without duplicate address
// detection: address management owns them, and has asked on the wire. The
// error wraps ErrAddrInUse where that is the reason.
func (h *Handle) AddAddr(index int, p netip.Prefix) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg := nl.NewIfAddrmsg(int(family(p.Addr())))
	msg.Index, msg.Prefixlen = uint32(index), uint8(p.Bits())
	if p.Addr().Is6() {
		msg.Flags = unix.IFA_F_NODAD
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, p.Addr().AsSlice()))
	if b, ok := broadcast(p); ok {
		req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, b))
	}
	err := h.conn.Execute(req)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		err = ErrAddrInUse
	case errors.Is(err, unix.EEXIST):
		err = nil
	}
	if err != nil {
		return fmt.Errorf("add address %s: %w", p, err)
	}
	return nil
}

// DeleteAddr takes an address from a link; none is success.
func (h *Handle) DeleteAddr(index int, p netip.Prefix) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELADDR, 0)
	msg := nl.NewIfAddrmsg(int(family(p.Addr())))
	msg.Index, msg.Prefixlen = uint32(index), uint8(p.Bits())
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()))
	err := h.conn.Execute(req)
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete address %s: %w", p, err)
	}
	return nil
}

// broadcast is the last address of an IPv4 subnet that has one (RFC 3021).
func broadcast(p netip.Prefix) ([]byte, bool) {
	if !p.Addr().Is4() || p.Bits() > 30 {
		return nil, false
	}
	a := p.Addr().As4()
	n := binary.BigEndian.Uint32(a[:]) | (1<<(32-p.Bits()) - 1)
	return binary.BigEndian.AppendUint32(nil, n), true
}

// Addrs lists the addresses of a link, with the length of their subnets.
func (h *Handle) Addrs(index int) ([]Addr, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, 0)
	msg := nl.NewIfAddrmsg(unix.AF_UNSPEC)
	msg.Index = uint32(index)
	req.AddData(msg)
	payloads, err := h.conn.Dump(req)
	if err != nil {
		return nil, fmt.Errorf("list addresses of link %d: %w", index, err)
	}
	var out []Addr
	for _, p := range payloads {
		a, of, err := parseAddr(p)
		if err != nil {
			return nil, fmt.Errorf("list addresses of link %d: %w", index, err)
		}
		if of == index && a.IsValid() { // a kernel may not filter
			out = append(out, a)
		}
	}
	return out, nil
}

// parseAddr reads what RTM_NEWADDR says: an address, and the index of its link.
func parseAddr(payload []byte) (addr Addr, index int, err error) {
	a, err := nlsock.ParseAddress(payload)
	return Addr{Prefix: a.Prefix, DADFailed: a.Flags&unix.IFA_F_DADFAILED != 0, Passing: a.Passing()}, a.Index, err
}

// SetNeighbour makes the neighbour entry of addr on a link permanent.
func (h *Handle) SetNeighbour(index int, addr netip.Addr, mac net.HardwareAddr) error {
	req := neighbour(unix.RTM_NEWNEIGH, index, addr)
	req.Flags |= unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	req.AddData(nl.NewRtAttr(unix.NDA_LLADDR, mac))
	if err := h.conn.Execute(req); err != nil {
		return fmt.Errorf("set neighbour %s lladdr %s: %w", addr, mac, err)
	}
	return nil
}

// DeleteNeighbour removes the entry of addr on a link; none is success.
func (h *Handle) DeleteNeighbour(index int, addr netip.Addr) error {
	err := h.conn.Execute(neighbour(unix.RTM_DELNEIGH, index, addr))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete neighbour %s: %w", addr, err)
	}
	return nil
}

// Neighbour is a permanent neighbour entry.
type Neighbour struct {
	Addr netip.Addr
	MAC  net.HardwareAddr
}

// Neighbours lists the permanent entries of a link.
func (h *Handle) Neighbours(index int) ([]Neighbour, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(make(ndMsg, unix.SizeofNdMsg))
	req.AddData(nl.NewRtAttr(unix.NDA_IFINDEX, nl.Uint32Attr(uint32(index))))
	payloads, err := h.conn.Dump(req)
	var out []Neighbour
	for i := 0; i < len(payloads) && err == nil; i++ {
		var n Neighbour
		var of int
		if n, of, err = parseNeighbour(payloads[i]); n.Addr.IsValid() && of == index {
			out = append(out, n)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list neighbours of link %d: %w", index, err)
	}
	return out, nil
}

// parseNeighbour reads what RTM_NEWNEIGH says (linux/neighbour.h), and nothing
// of an entry that is not permanent.
func parseNeighbour(payload []byte) (n Neighbour, index int, err error) {
	if len(payload) < unix.SizeofNdMsg {
		return n, 0, nlsock.ErrCutOff
	}
	if binary.NativeEndian.Uint16(payload[8:])&unix.NUD_PERMANENT == 0 {
		return n, 0, nil
	}
	attrs, err := nlsock.Attributes(payload[unix.SizeofNdMsg:])
	for _, a := range attrs {
		switch a.Kind {
		case unix.NDA_DST:
			n.Addr, _ = netip.AddrFromSlice(a.Value)
		case unix.NDA_LLADDR:
			n.MAC = net.HardwareAddr(a.Value)
		}
	}
	return n, int(binary.NativeEndian.Uint32(payload[4:])), err
}

func neighbour(kind, index int, addr netip.Addr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, 0)
	msg := make(ndMsg, unix.SizeofNdMsg)
	msg[0] = family(addr)
	binary.NativeEndian.PutUint32(msg[4:], uint32(index))
	binary.NativeEndian.PutUint16(msg[8:], unix.NUD_PERMANENT)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.NDA_DST, addr.AsSlice()))
	return req
}

// ndMsg is struct ndmsg of linux/neighbour.h.
type ndMsg []byte

func (m ndMsg) Len() int          { return len(m) }
func (m ndMsg) Serialize() []byte { return m }

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
