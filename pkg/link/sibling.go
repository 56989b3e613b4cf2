package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// The kernel keeps a parent and its children, macvlan or ipvlan, apart. The
// sibling is one more child, in the host's namespace, through which the host
// reaches containers. It answers no ARP and has no addresses: two MACs that
// answer for the host would poison its neighbours' caches. Instead both sides
// know each other by permanent neighbour entries.
//
// The way back is the same only on macvlan. What an ipvlan container sends to
// the host arrives on the parent in mode l2, see StrictRPFilter, and on lo in
// l3 and l3s, where neighbour entries are of no use and do no harm.

// SiblingName is the name of the host-side sibling on parent.
func SiblingName(parent string) string { return fmt.Sprintf("ulh%x", sum(parent, 4)) }

// EnsureSibling finds or makes the sibling on parent and brings it up. create
// makes links of the kind, "macvlan" or "ipvlan", in the mode and with the flag
// that containers on parent have.
func (h *Handle) EnsureSibling(parent Link, kind string, create func(*Handle, Target) (int, error)) (l Link, err error) {
	made := 0
	defer func() {
		if err != nil && made != 0 {
			err = errors.Join(err, h.Delete(made))
		}
		if err != nil {
			l, err = Link{}, fmt.Errorf("host access: %w", err)
		}
	}()
	name := SiblingName(parent.Name)
	l, err = h.ByName(name)
	if errors.Is(err, ErrNotFound) {
		made, err = create(h, Target{Name: name, NetnsFd: -1, Parent: parent.Index})
		if err == nil || errors.Is(err, ErrExists) {
			l, err = h.ByName(name)
		}
	}
	switch {
	case err != nil:
	case l.Alias == SharedAlias && l.Kind != kind && l.isOn(parent):
		err = ErrBusy
	case l.Kind != kind || !l.isOn(parent):
		err = fmt.Errorf("interface %q: %w, and it is no %s link on %q", name, ErrExists, kind, parent.Name)
	case !l.Up || l.Alias != SharedAlias || !l.noARP:
		if err = h.dress(l); err == nil {
			l, err = h.ByIndex(l.Index)
		}
	}
	return l, err
}

// dress makes a sibling of a child.
func (h *Handle) dress(l Link) error {
	// No link-local address, so no IPv6 of its own.
	if err := h.noLinkLocal(l.Index); err != nil {
		return err
	}
	// Before it is up, so that it never answers. An ipvlan in mode l2 forgets it
	// when it goes up; what it answers meanwhile does no harm, since its MAC is
	// the parent's.
	arpOff := func() error {
		if err := h.conn.Execute(setFlags(l.Index, unix.IFF_NOARP)); err != nil {
			return fmt.Errorf("switch ARP off on link %d: %w", l.Index, err)
		}
		return nil
	}
	if err := arpOff(); err != nil {
		return err
	}
	if err := h.Up(l.Index, SharedAlias, nil); err != nil || !l.isIpvlan() {
		return err
	}
	return arpOff()
}

// DeleteSibling removes the sibling on the parent of that name, and with it
// all routes and neighbours through it. One that has no alias is of an ADD
// that died before it set it.
func (h *Handle) DeleteSibling(parent string) error {
	err := h.deleteIf(SiblingName(parent), func(l Link) bool {
		return l.Alias == SharedAlias || l.Alias == "" && (l.Kind == "macvlan" || l.isIpvlan())
	})
	if err != nil {
		return fmt.Errorf("host access: %w", err)
	}
	return nil
}

// Reach makes the host reach a container through the sibling; host is the
// source address that the container knows the host by.
func (h *Handle) Reach(sibling Link, container, host netip.Addr, mac net.HardwareAddr) error {
	if err := h.SetNeighbour(sibling.Index, container, mac); err != nil {
		return fmt.Errorf("host access: %w", err)
	}
	r := Route{Dst: netip.PrefixFrom(container, container.BitLen()), Src: host, Scope: -1}
	if err := h.ReplaceRoute(sibling.Index, r); err != nil {
		return fmt.Errorf("host access: %w", err)
	}
	return nil
}

// Unreach takes back what Reach made.
func (h *Handle) Unreach(sibling Link, container netip.Addr) error {
	return errors.Join(
		h.DeleteRoute(sibling.Index, netip.PrefixFrom(container, container.BitLen())),
		h.DeleteNeighbour(sibling.Index, container),
	)
}

// StrictRPFilter reports whether the host drops what comes in on l from where
// it would not send to on l (rp_filter 1), and so all that a container on an
// ipvlan in mode l2 sends to the host: that comes in on the parent, while the
// route to the container is the sibling's. The sysctl rp_filter 2 of the parent
// helps, 0 only if that of "all" is 0.
func (h *Handle) StrictRPFilter(l Link) (bool, error) {
	const strict = 1
	effective := 0
	for _, index := range []int{netconfAllLinks, l.Index} {
		one, err := h.rpFilter(index)
		if err != nil {
			return false, fmt.Errorf("look up rp_filter of %q: %w", l.Name, err)
		}
		effective = max(effective, one)
	}
	return effective == strict, nil
}

// Of linux/netconf.h.
const (
	netconfaIfindex  = 1
	netconfaRPFilter = 3
	netconfAllLinks  = -1
)

func (h *Handle) rpFilter(index int) (int, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNETCONF, 0)
	msg := nl.NewRtGenMsg() // as long as struct netconfmsg, and the same
	msg.Family = unix.AF_INET
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(netconfaIfindex, nl.Uint32Attr(uint32(index))))
	payload, err := h.conn.Get(req)
	if err != nil {
		return 0, err
	}
	return parseRPFilter(payload)
}

// parseRPFilter reads what RTM_NEWNETCONF says.
func parseRPFilter(payload []byte) (value int, err error) {
	if len(payload) < unix.NLMSG_ALIGNTO {
		return 0, nlsock.ErrCutOff
	}
	attrs, err := nlsock.Attributes(payload[unix.NLMSG_ALIGNTO:])
	for _, a := range attrs {
		if a.Kind == netconfaRPFilter {
			value = number(a.Value)
		}
	}
	return value, err
}
