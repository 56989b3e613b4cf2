package link

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// ErrDown is returned for a parent that is administratively down.
var ErrDown = errors.New("is down")

// Parent finds the link that children are to sit on. The errors say what to
// do; they wrap ErrNotFound or ErrDown.
func (h *Handle) Parent(name string) (Link, error) {
	l, err := h.ByName(name)
	switch {
	case errors.Is(err, ErrNotFound) && inUserNamespace():
		return Link{}, fmt.Errorf("%w here: this is a user namespace (rootless runtime), which has no access to the host's interfaces; run the runtime as root", err)
	case err != nil:
		return Link{}, err
	case !l.Up:
		return Link{}, fmt.Errorf("%q %w; bring it up: ip link set %s up", name, ErrDown, name)
	case (l.isIpvlan() || l.Kind == "macvlan") && !l.abroad:
		// The kernel puts what is made on a child beside it.
		return h.ByIndex(l.Parent)
	}
	return l, nil
}

// DefaultRouteLink names the interface that the default route leaves by, of
// IPv4 if there is one, else of IPv6.
func (h *Handle) DefaultRouteLink() (string, error) {
	for _, is4 := range []bool{true, false} {
		index, err := h.DefaultRoute(is4)
		if err != nil {
			return "", err
		}
		if index != 0 {
			l, err := h.ByIndex(index)
			return l.Name, err
		}
	}
	return "", fmt.Errorf("no default route to take the interface of: %w", ErrNotFound)
}

// DefaultRoute is the index of the link that the default route of IPv4 or IPv6
// leaves by; 0 when there is none.
func (h *Handle) DefaultRoute(is4 bool) (index int, err error) {
	family := uint8(unix.AF_INET6)
	if is4 {
		family = unix.AF_INET
	}
	routes, err := h.routes(family)
	var best *Route
	for i, r := range routes {
		if r.Table == MainTable && r.Dst.Bits() == 0 && r.link != 0 && (best == nil || r.Priority < best.Priority) {
			best, index = &routes[i], r.link
		}
	}
	return index, err
}

// Holder says, for people, what keeps a parent from taking another kind of
// child, as far as can be seen.
func (h *Handle) Holder(parent Link) string {
	if parent.Master != 0 {
		if m, err := h.ByIndex(parent.Master); err == nil {
			return fmt.Sprintf("it is a port of %s %q; use %q as master instead", m.Kind, m.Name, m.Name)
		}
	}
	takes := func(l Link) bool { return l.isIpvlan() || l.Kind == "macvlan" || l.Kind == "macvtap" }
	if c, found, err := h.child(parent, takes); err == nil && found {
		return fmt.Sprintf("%s sits on it; macvlan and ipvlan cannot share a parent", c)
	}
	return "children of another kind (macvlan or ipvlan) in some container sit on it, or a bridge or bond holds it"
}

// HostAddr chooses the host's own address that a container knows it by: one
// of the parent's that shares a subnet with it, else its first global one of
// the same family.
func HostAddr(parent []Addr, container netip.Addr) (netip.Addr, bool) {
	var other netip.Addr
	for _, a := range parent {
		switch {
		case a.Contains(container):
			return a.Addr(), true
		case !other.IsValid() && a.Addr().Is4() == container.Is4() && !a.Addr().IsLinkLocalUnicast():
			other = a.Addr()
		}
	}
	return other, other.IsValid()
}

func inUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") != "0 0 4294967295"
}

// Path is what the kernel would do with a packet to an address.
type Path struct {
	// Link is what it leaves by; zero for an address of the host's own, or one that
	// no route leads to.
	Link Link
	// Own: the address is the host's own.
	Own bool
	// Connected: the address is on the segment of Link.
	Connected bool
	// Via is the next hop where there is one.
	Via netip.Addr
}

// PathTo asks the kernel's routing table for the way to an address.
func (h *Handle) PathTo(addr netip.Addr) (p Path, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{Family: family(addr), Dst_len: uint8(addr.BitLen())}}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, addr.AsSlice()))
	payload, err := h.conn.Get(req)
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
		return Path{}, nil
	}
	index := 0
	if err == nil {
		index, p, err = parsePath(payload)
	}
	if err == nil && index != 0 && !p.Own {
		p.Link, err = h.ByIndex(index)
	}
	if err != nil {
		return Path{}, fmt.Errorf("look up the route to %s: %w", addr, err)
	}
	return p, nil
}

// parsePath reads the answer: the index of the link, and what Link is not
// needed for.
func parsePath(payload []byte) (index int, p Path, err error) {
	if len(payload) < unix.SizeofRtMsg {
		return 0, p, nlsock.ErrCutOff
	}
	msg := nl.DeserializeRtMsg(payload)
	p.Own, p.Connected = msg.Type == unix.RTN_LOCAL, msg.Type == unix.RTN_UNICAST
	attrs, err := nlsock.Attributes(payload[unix.SizeofRtMsg:])
	for _, a := range attrs {
		switch a.Kind {
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			p.Connected = false
			via := a.Value
			if a.Kind == unix.RTA_VIA && len(via) > 2 {
				via = via[2:] // after its family
			}
			p.Via, _ = netip.AddrFromSlice(via)
		case unix.RTA_OIF:
			index = number(a.Value)
		}
	}
	return index, p, err
}
