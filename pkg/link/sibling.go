package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The kernel keeps a parent and its macvlan children apart. The sibling is
// one more child, in the host's namespace, through which host and containers
// meet. It answers no ARP and has no addresses: two MACs that answer for the
// host would poison its neighbours' caches. Instead both sides know each
// other by permanent neighbour entries.

// SiblingName is the name of the host-side sibling on parent.
func SiblingName(parent string) string { return fmt.Sprintf("ulh%x", sum(parent, 4)) }

// EnsureSibling finds or makes the sibling on parent and brings it up.
func (h *Handle) EnsureSibling(parent Link) (Link, error) {
	name := SiblingName(parent.Name)
	l, err := h.ByName(name)
	if errors.Is(err, ErrNotFound) {
		_, err = Macvlan{Mode: ModeBridge}.Create(h, Target{Name: name, NetnsFd: -1, Parent: parent.Index})
		if err == nil || errors.Is(err, ErrExists) {
			l, err = h.ByName(name)
		}
	}
	switch {
	case err != nil:
	case l.Kind != "macvlan" || !l.isOn(parent):
		err = fmt.Errorf("interface %q: %w, and it is not a child of %q", name, ErrExists, parent.Name)
	case !l.Up || l.Alias != hostAlias:
		err = h.dress(l.Index)
		l.Up, l.Alias = true, hostAlias
	}
	if err != nil {
		return Link{}, fmt.Errorf("host access: %w", err)
	}
	return l, nil
}

// dress makes a sibling of a macvlan. It goes up last: what is up is dressed.
func (h *Handle) dress(index int) error {
	// No link-local address, so no IPv6 of its own. A link that has no IPv6 (it
	// is switched off, or the MTU is below 1280) needs not be told.
	req := newLinkRequest(unix.RTM_SETLINK, index)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{nl.IN6_ADDR_GEN_MODE_NONE})
	req.AddData(spec)
	if err := h.execute(req); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("switch link-local addresses off on link %d: %w", index, err)
	}
	if err := h.execute(setFlags(index, unix.IFF_NOARP)); err != nil {
		return fmt.Errorf("switch ARP off on link %d: %w", index, err)
	}
	return h.Up(index, hostAlias, nil)
}

// DeleteSibling removes the sibling on the parent of that name, and with it
// all routes and neighbours through it. One that has no alias is of an ADD
// that died before it set it.
func (h *Handle) DeleteSibling(parent string) error {
	err := h.deleteIf(SiblingName(parent), func(l Link) bool {
		return l.Alias == hostAlias || l.Alias == "" && l.Kind == "macvlan"
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
