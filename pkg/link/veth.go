package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// Where containers are routed to, the other end of the pair is their next hop,
// under an address and a MAC that are the same everywhere: a container knows
// both before it asks, and nobody has to answer by ARP for what is not his.
var (
	hop4   = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	hop6   = netip.MustParseAddr("fe80::1")
	hopMAC = net.HardwareAddr{0x02, 'u', 'l', 'h', 'g', 'w'}
)

// Hop is the next hop of a container that is routed to.
func Hop(is4 bool) netip.Addr {
	if is4 {
		return hop4
	}
	return hop6
}

// HopMAC is the MAC of the hosts' ends of pairs.
func HopMAC() net.HardwareAddr { return hopMAC }

// PeerName is the name of the host's end of the pair of an attachment, which
// key names.
func PeerName(key string) string { return fmt.Sprintf("ul%x", sum(key, 5)) }

// legPrefix begins the name of a leg.
const legPrefix = "lg"

// LegName is the name of the leg of the VXLAN segment of a VNI: the end of a pair
// that is the parent of whatever is to be in the segment.
func LegName(vni int) string { return legPrefix + strconv.Itoa(vni) }

// LegOf is the VNI of the segment that a name is that of the leg of; 0 of none.
func LegOf(name string) int {
	vni, err := strconv.Atoi(strings.TrimPrefix(name, legPrefix))
	if err != nil || vni < 1 || LegName(vni) != name {
		return 0
	}
	return vni
}

// Segment is the VNI of the segment that the link is the leg of; 0 if it is none.
func (l Link) Segment() int {
	if l.Kind != "veth" || l.Alias != SharedAlias {
		return 0
	}
	return LegOf(l.Name)
}

// Veth is a pair of which Target.Peer is the end in the handle's namespace.
type Veth struct {
	// MAC of that end; nil leaves it to the kernel.
	MAC net.HardwareAddr
}

// Create makes the pair, both ends down, and returns the index of the one in
// the target namespace. The error wraps ErrExists where the name is taken
// there, and ErrPeerExists where that of the other end is.
func (v Veth) Create(h *Handle, t Target) (int, error) {
	data := nl.NewRtAttr(unix.IFLA_INFO_DATA, nil)
	peer := data.AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC).Index = int32(newIndex())
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(t.Peer))
	if v.MAC != nil {
		peer.AddRtAttr(unix.IFLA_ADDRESS, v.MAC)
	}
	if t.MTU > 0 {
		peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(t.MTU)))
	}
	index, err := h.create("veth", t, data)
	switch {
	case errors.Is(err, ErrExists) && !h.nameTaken(t):
		err = ErrPeerExists
	case errors.Is(err, unix.EOPNOTSUPP):
		err = errors.New("the kernel has no veth support; try: modprobe veth")
	}
	if err != nil {
		return 0, fmt.Errorf("create veth %q with peer %q: %w", t.Name, t.Peer, err)
	}
	return index, nil
}

// ErrPeerExists is returned when the name of the host's end is taken.
var ErrPeerExists = errors.New("an interface with the name of the host's end exists")

// DeletePeer removes the host's end of a pair, and so the pair, if its alias is
// this one, or none yet; that there is none is success.
func (h *Handle) DeletePeer(name, alias string) error {
	return h.deleteIf(name, func(l Link) bool {
		return l.Kind == "veth" && (l.Alias == alias || l.Alias == "" && l.Made())
	})
}

// DressPeer marks the host's end of a pair and brings it up, and takes the
// link-local addresses away that the kernel would make, which it would not let
// answer before a second has passed.
func (h *Handle) DressPeer(index int, alias string) error {
	if err := h.noLinkLocal(index); err != nil {
		return err
	}
	return h.Up(index, alias, nil)
}

// noLinkLocal: a link that has no IPv6 (it is switched off, or the MTU is below
// 1280) needs not be told.
func (h *Handle) noLinkLocal(index int) error {
	req := newLinkRequest(unix.RTM_SETLINK, index)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{nl.IN6_ADDR_GEN_MODE_NONE})
	req.AddData(spec)
	if err := h.conn.Execute(req); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("switch link-local addresses off on link %d: %w", index, err)
	}
	return nil
}

