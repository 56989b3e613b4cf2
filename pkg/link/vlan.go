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
		l, err = h.makeVLAN(parent, id, name, alt)
	}
	switch {
	case err != nil:
	case l.Kind != "vlan" || l.VLAN != id || !l.isOn(parent):
		err = fmt.Errorf("%w, and it is not VLAN %d of %q", ErrExists, id, parent.Name)
	case !l.Up:
		err = h.Up(l.Index, "", nil)
		l.Up = true
	}
	if err != nil {
		return Link{}, fmt.Errorf("sub-interface %q: %w", name, err)
	}
	return l, nil
}

func (h *Handle) makeVLAN(parent Link, id int, name, alt string) (l Link, err error) {
	data := nl.NewRtAttr(unix.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VLAN_ID, nl.Uint16Attr(uint16(id)))
	index, err := h.create("vlan", Target{Name: name, NetnsFd: -1, Parent: parent.Index}, data)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return Link{}, errors.New("the kernel has no 802.1q support; try: modprobe 8021q")
	case errors.Is(err, ErrExists):
		return h.findVLAN(parent, id, name)
	case err != nil:
		return Link{}, err
	}
	// One that has no alias is never removed.
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Delete(index))
		}
	}()
	if alt != "" {
		if err := h.addAltName(index, alt); err != nil {
			return Link{}, err
		}
	}
	if err := h.Up(index, hostAlias, nil); err != nil {
		return Link{}, err
	}
	return h.ByIndex(index)
}

// findVLAN finds what somebody else has made meanwhile. A parent has a VLAN
// once only, under whatever name.
func (h *Handle) findVLAN(parent Link, id int, name string) (Link, error) {
	l, err := h.ByName(name)
	if !errors.Is(err, ErrNotFound) {
		return l, err
	}
	all, err := h.List()
	for _, l := range all {
		if l.Kind == "vlan" && l.VLAN == id && l.isOn(parent) {
			return Link{}, fmt.Errorf("VLAN %d of %q is there under the name %q; use that as master, without vlan", id, parent.Name, l.Name)
		}
	}
	return Link{}, errors.Join(ErrExists, err)
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
	attrs, err := attributes(data)
	for _, a := range attrs {
		if a.kind == nl.IFLA_VLAN_ID {
			l.VLAN = number(a.value)
		}
	}
	return err
}

// DeleteVLAN removes the sub-interface if EnsureVLAN made it.
func (h *Handle) DeleteVLAN(parent string, id int) error {
	name, _ := VLANName(parent, id)
	return h.deleteIf(name, func(l Link) bool { return l.Alias == hostAlias })
}

// deleteIf removes the link of that name if it is ours; none is success.
func (h *Handle) deleteIf(name string, ours func(Link) bool) error {
	l, err := h.ByName(name)
	if errors.Is(err, ErrNotFound) || err == nil && !ours(l) {
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
