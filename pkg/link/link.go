// Package link is the kernel door for network devices on the way of an
// attachment: it finds parents, creates macvlan links straight in the
// container's namespace, gives them addresses, routes and neighbours, and
// keeps what attachments share on the host (VLAN sub-interfaces, the sibling
// that lets the host reach its containers).
//
// A Handle acts in the network namespace that it was opened in. Links of this
// suite carry an alias that names their attachment, so that they are told
// from everybody else's and found again when the ledger is lost.
package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
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
	// Parent and Master are indexes; 0 means none. Parent is meaningless when
	// it lives in another namespace.
	Parent int
	Master int
	// Mode and SourceMACs of a macvlan; Mode as in configurations.
	Mode       string
	SourceMACs []net.HardwareAddr
	// VLAN id of an 802.1q sub-interface.
	VLAN int
}

// Handle talks to the kernel about one namespace. Close it.
type Handle struct {
	nl netlinksafe.Handle
	// raw carries the messages that the library cannot express.
	raw *nl.SocketHandle
}

// Open opens a handle on the namespace of the calling thread.
func Open() (*Handle, error) { return OpenAt(-1) }

// OpenAt opens a handle on the namespace that fd refers to.
func OpenAt(fd int) (*Handle, error) {
	h, err := netlinksafe.NewHandleAt(vnetns.NsHandle(fd), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	raw, err := nl.GetNetlinkSocketAt(vnetns.NsHandle(fd), vnetns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &Handle{nl: h, raw: &nl.SocketHandle{Socket: raw}}, nil
}

// Close releases the sockets.
func (h *Handle) Close() {
	h.nl.Close()
	h.raw.Close()
}

// ByName finds a link by name or alternative name; the error wraps
// ErrNotFound when there is none.
func (h *Handle) ByName(name string) (Link, error) {
	l, err := h.nl.LinkByName(name)
	return fromNetlink(l, name, err)
}

// ByIndex finds a link by index; the error wraps ErrNotFound when there is
// none.
func (h *Handle) ByIndex(index int) (Link, error) {
	l, err := h.nl.LinkByIndex(index)
	return fromNetlink(l, fmt.Sprintf("index %d", index), err)
}

// List lists the links of the namespace.
func (h *Handle) List() ([]Link, error) {
	all, err := h.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	out := make([]Link, len(all))
	for i, l := range all {
		out[i], _ = fromNetlink(l, "", nil)
	}
	return out, nil
}

func fromNetlink(l netlink.Link, name string, err error) (Link, error) {
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) {
		return Link{}, fmt.Errorf("%q: %w", name, ErrNotFound)
	}
	if err != nil {
		return Link{}, fmt.Errorf("look up link %q: %w", name, err)
	}
	a := l.Attrs()
	out := Link{
		Name: a.Name, Index: a.Index, Kind: l.Type(), MTU: a.MTU, MAC: a.HardwareAddr, Alias: a.Alias,
		Up: a.RawFlags&unix.IFF_UP != 0, Parent: a.ParentIndex, Master: a.MasterIndex,
	}
	switch t := l.(type) {
	case *netlink.Device:
		out.Kind = ""
	case *netlink.Macvlan:
		out.Mode, out.SourceMACs = modeNames[t.Mode], t.MACAddrs
	case *netlink.Vlan:
		out.VLAN = t.VlanId
	}
	return out, nil
}

// Up brings a link up and sets its alias, in one message.
func (h *Handle) Up(index int, alias string) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	if alias != "" {
		req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias)))
	}
	if err := h.execute(req); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			err = ErrMACInUse
		}
		return fmt.Errorf("bring link %d up: %w", index, err)
	}
	return nil
}

// Delete removes a link; that it is gone already is success.
func (h *Handle) Delete(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	if err := h.execute(req); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %d: %w", index, err)
	}
	return nil
}

// Addrs lists the addresses of a link, with the length of their subnets.
func (h *Handle) Addrs(index int) ([]Addr, error) {
	list, err := h.nl.AddrList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses of link %d: %w", index, err)
	}
	out := make([]Addr, 0, len(list))
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		ones, _ := a.Mask.Size()
		out = append(out, Addr{Prefix: netip.PrefixFrom(ip.Unmap(), ones), DADFailed: a.Flags&unix.IFA_F_DADFAILED != 0})
	}
	return out, nil
}

// Addr is an address of a link.
type Addr struct {
	netip.Prefix
	// DADFailed: IPv6 only, the kernel found that somebody else has it.
	DADFailed bool
}

// execute sends a request on the handle's own socket, so that it acts in the
// handle's namespace whatever thread runs it.
func (h *Handle) execute(req *nl.NetlinkRequest) error {
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: h.raw}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// SetMAC changes the MAC of a link; of a passthru macvlan, its parent's too.
func (h *Handle) SetMAC(index int, mac net.HardwareAddr) error {
	if err := h.nl.LinkSetHardwareAddr(byIndex(index), mac); err != nil {
		return fmt.Errorf("set MAC %s of link %d: %w", mac, index, err)
	}
	return nil
}
