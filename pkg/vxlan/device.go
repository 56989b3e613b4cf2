// Package vxlan keeps the VXLAN devices of a host, and says which routes,
// neighbours and FDB entries lead to a network's peers through one. Those are
// kept by packages route and neigh.
//
// A device is ours if its alias says so. What it does not need is off: it learns
// nothing, asks nobody, and has no addresses but those it is given. Whatever the
// kernel lets nobody change has it made anew, and then its entries have to be
// written again.
package vxlan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// What VXLAN adds to a packet, with the outer Ethernet header that the inner one
// stands for, in octets (RFC 7348 5).
const (
	overhead4 = 50
	overhead6 = 70
)

// ErrForeign is returned when something of somebody else is where the device
// has to be.
var ErrForeign = errors.New("is in the way")

// Device is a VXLAN device as it is wanted.
type Device struct {
	// Network whose peers are routed to through the device; "" for a segment's.
	Network string
	// VNI, 1 to 1<<24-1, and UDP port.
	VNI, Port int
	// Parent is the interface by name that the peers are reached through; Local
	// is its address, which says over which family.
	Parent string
	Local  netip.Addr
	MAC    neigh.MAC
	// MTU in octets; 0 is what the parent's leaves.
	MTU int
	// Addrs are all that the device has.
	Addrs []netip.Prefix
}

// Name is that of the device of a VNI.
func Name(vni int) string { return fmt.Sprint("vx", vni) }

// MTU is what a parent's MTU leaves for what is in VXLAN over a family.
func MTU(parent int, local netip.Addr) int {
	if local.Is4() {
		return parent - overhead4
	}
	return parent - overhead6
}

// Apply makes the device as it is wanted, in the namespace n, or, if it is nil,
// in that of the calling thread. made says that it is another one than before,
// without any entries.
func (d Device) Apply(n *netns.NS) (made bool, err error) {
	err = at(n, func(h *netlink.Handle) error {
		anew, err := d.apply(h)
		made = made || anew
		return err
	})
	if err != nil {
		err = fmt.Errorf("VXLAN device %s: %w", Name(d.VNI), err)
	}
	return made, err
}

// Remove removes the device of a VNI, if it is there and ours, and no segment's.
func Remove(n *netns.NS, vni int) error {
	err := at(n, func(h *netlink.Handle) error {
		have, err := find(h, Name(vni))
		if err != nil || have == nil || !ours(have) || inSegment(have) {
			return err
		}
		return gone(h.LinkDel(have))
	})
	if err != nil {
		return fmt.Errorf("VXLAN device %s: %w", Name(vni), err)
	}
	return nil
}

// attempts at what reads a list that changes all the time.
const attempts = 5

// at runs f in a namespace: sysctls are those of the thread's. It is run again
// where a list that it reads has changed meanwhile.
func at(n *netns.NS, f func(*netlink.Handle) error) error {
	do := func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		for range attempts {
			if err = f(h); !errors.Is(err, netlink.ErrDumpInterrupted) {
				break
			}
		}
		return err
	}
	if n == nil {
		return do()
	}
	return n.Do(do)
}

func (d Device) apply(h *netlink.Handle) (made bool, err error) {
	parent, err := find(h, d.Parent)
	switch {
	case err != nil:
		return false, err
	case parent == nil:
		return false, fmt.Errorf("parent %q: %w", d.Parent, link.ErrNotFound)
	}
	have, err := find(h, Name(d.VNI))
	if err != nil {
		return false, err
	}
	if have != nil && !ours(have) {
		return false, fmt.Errorf("the %s that somebody else has made %w; remove it, or give the network another vni", have.Type(), ErrForeign)
	}
	if have != nil && d.Network != "" && have.Attrs().MasterIndex != 0 {
		if inSegment(have) {
			return false, fmt.Errorf("that of a segment %w; remove the containers of segment %d, or give the network another vni", ErrForeign, d.VNI)
		}
		// Whoever is on a bridge would see what the network's containers send.
		if err := h.LinkSetNoMaster(have); err != nil {
			return false, fmt.Errorf("take it from the bridge: %w", err)
		}
	}
	if have != nil && !d.same(have, parent) {
		if err := gone(h.LinkDel(have)); err != nil {
			return false, err
		}
		have = nil
	}
	if made = have == nil; made {
		if have, err = d.create(h, parent); err != nil {
			return false, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, gone(h.LinkDel(have)))
				made = false
			}
		}()
		if err := mendChecksums(have.Attrs().Name); err != nil {
			return false, err
		}
	}
	return made, d.settle(h, have, parent)
}

// unfinished is the group of a device until it has its alias, which the kernel
// sets only on what is there already.
const unfinished = 0x756e6472 // "undr"

// ours reports whether a device has been made here, by whoever may have died
// before it had finished.
func ours(l netlink.Link) bool {
	a := l.Attrs()
	return l.Type() == "vxlan" && (a.Alias == link.SharedAlias || a.Alias == "" && a.Group == unfinished)
}

