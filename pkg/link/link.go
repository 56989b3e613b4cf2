// Package link is the kernel door for network devices on the way of an
// attachment: it finds parents, creates macvlan and ipvlan links and veth pairs
// straight in the container's namespace, gives them addresses, routes and neighbours, and
// keeps what attachments share on the host (VLAN sub-interfaces, the sibling
// that lets the host reach its containers, a bridge).
//
// A Handle acts in the network namespace that it was opened in. Links of this
// suite carry an alias that names their attachment, so that they are told
// from everybody else's and found again when the ledger is lost.
package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
)

var (
	// ErrNotFound is returned when there is no such link.
	ErrNotFound = errors.New("no such interface")
	// ErrExists is returned when the name is taken in the target namespace.
	ErrExists = errors.New("an interface of that name exists")
	// ErrMACInUse is returned when a sibling or the parent has the MAC.
	ErrMACInUse = errors.New("MAC address is in use on the parent")
	// ErrBusy is returned when something else has taken the parent's frames:
	// another kind of child, a bridge, a bond.
	ErrBusy = errors.New("parent is busy")
	// ErrNotEthernet is returned for a parent such as lo or a tunnel.
	ErrNotEthernet = errors.New("is not an Ethernet interface")
	// ErrPassthru is returned when passthru and other children of one parent
	// exclude each other.
	ErrPassthru = errors.New("a passthru link must be the only child of its parent")
)

// Link is a network device as the kernel reports it.
type Link struct {
	Name  string
	Index int
	// Kind as `ip -d link` prints it: "macvlan", "veth"; "" for hardware.
	Kind  string
	MTU   int
	MAC   net.HardwareAddr
	Alias string
	// Up is the administrative state, IFF_UP.
	Up bool
	// Parent and Master are indexes; 0 means none. Parent is one of another
	// namespace where the link has been made from there.
	Parent int
	Master int
	// Mode and SourceMACs of a macvlan, Mode and Flag of an ipvlan, spelt as in
	// configurations.
	Mode       string
	Flag       string
	SourceMACs []net.HardwareAddr
	// VLAN id of an 802.1q sub-interface.
	VLAN int
	// Hairpin: Master, a bridge, sends back what came from here.
	Hairpin bool

	abroad   bool   // Parent is an index of another namespace,
	nsid     int32  // which has this id in the link's own
	group    uint32 // IFLA_GROUP
	ethernet bool   // what macvlan and ipvlan can sit on
	noARP    bool   // IFF_NOARP
}

// isOn reports whether the link sits on parent, which is in this namespace.
func (l Link) isOn(parent Link) bool { return l.Parent == parent.Index && !l.abroad }

// Handle talks to the kernel about one namespace, for one goroutine at a
// time. Close it.
type Handle struct{ conn *nlsock.Conn }

// Open opens a handle on the namespace of the calling thread.
func Open() (*Handle, error) { return OpenAt(-1) }

// OpenAt opens a handle on the namespace that fd refers to.
func OpenAt(fd int) (*Handle, error) {
	c, err := nlsock.Dial(fd)
	if err != nil {
		return nil, err
	}
	return &Handle{c}, nil
}

// Close releases the socket.
func (h *Handle) Close() { h.conn.Close() }

// ByName finds a link by name or alternative name; the error wraps
// ErrNotFound when there is none.
func (h *Handle) ByName(name string) (Link, error) {
	key := unix.IFLA_IFNAME
	if len(name) > maxName {
		key = unix.IFLA_ALT_IFNAME
	}
	return h.find(fmt.Sprintf("%q", name), newLinkRequest(unix.RTM_GETLINK, 0), nl.NewRtAttr(key, nl.ZeroTerminated(name)))
}

// ByIndex finds a link by index; the error wraps ErrNotFound when there is
// none.
func (h *Handle) ByIndex(index int) (Link, error) {
	if index <= 0 {
		return Link{}, fmt.Errorf("index %d: %w", index, ErrNotFound)
	}
	return h.find(fmt.Sprintf("index %d", index), newLinkRequest(unix.RTM_GETLINK, index))
}

func (h *Handle) find(what string, req *nl.NetlinkRequest, key ...nl.NetlinkRequestData) (Link, error) {
	req.Data = append(req.Data, key...)
	req.AddData(withoutStats())
	payload, err := h.conn.Get(req)
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ERANGE): // ERANGE: no name is that long
		return Link{}, fmt.Errorf("%s: %w", what, ErrNotFound)
	case err == nil:
		var l Link
		if l, err = parseLink(payload); err == nil {
			return l, nil
		}
	}
	return Link{}, fmt.Errorf("look up link %s: %w", what, err)
}

