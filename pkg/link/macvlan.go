package link

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// Modes of macvlan, as configurations spell them.
const (
	ModeBridge   = "bridge"
	ModePrivate  = "private"
	ModeVEPA     = "vepa"
	ModePassthru = "passthru"
	ModeSource   = "source"
)

var modeBits = map[string]uint32{
	ModePrivate:  nl.MACVLAN_MODE_PRIVATE,
	ModeVEPA:     nl.MACVLAN_MODE_VEPA,
	ModeBridge:   nl.MACVLAN_MODE_BRIDGE,
	ModePassthru: nl.MACVLAN_MODE_PASSTHRU,
	ModeSource:   nl.MACVLAN_MODE_SOURCE,
}

// IsMacvlanMode reports whether the kernel knows a macvlan mode of this name.
func IsMacvlanMode(s string) bool { _, ok := modeBits[s]; return ok }

// flagNoPromisc is MACVLAN_FLAG_NOPROMISC of linux/if_link.h.
const flagNoPromisc = 1

// Target is where a new link goes.
type Target struct {
	// Name of the link there, final.
	Name string
	// NetnsFd is the namespace; a negative one means the handle's own.
	NetnsFd int
	// Parent is the index of the parent in the handle's namespace; 0 for none.
	Parent int
	// Peer is the name of the other end of a pair, in the handle's namespace.
	Peer string
	// MAC; nil leaves it to the kernel.
	MAC net.HardwareAddr
	// MTU in bytes; 0 takes the parent's.
	MTU int
}

// Macvlan is what is special to a macvlan link.
type Macvlan struct {
	// Mode is one of the Mode constants.
	Mode string
	// BCQueueLen is the broadcast queue asked for; 0 leaves the kernel's.
	BCQueueLen uint32
	// NoPromisc keeps a passthru link from putting its parent into
	// promiscuous mode.
	NoPromisc bool
	// SourceMACs are the senders that a source mode link hears.
	SourceMACs []net.HardwareAddr
}

// maxSources is the longest list that the kernel can tell back: together with
// all else about a macvlan, it has to fit into an attribute of 64 KiB.
const maxSources = 5000

// Create makes the link in its target namespace, down, and returns its
// index there. The error wraps ErrExists, ErrBusy or ErrPassthru where that
// is the reason.
func (m Macvlan) Create(h *Handle, t Target) (int, error) {
	if n := len(m.SourceMACs); n > maxSources {
		return 0, fmt.Errorf("create macvlan %q: %d source MACs are more than the %d that a link can have", t.Name, n, maxSources)
	}
	data := nl.NewRtAttr(unix.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_MACVLAN_MODE, nl.Uint32Attr(modeBits[m.Mode]))
	if m.BCQueueLen > 0 {
		data.AddRtAttr(nl.IFLA_MACVLAN_BC_QUEUE_LEN, nl.Uint32Attr(m.BCQueueLen))
	}
	if m.NoPromisc {
		data.AddRtAttr(nl.IFLA_MACVLAN_FLAGS, nl.Uint16Attr(flagNoPromisc))
	}
	if len(m.SourceMACs) > 0 {
		data.AddRtAttr(nl.IFLA_MACVLAN_MACADDR_MODE, nl.Uint32Attr(nl.MACVLAN_MACADDR_SET))
		list := data.AddRtAttr(nl.IFLA_MACVLAN_MACADDR_DATA, nil)
		for _, mac := range m.SourceMACs {
			list.AddRtAttr(nl.IFLA_MACVLAN_MACADDR, mac)
		}
	}
	index, err := h.create("macvlan", t, data)
	// The kernel says no word about what it finds wrong (macvlan_common_newlink).
	// Names and MACs are checked by those who read them. When it is nothing else,
	// it is that passthru wants to be alone.
	if errors.Is(err, unix.EINVAL) {
		err = h.unfit(t)
		switch {
		case err != nil:
		case !IsMacvlanMode(m.Mode):
			err = fmt.Errorf("there is no mode %q", m.Mode)
		default:
			err = ErrPassthru
		}
	}
	if err != nil {
		return 0, fmt.Errorf("create macvlan %q: %w", t.Name, err)
	}
	return index, nil
}