// inSegment reports whether one of ours is the port of a segment.
func inSegment(l netlink.Link) bool {
	_, routed := networkOf(l)
	return !routed && l.Attrs().MasterIndex != 0
}

// same reports whether all is as wanted of what nobody can change.
func (d Device) same(l, parent netlink.Link) bool {
	v, ok := l.(*netlink.Vxlan)
	return ok && v.VxlanId == d.VNI && v.Port == d.Port && v.VtepDevIndex == parent.Attrs().Index && v.SrcAddr.Equal(d.Local.AsSlice()) &&
		!v.Learning && !v.Proxy && !v.RSC && !v.L2miss && !v.L3miss && !v.FlowBased && !v.GBP && v.Group == nil
}

func (d Device) create(h *netlink.Handle, parent netlink.Link) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Group, attrs.HardwareAddr = Name(d.VNI), unfinished, d.MAC[:]
	v := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: d.VNI, Port: d.Port, VtepDevIndex: parent.Attrs().Index, SrcAddr: d.Local.AsSlice()}
	if err := h.LinkAdd(v); err != nil {
		if errors.Is(err, unix.EEXIST) {
			err = d.rival(h, err)
		}
		return nil, fmt.Errorf("create it on %q: %w", d.Parent, err)
	}
	made, err := find(h, v.Name)
	if err == nil && made == nil {
		err = link.ErrNotFound // somebody has removed it
	}
	return made, err
}

// rival names the device that has the VNI and the port: one address of this host
// or another makes no difference to the kernel.
func (d Device) rival(h *netlink.Handle, err error) error {
	links, lerr := h.LinkList()
	if lerr != nil {
		return err
	}
	for _, l := range links {
		if v, ok := l.(*netlink.Vxlan); ok && v.VxlanId == d.VNI && v.Port == d.Port {
			return fmt.Errorf("%q, which has VNI %d and port %d, %w; remove it, or give the network another vni or port", v.Name, d.VNI, d.Port, ErrForeign)
		}
	}
	return err
}

// settle gives a device what can be changed, and only what differs.
func (d Device) settle(h *netlink.Handle, l, parent netlink.Link) error {
	have := l.Attrs()
	// Before it is up, or it gets an address of its own accord and tells all.
	if err := netns.Sysctl("net/ipv6/conf/"+have.Name+"/addr_gen_mode", "1"); err != nil && len(d.Addrs) > 0 && slices.ContainsFunc(d.Addrs, is6) {
		return err
	}
	if mac := net.HardwareAddr(d.MAC[:]); have.HardwareAddr.String() != mac.String() {
		if err := h.LinkSetHardwareAddr(l, mac); err != nil {
			return fmt.Errorf("set MAC %s: %w", mac, err)
		}
	}
	mtu := d.MTU
	if mtu == 0 {
		mtu = MTU(parent.Attrs().MTU, d.Local)
	}
	if have.MTU != mtu {
		if err := h.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set MTU %d: %w", mtu, err)
		}
	}
	if d.Network != "" {
		if err := loosen(have.Name); err != nil {
			return err
		}
	}
	if have.Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("set it up: %w", err)
		}
	}
	if err := d.readdress(h, l); err != nil {
		return err
	}
	if err := d.rename(h, l); err != nil {
		return err
	}
	if have.Alias == link.SharedAlias {
		return nil
	}
	if err := h.LinkSetAlias(l, link.SharedAlias); err != nil {
		return fmt.Errorf("set alias: %w", err)
	}
	if err := h.LinkSetGroup(l, 0); err != nil {
		return fmt.Errorf("set group: %w", err)
	}
	return nil
}

// loosen has a strict host take what comes in by a device: two nodes may differ for
// a moment over which way they take to each other. One that looks for no way back
// stays so, which is quicker.
func loosen(dev string) error {
	const loose = "2"
	for _, of := range []string{"all", dev} {
		text, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + of + "/rp_filter")
		if err != nil {
			return fmt.Errorf("sysctl: %w", err)
		}
		switch strings.TrimSpace(string(text)) { // the larger value counts
		case loose:
			return nil
		case "1":
			return netns.Sysctl("net/ipv4/conf/"+dev+"/rp_filter", loose)
		}
	}
	return nil
}

func is6(p netip.Prefix) bool { return p.Addr().Is6() }

// readdress adds what is missing before it removes what is not wanted.
func (d Device) readdress(h *netlink.Handle, l netlink.Link) error {
	list, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	have := make(map[netip.Prefix]netlink.Addr)
	for _, a := range list {
		ip, _ := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		have[netip.PrefixFrom(ip.Unmap(), ones)] = a
	}
	for _, p := range d.Addrs {
		if _, there := have[p]; there {
			delete(have, p)
			continue
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if is6(p) {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(l, a); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	for p, a := range have {
		if err := h.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	return nil
}

// find returns nil where there is no such link.
func find(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up %q: %w", name, err)
	}
	return l, nil
}

// gone: what is not there any more need not be removed.
func gone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