// EnsureBridge finds or makes a bridge. Ours, which it has made, has a MAC that
// does not change with its ports, neither spanning tree nor snooping of
// multicast, and is brought up; it is finished if its maker has died. Of
// somebody else's it changes nothing.
func (h *Handle) EnsureBridge(name string) (l Link, ours bool, err error) {
	l, err = h.ByName(name)
	if errors.Is(err, ErrNotFound) {
		l, err = h.makeBridge(name)
	}
	switch {
	case err != nil:
	case l.Kind != "bridge":
		err = fmt.Errorf("%w, and it is no bridge", ErrExists)
	case l.Alias == "" && l.group == unfinished:
		l, err = h.finishBridge(l.Index)
	case l.Alias == SharedAlias && !l.Up:
		err = h.Up(l.Index, "", nil)
		l.Up = true
	case !l.Up:
		err = fmt.Errorf("%w; bring it up: ip link set %s up", ErrDown, name)
	}
	if err != nil {
		return Link{}, false, fmt.Errorf("bridge %q: %w", name, err)
	}
	return l, l.Alias == SharedAlias, nil
}

func (h *Handle) makeBridge(name string) (Link, error) {
	data := nl.NewRtAttr(unix.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(0))
	data.AddRtAttr(nl.IFLA_BR_MCAST_SNOOPING, []byte{0})
	t := Target{Name: name, NetnsFd: -1, MAC: append(net.HardwareAddr{0x02, 'u', 'l'}, sum(name, 3)...)}
	index, err := h.create("bridge", t, data, nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(unfinished)))
	switch {
	case errors.Is(err, ErrExists): // somebody else has made it meanwhile
		return h.ByName(name)
	case errors.Is(err, unix.EOPNOTSUPP):
		return Link{}, errors.New("the kernel has no bridge support; try: modprobe bridge")
	case err != nil:
		return Link{}, err
	}
	return h.ByIndex(index)
}

// finishBridge marks and brings up what makeBridge has made, or removes it.
func (h *Handle) finishBridge(index int) (l Link, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Delete(index))
		}
	}()
	if err := h.noLinkLocal(index); err != nil {
		return Link{}, err
	}
	req := setFlags(index, unix.IFF_UP)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(SharedAlias)))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(0)))
	if err := h.conn.Execute(req); err != nil {
		return Link{}, fmt.Errorf("bring link %d up: %w", index, err)
	}
	return h.ByIndex(index)
}

// DeleteBridge removes a bridge that EnsureBridge has made and that has no port.
func (h *Handle) DeleteBridge(name string) error {
	l, err := h.ByName(name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil || l.Kind != "bridge" || l.Alias != SharedAlias && l.group != unfinished {
		return err
	}
	all, err := h.List()
	if err != nil {
		return err
	}
	for _, port := range all {
		if port.Master == l.Index {
			return nil
		}
	}
	return h.Delete(l.Index)
}

// Plug makes a link a port of a bridge, to which the bridge also sends back
// what came from there: a container reaches itself by an address that the host
// translates.
func (h *Handle) Plug(index, bridge int) error {
	req := newLinkRequest(unix.RTM_SETLINK, index)
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
	err := h.conn.Execute(req)
	if err == nil {
		req = nl.NewNetlinkRequest(unix.RTM_SETLINK, 0)
		msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
		msg.Index = int32(index)
		req.AddData(msg)
		info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
		info.AddRtAttr(nl.IFLA_BRPORT_MODE, []byte{1})
		req.AddData(info)
		err = h.conn.Execute(req)
	}
	if err != nil {
		return fmt.Errorf("make link %d a port of bridge %d: %w", index, bridge, err)
	}
	return nil
}

// parsePort reads IFLA_INFO_SLAVE_DATA of the port of a bridge.
func (l *Link) parsePort(data []byte) error {
	attrs, err := nlsock.Attributes(data)
	for _, a := range attrs {
		if a.Kind == nl.IFLA_BRPORT_MODE && len(a.Value) == 1 {
			l.Hairpin = a.Value[0] != 0
		}
	}
	return err
}
