package link

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
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
	}
	return l, nil
}

// DefaultRouteLink names the interface that the default route leaves by, of
// IPv4 if there is one, else of IPv6.
func (h *Handle) DefaultRouteLink() (string, error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		routes, err := h.routes(family, 0)
		if err != nil {
			return "", err
		}
		best := -1
		for i, r := range routes {
			if r.Dst.Bits() == 0 && r.link != 0 && (best < 0 || r.Priority < routes[best].Priority) {
				best = i
			}
		}
		if best >= 0 {
			l, err := h.ByIndex(routes[best].link)
			return l.Name, err
		}
	}
	return "", fmt.Errorf("no default route to take the interface of: %w", ErrNotFound)
}

// Holder says, for people, what keeps a parent from taking another kind of
// child, as far as this namespace shows.
func (h *Handle) Holder(parent Link) string {
	if parent.Master != 0 {
		if m, err := h.ByIndex(parent.Master); err == nil {
			return fmt.Sprintf("it is a port of %s %q; use %q as master instead", m.Kind, m.Name, m.Name)
		}
	}
	if all, err := h.List(); err == nil {
		for _, l := range all {
			if l.isOn(parent) && (l.Kind == "ipvlan" || l.Kind == "ipvtap" || l.Kind == "macvlan" || l.Kind == "macvtap") {
				return fmt.Sprintf("%s link %q sits on it; macvlan and ipvlan cannot share a parent", l.Kind, l.Name)
			}
		}
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
