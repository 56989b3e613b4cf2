package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
)

// The kernel keeps a parent and its macvlan children apart. The sibling is
// one more child, in the host's namespace, through which host and containers
// meet. It answers no ARP and has no addresses: two MACs that answer for the
// host would poison its neighbours' caches. Instead both sides know each
// other by permanent neighbour entries.

// SiblingName is the name of the host-side sibling on parent.
func SiblingName(parent string) string { return fmt.Sprintf("ulh%x", sum(parent, 4)) }

// EnsureSibling finds or makes the sibling on parent.
func (h *Handle) EnsureSibling(parent Link) (Link, error) {
	name := SiblingName(parent.Name)
	l, err := h.ByName(name)
	if errors.Is(err, ErrNotFound) {
		_, err = Macvlan{Mode: ModeBridge}.Create(h, Target{Name: name, NetnsFd: -1, Parent: parent.Index})
		if err == nil || errors.Is(err, ErrExists) {
			l, err = h.ByName(name)
		}
	}
	if err != nil {
		return Link{}, fmt.Errorf("host access: %w", err)
	}
	if l.Kind != "macvlan" || l.Parent != parent.Index {
		return Link{}, fmt.Errorf("host access: interface %q: %w, and it is not a child of %q", name, ErrExists, parent.Name)
	}
	if l.Up && l.Alias == hostAlias {
		return l, nil
	}
	// addr_gen_mode 1: no link-local address, so no IPv6 of its own.
	if err := netns.Sysctl("net/ipv6/conf/"+name+"/addr_gen_mode", "1"); err != nil {
		return Link{}, fmt.Errorf("host access: %w", err)
	}
	if err := h.execute(setFlags(l.Index, unix.IFF_NOARP)); err != nil {
		return Link{}, fmt.Errorf("host access: switch ARP off on %q: %w", name, err)
	}
	if err := h.Up(l.Index, hostAlias, nil); err != nil {
		return Link{}, fmt.Errorf("host access: %w", err)
	}
	return l, nil
}

// DeleteSibling removes the sibling on the parent of that name, and with it
// all routes and neighbours through it.
func (h *Handle) DeleteSibling(parent string) error {
	if err := h.deleteOurs(SiblingName(parent)); err != nil {
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