// unfit says why the parent cannot carry what is to go on it; nil if it can.
func (h *Handle) unfit(t Target) error {
	parent, err := h.ByIndex(t.Parent)
	switch {
	case err != nil:
		return fmt.Errorf("parent: %w", err)
	case !parent.ethernet:
		return fmt.Errorf("parent %q %w", parent.Name, ErrNotEthernet)
	case t.MTU > parent.MTU:
		return fmt.Errorf("MTU %d is more than the %d of parent %q", t.MTU, parent.MTU, parent.Name)
	}
	return nil
}

// leastIndex of those that create chooses; the kernel counts from 1.
const leastIndex = 1 << 16

// Made reports whether a link has an index as Create chooses them, which is
// all that tells it from others before it has an alias.
func (l Link) Made() bool { return l.Index >= leastIndex }

func newIndex() int { return leastIndex + rand.IntN(1<<30-leastIndex) }

// create sends one RTM_NEWLINK. The index is chosen here: without one, older
// kernels look the name up in the namespace of the socket and refuse a name
// that any interface of the host has.
func (h *Handle) create(kind string, t Target, data *nl.RtAttr, more ...nl.NetlinkRequestData) (int, error) {
	const tries = 8
	for try := 1; ; try++ {
		index := newIndex()
		req := newLinkRequest(unix.RTM_NEWLINK, index)
		req.Flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL
		if t.Parent != 0 {
			req.AddData(nl.NewRtAttr(unix.IFLA_LINK, nl.Uint32Attr(uint32(t.Parent))))
		}
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(t.Name)))
		if t.MAC != nil {
			req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, t.MAC))
		}
		if t.MTU > 0 {
			req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(t.MTU))))
		}
		if t.NetnsFd >= 0 {
			req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(t.NetnsFd))))
		}
		req.AddData(linkInfo(kind, data))
		req.Data = append(req.Data, more...)
		err := h.conn.Execute(req)
		switch {
		case errors.Is(err, unix.EEXIST) && try < tries && !h.nameTaken(t):
			continue // the index was taken, in either namespace
		case errors.Is(err, unix.EEXIST):
			return 0, ErrExists
		case errors.Is(err, unix.EBUSY):
			return 0, ErrBusy
		case err != nil:
			return 0, err
		}
		return index, nil
	}
}

func (h *Handle) nameTaken(t Target) bool {
	target := h
	if t.NetnsFd >= 0 {
		var err error
		if target, err = OpenAt(t.NetnsFd); err != nil {
			return true
		}
		defer target.Close()
	}
	_, err := target.ByName(t.Name)
	return !errors.Is(err, ErrNotFound)
}

// AddSourceMAC adds one sender; one that is listed already is success.
func (h *Handle) AddSourceMAC(index int, mac net.HardwareAddr) error {
	if err := h.changeSources(index, nl.MACVLAN_MACADDR_ADD, mac); err != nil {
		return fmt.Errorf("add source MAC %s to link %d: %w", mac, index, err)
	}
	return nil
}

// RemoveSourceMAC removes one sender; one that is not listed is success.
func (h *Handle) RemoveSourceMAC(index int, mac net.HardwareAddr) error {
	if err := h.changeSources(index, nl.MACVLAN_MACADDR_DEL, mac); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove source MAC %s from link %d: %w", mac, index, err)
	}
	return nil
}

func (h *Handle) changeSources(index int, how uint32, mac net.HardwareAddr) error {
	data := nl.NewRtAttr(unix.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_MACVLAN_MACADDR_MODE, nl.Uint32Attr(how))
	data.AddRtAttr(nl.IFLA_MACVLAN_MACADDR, mac)
	req := newLinkRequest(unix.RTM_NEWLINK, index)
	req.AddData(linkInfo("macvlan", data))
	return h.conn.Execute(req)
}

func linkInfo(kind string, data *nl.RtAttr) *nl.RtAttr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
	info.AddChild(data)
	return info
}

// parseMacvlan reads IFLA_INFO_DATA of a macvlan.
func (l *Link) parseMacvlan(data []byte) error {
	attrs, err := nlsock.Attributes(data)
	for _, a := range attrs {
		switch a.Kind {
		case nl.IFLA_MACVLAN_MODE:
			l.Mode = nameOf(modeBits, uint32(number(a.Value)))
		case nl.IFLA_MACVLAN_MACADDR_DATA:
			macs, merr := nlsock.Attributes(a.Value)
			err = errors.Join(err, merr)
			for _, m := range macs {
				l.SourceMACs = append(l.SourceMACs, net.HardwareAddr(m.Value))
			}
		}
	}
	return err
}