// List lists the links of the namespace.
func (h *Handle) List() ([]Link, error) {
	req := newLinkRequest(unix.RTM_GETLINK, 0)
	req.AddData(withoutStats())
	payloads, err := h.conn.Dump(req)
	out := make([]Link, len(payloads))
	for i := 0; i < len(payloads) && err == nil; i++ {
		out[i], err = parseLink(payloads[i])
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return out, nil
}

// Up brings a link up and sets its alias, and its MAC unless that is nil, in
// one message; of a passthru macvlan, the MAC of its parent too.
func (h *Handle) Up(index int, alias string, mac net.HardwareAddr) error {
	req := setFlags(index, unix.IFF_UP)
	if alias != "" {
		req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias)))
	}
	if mac != nil {
		req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
	}
	err := h.conn.Execute(req)
	if errors.Is(err, unix.EADDRINUSE) {
		err = ErrMACInUse
	}
	if err != nil {
		return fmt.Errorf("bring link %d up: %w", index, err)
	}
	return nil
}

// SetMTU sets the MTU of a link.
func (h *Handle) SetMTU(index, mtu int) error {
	req := newLinkRequest(unix.RTM_SETLINK, index)
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	if err := h.conn.Execute(req); err != nil {
		return fmt.Errorf("set MTU %d of link %d: %w", mtu, index, err)
	}
	return nil
}

// Delete removes a link; that it is gone already is success.
func (h *Handle) Delete(index int) error {
	if err := h.conn.Execute(newLinkRequest(unix.RTM_DELLINK, index)); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %d: %w", index, err)
	}
	return nil
}

// withoutStats spares the counters, half of what there is to say. In a list, any
// such mask makes the kernel look for the longest link first; without, it
// leaves out silently whatever does not fit (a long list of source MACs).
func withoutStats() *nl.RtAttr {
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h
	return nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats))
}

// newLinkRequest is a message about the link of that index; 0 leaves it open.
func newLinkRequest(kind, index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	return req
}

// setFlags is a message that sets flags, IFF_..., of a link.
func setFlags(index int, flags uint32) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), flags, flags
	req.AddData(msg)
	return req
}

// parseLink reads what RTM_NEWLINK says (linux/if_link.h).
func parseLink(payload []byte) (l Link, err error) {
	if len(payload) < unix.SizeofIfInfomsg {
		return l, nlsock.ErrCutOff
	}
	msg := nl.DeserializeIfInfomsg(payload)
	l.Index, l.Up, l.noARP = int(msg.Index), msg.Flags&unix.IFF_UP != 0, msg.Flags&unix.IFF_NOARP != 0
	l.ethernet = msg.Type == unix.ARPHRD_ETHER && msg.Flags&unix.IFF_LOOPBACK == 0
	attrs, err := nlsock.Attributes(payload[unix.SizeofIfInfomsg:])
	for _, a := range attrs {
		switch v := a.Value; a.Kind {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(v)
		case unix.IFLA_ADDRESS:
			l.MAC = net.HardwareAddr(v)
		case unix.IFLA_MTU:
			l.MTU = number(v)
		case unix.IFLA_LINK:
			l.Parent = number(v)
		case unix.IFLA_LINK_NETNSID:
			l.abroad, l.nsid = true, int32(number(v))
		case unix.IFLA_GROUP:
			l.group = uint32(number(v))
		case unix.IFLA_MASTER:
			l.Master = number(v)
		case unix.IFLA_IFALIAS:
			l.Alias = unix.ByteSliceToString(v)
		case unix.IFLA_LINKINFO:
			err = errors.Join(err, l.parseInfo(v))
		}
	}
	return l, err
}

func (l *Link) parseInfo(info []byte) error {
	var data, port []byte
	master := ""
	attrs, err := nlsock.Attributes(info)
	for _, a := range attrs {
		switch a.Kind {
		case unix.IFLA_INFO_KIND:
			l.Kind = unix.ByteSliceToString(a.Value)
		case unix.IFLA_INFO_DATA:
			data = a.Value
		case unix.IFLA_INFO_SLAVE_KIND:
			master = unix.ByteSliceToString(a.Value)
		case unix.IFLA_INFO_SLAVE_DATA:
			port = a.Value
		}
	}
	if master == "bridge" && err == nil {
		err = l.parsePort(port)
	}
	switch {
	case err != nil || data == nil:
	case l.Kind == "macvlan":
		err = l.parseMacvlan(data)
	case l.Kind == "ipvlan" || l.Kind == "ipvtap":
		err = l.parseIpvlan(data)
	case l.Kind == "vlan":
		err = l.parseVLAN(data)
	}
	return err
}

// nameOf is the name that a number has among numbers; "" for none.
func nameOf(numbers map[string]uint32, n uint32) string {
	for name, of := range numbers {
		if of == n {
			return name
		}
	}
	return ""
}

// number reads a u16 or u32.
func number(v []byte) int {
	switch len(v) {
	case 2:
		return int(binary.NativeEndian.Uint16(v))
	case 4:
		return int(binary.NativeEndian.Uint32(v))
	}
	return 0
}
