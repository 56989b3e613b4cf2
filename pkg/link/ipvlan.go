package link

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// Modes of ipvlan, as configurations spell them.
const (
	ModeL2  = "l2"
	ModeL3  = "l3"
	ModeL3S = "l3s"
)

// Flags of ipvlan, as configurations spell them.
const (
	FlagBridge  = "bridge"
	FlagPrivate = "private"
	FlagVEPA    = "vepa"
)

// As numbered by linux/if_link.h.
var (
	ipvlanModes = map[string]uint32{ModeL2: 0, ModeL3: 1, ModeL3S: 2}
	ipvlanFlags = map[string]uint32{FlagBridge: 0, FlagPrivate: 1, FlagVEPA: 2}
)

// IsIpvlanMode reports whether the kernel knows an ipvlan mode of this name.
func IsIpvlanMode(s string) bool { _, ok := ipvlanModes[s]; return ok }

// IsIpvlanFlag reports whether the kernel knows an ipvlan flag of this name.
func IsIpvlanFlag(s string) bool { _, ok := ipvlanFlags[s]; return ok }

// Ipvlan is what is special to an ipvlan link. Both belong to the parent: who
// creates a link on it changes, without a word, all that are there. Ask
// IpvlanOn first.
type Ipvlan struct {
	// Mode is one of ModeL2, ModeL3, ModeL3S.
	Mode string
	// Flag is one of the Flag constants.
	Flag string
}

// Port is what all ipvlan links of one parent have in common, as the ledger
// records it and people read it.
func (i Ipvlan) Port() string { return fmt.Sprintf("ipvlan mode %s, flag %s", i.Mode, i.Flag) }

// Port is that of an ipvlan link; "" for a link that has such settings alone.
func (l Link) Port() string {
	if !l.isIpvlan() {
		return ""
	}
	return Ipvlan{Mode: l.Mode, Flag: l.Flag}.Port()
}

// Create makes the link in its target namespace, down, and returns its index
// there. It has its parent's MAC: one in t is an error. The error wraps
// ErrExists, ErrBusy or ErrNotEthernet where that is the reason.
func (i Ipvlan) Create(h *Handle, t Target) (int, error) {
	index, err := i.create(h, t)
	if err != nil {
		return 0, fmt.Errorf("create ipvlan %q: %w", t.Name, err)
	}
	return index, nil
}

func (i Ipvlan) create(h *Handle, t Target) (int, error) {
	switch {
	case !IsIpvlanMode(i.Mode):
		return 0, fmt.Errorf("there is no mode %q", i.Mode)
	case !IsIpvlanFlag(i.Flag):
		return 0, fmt.Errorf("there is no flag %q", i.Flag)
	case t.MAC != nil:
		return 0, fmt.Errorf("MAC %s: all ipvlan links have that of their parent", t.MAC) // the kernel ignores it
	}
	if t.MTU > 0 {
		// The kernel takes any. Frames above the parent's are lost.
		if err := h.unfit(t); err != nil {
			return 0, err
		}
	}
	data := nl.NewRtAttr(unix.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_IPVLAN_MODE, nl.Uint16Attr(uint16(ipvlanModes[i.Mode])))
	data.AddRtAttr(nl.IFLA_IPVLAN_FLAG, nl.Uint16Attr(uint16(ipvlanFlags[i.Flag])))
	index, err := h.create("ipvlan", t, data)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return 0, errors.New("the kernel has no ipvlan support; try: modprobe ipvlan")
	case errors.Is(err, unix.EINVAL):
		if reason := h.unfit(t); reason != nil {
			err = reason
		}
	}
	return index, err
}

// IpvlanOn finds a link that shares parent's ipvlan mode and flag, in the
// parent's namespace or in any other that netns.Each visits: nothing on the
// parent itself tells them. If parent is such a link, it is that.
func (h *Handle) IpvlanOn(parent Link) (c Child, found bool, err error) {
	if parent.isIpvlan() {
		return Child{Link: parent}, true, nil
	}
	if c, found, err = h.child(parent, Link.isIpvlan); err != nil {
		return Child{}, false, fmt.Errorf("find the ipvlan links on %q: %w", parent.Name, err)
	}
	return c, found, nil
}

func (l Link) isIpvlan() bool { return l.Kind == "ipvlan" || l.Kind == "ipvtap" }

// parseIpvlan reads IFLA_INFO_DATA of an ipvlan.
func (l *Link) parseIpvlan(data []byte) error {
	attrs, err := nlsock.Attributes(data)
	for _, a := range attrs {
		switch a.Kind {
		case nl.IFLA_IPVLAN_MODE:
			l.Mode = nameOf(ipvlanModes, uint32(number(a.Value)))
		case nl.IFLA_IPVLAN_FLAG:
			l.Flag = nameOf(ipvlanFlags, uint32(number(a.Value)))
		}
	}
	return err
}
