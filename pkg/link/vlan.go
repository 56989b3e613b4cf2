package link

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// hostAlias marks what this suite made on the host for several attachments
// to share, and may therefore remove.
const hostAlias = "underlay"

// maxName is the longest interface name, IFNAMSIZ less its NUL.
const maxName = 15

// VLANName is the name of the sub-interface for a VLAN id on parent, and the
// full name where that is too long for the kernel and becomes an altname.
func VLANName(parent string, id int) (name, alt string) {
	full := fmt.Sprintf("%s.%d", parent, id)
	if len(full) <= maxName {
		return full, ""
	}
	return fmt.Sprintf("ul%x.%d", sum(parent, 3), id), full
}

// EnsureVLAN finds or makes the 802.1q sub-interface of parent and brings it
// up.
func (h *Handle) EnsureVLAN(parent Link, id int) (Link, error) {
	name, alt := VLANName(parent.Name, id)
	l, err := h.ByName(name)
	if errors.Is(err, ErrNotFound) {
		data := nl.NewRtAttr(unix.IFLA_INFO_DATA, nil)
		data.AddRtAttr(nl.IFLA_VLAN_ID, nl.Uint16Attr(uint16(id)))
		_, err = h.create("vlan", Target{Name: name, NetnsFd: -1, Parent: parent.Index}, data)
		switch {
		case errors.Is(err, unix.EOPNOTSUPP):
			return Link{}, fmt.Errorf("make %q: the kernel has no 802.1q support; try: modprobe 8021q", name)
		case err != nil && !errors.Is(err, ErrExists):
			return Link{}, fmt.Errorf("make %q: %w", name, err)
		}
		if l, err = h.ByName(name); err == nil {
			if alt != "" {
				err = h.addAltName(l.Index, alt)
			}
			err = errors.Join(err, h.Up(l.Index, hostAlias, nil))
		}
	} else if err == nil && !l.Up {
		err = h.Up(l.Index, "", nil)
	}
	if err != nil {
		return Link{}, fmt.Errorf("sub-interface %q: %w", name, err)
	}
	if l.Kind != "vlan" || l.VLAN != id || l.Parent != parent.Index {
		return Link{}, fmt.Errorf("interface %q: %w, and it is not VLAN %d of %q", name, ErrExists, id, parent.Name)
	}
	return h.ByIndex(l.Index)
}

// addAltName gives a link a second name, which may be longer than maxName.
func (h *Handle) addAltName(index int, name string) error {
	req := newLinkRequest(unix.RTM_NEWLINKPROP, index)
	req.Flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL
	list := nl.NewRtAttr(unix.IFLA_PROP_LIST|unix.NLA_F_NESTED, nil)
	list.AddRtAttr(unix.IFLA_ALT_IFNAME, nl.ZeroTerminated(name))
	req.AddData(list)
	if err := h.execute(req); err != nil {
		return fmt.Errorf("name link %d %q: %w", index, name, err)
	}
	return nil
}

// parseVLAN reads IFLA_INFO_DATA of a sub-interface.
func (l *Link) parseVLAN(data []byte) error {
	attrs, err := nl.ParseRouteAttr(data)
	for _, a := range attrs {
		if a.Attr.Type == nl.IFLA_VLAN_ID {
			l.VLAN = number(a.Value)
		}
	}
	return err
}

// DeleteVLAN removes the sub-interface if EnsureVLAN made it.
func (h *Handle) DeleteVLAN(parent string, id int) error {
	name, _ := VLANName(parent, id)
	return h.deleteOurs(name)
}

// deleteOurs removes a host link by name if it carries hostAlias.
func (h *Handle) deleteOurs(name string) error {
	l, err := h.ByName(name)
	if errors.Is(err, ErrNotFound) || err == nil && l.Alias != hostAlias {
		return nil
	}
	if err != nil {
		return err
	}
	return h.Delete(l.Index)
}

func sum(s string, octets int) []byte {
	d := sha256.Sum256([]byte(s))
	return d[:octets]
}
