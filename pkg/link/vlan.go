package link

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/digest"
	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// SharedAlias is the alias of what this suite made on the host for several
// attachments to share, and may therefore remove.
const SharedAlias = "underlay"

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

// SplitVLAN is the inverse of VLANName's full name: "eth0.100" is VLAN 100 of
// eth0. Of a link that exists, the name tells nothing.
func SplitVLAN(name string) (parent string, id int, ok bool) {
	dot := strings.LastIndexByte(name, '.')
	if dot <= 0 {
		return "", 0, false
	}
	id, err := strconv.Atoi(name[dot+1:])
	if err != nil || id < 1 || id > 4094 || strconv.Itoa(id) != name[dot+1:] {
		return "", 0, false
	}
	return name[:dot], id, true
}

// unfinished is the group, as of `ip link show group`, that a sub-interface is
// in until it has its alias. The kernel sets an alias only on what is there
// already, but a group at once: so one whose maker has died is told from
// anybody else's.
const unfinished = 0x756e6472 // "undr"

// OwnVLAN reports whether the link is VLAN l.VLAN of l.Parent, and made by
// EnsureVLAN, which may have died before it had finished.
func (l Link) OwnVLAN() bool {
	return l.Kind == "vlan" && !l.abroad && (l.Alias == SharedAlias || l.unfinished())
}

func (l Link) unfinished() bool {
	return l.Kind == "vlan" && l.Alias == "" && l.group == unfinished
}

// EnsureVLAN finds or makes the 802.1q sub-interface of parent, finishes it if
// its maker has died, and brings it up.
func (h *Handle) EnsureVLAN(parent Link, id int) (Link, error) {
	name, alt := VLANName(parent.Name, id)
	l, err := h.ByName(name)
	if errors.Is(err, ErrNotFound) {
		l, err = h.makeVLAN(parent, id, name)
	}
	switch {
	case err != nil:
	case l.Kind != "vlan" || l.VLAN != id || !l.isOn(parent):
		err = fmt.Errorf("%w, and it is not VLAN %d of %q", ErrExists, id, parent.Name)
	case l.unfinished():
		l, err = h.finishVLAN(l.Index, alt)
	case !l.Up:
		err = h.Up(l.Index, "", nil)
		l.Up = true
	}
	if err != nil {
		return Link{}, fmt.Errorf("sub-interface %q: %w", name, err)
	}
	return l, nil
}

// makeVLAN makes a sub-interface that is to be finished, or finds what somebody
// else has made meanwhile.
func (h *Handle) makeVLAN(parent Link, id int, name string) (Link, error) {
	data := nl.NewRtAttr(unix.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VLAN_ID, nl.Uint16Attr(uint16(id)))
	group := nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(unfinished))
	index, err := h.create("vlan", Target{Name: name, NetnsFd: -1, Parent: parent.Index}, data, group)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) && !parent.ethernet:
		return Link{}, fmt.Errorf("parent %q %w", parent.Name, ErrNotEthernet)
	case errors.Is(err, unix.EOPNOTSUPP):
		return Link{}, errors.New("the kernel has no 802.1q support; try: modprobe 8021q")
	case errors.Is(err, ErrExists):
		return h.findVLAN(parent, id, name)
	case err != nil:
		return Link{}, err
	}
	return Link{Index: index, Kind: "vlan", VLAN: id, Parent: parent.Index, group: unfinished}, nil
}

// finishVLAN names, marks and brings up what makeVLAN has made, or removes it.
func (h *Handle) finishVLAN(index int, alt string) (l Link, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Delete(index))
		}
	}()
	if alt != "" {
		// One that died may have come as far as this.
		if l, err := h.ByName(alt); err != nil || l.Index != index {
			if err := h.addAltName(index, alt); err != nil {
				return Link{}, err
			}
		}
	}
	req := setFlags(index, unix.IFF_UP)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(SharedAlias)))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(0)))
	if err := h.conn.Execute(req); err != nil {
		return Link{}, fmt.Errorf("bring link %d up: %w", index, err)
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
	if err := h.conn.Execute(req); err != nil {
		return fmt.Errorf("name link %d %q: %w", index, name, err)
	}
	return nil
}

// parseVLAN reads IFLA_INFO_DATA of a sub-interface.
func (l *Link) parseVLAN(data []byte) error {
	attrs, err := nlsock.Attributes(data)
	for _, a := range attrs {
		if a.Kind == nl.IFLA_VLAN_ID {
			l.VLAN = number(a.Value)
		}
	}
	return err
}

// DeleteVLAN removes the sub-interface if EnsureVLAN made it.
func (h *Handle) DeleteVLAN(parent string, id int) error {
	name, alt := VLANName(parent, id)
	if alt == "" {
		return h.deleteIf(name, Link.OwnVLAN)
	}
	// The name that fits may be that of another parent's.
	return errors.Join(h.deleteIf(alt, Link.OwnVLAN), h.deleteIf(name, Link.unfinished))
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
	d := digest.Sum256([]byte(s))
	return d[:octets]
}
