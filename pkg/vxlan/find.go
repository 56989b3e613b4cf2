package vxlan

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// DefaultPort is the UDP port where none is told, which Linux has used since
// before there was an assigned one.
const DefaultPort = 8472

// MaxVNI is the highest VNI.
const MaxVNI = 1<<24 - 1

// Find reads the device of a VNI, if it is there and ours, as far as a device
// tells: not its Addrs, and a Parent that is gone is "".
func Find(n *netns.NS, vni int) (d Device, found bool, err error) {
	return findOurs(n, Name(vni))
}

// FindNetwork is Find for the device that the routes to a network's peers lead
// through.
func FindNetwork(n *netns.NS, network string) (d Device, found bool, err error) {
	return findOurs(n, AltName(network))
}

func findOurs(n *netns.NS, name string) (d Device, found bool, err error) {
	err = at(n, func(h *netlink.Handle) error {
		l, err := find(h, name)
		v, ok := l.(*netlink.Vxlan)
		if err != nil || !ok || !ours(l) {
			return err
		}
		found = true
		d = Device{VNI: v.VxlanId, Port: v.Port, MTU: v.Attrs().MTU}
		d.Network, _ = networkOf(l)
		if local, ok := netip.AddrFromSlice(v.SrcAddr); ok {
			d.Local = local.Unmap()
		}
		if mac := v.Attrs().HardwareAddr; len(mac) == len(d.MAC) {
			d.MAC = neigh.MAC(mac)
		}
		parent, err := h.LinkByIndex(v.VtepDevIndex)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err == nil {
			d.Parent = parent.Attrs().Name
		}
		return err
	})
	if err != nil {
		return Device{}, false, fmt.Errorf("VXLAN device %s: %w", name, err)
	}
	return d, found, nil
}

// SegmentOf is the segment of a VNI as a host has it on a parent, which h sees:
// the VTEP has an address and a MAC that other hosts can work out. A smaller MTU
// that the leg has already is what somebody has asked for, and stays.
func SegmentOf(h *link.Handle, parent string, vni, port int) (Segment, error) {
	p, err := h.ByName(parent)
	if err != nil {
		return Segment{}, err
	}
	addrs, err := h.Addrs(p.Index)
	if err != nil {
		return Segment{}, err
	}
	local, ok := underlay(addrs)
	if !ok {
		return Segment{}, fmt.Errorf("%q has no address that other hosts could reach a VTEP at; give it one: ip addr add ADDRESS/LENGTH dev %s", parent, p.Name)
	}
	s := Segment{Device: Device{
		VNI: vni, Port: cmp.Or(port, DefaultPort), Parent: p.Name, Local: local,
		MAC: MAC(local.String(), fmt.Sprint("segment/", vni)), MTU: MTU(p.MTU, local),
	}}
	if have, err := h.ByName(LegName(vni)); err == nil && have.Segment() == vni {
		s.MTU = min(s.MTU, have.MTU)
	}
	return s, nil
}

// underlay is the first IPv4 address that other hosts can reach, else the first
// IPv6 one. Others would not find a VTEP for long at an address that passes: the
// kernel makes a new temporary one every day, and lists it first.
func underlay(addrs []link.Addr) (local netip.Addr, ok bool) {
	for _, a := range addrs {
		if !a.Addr().IsGlobalUnicast() || a.DADFailed || a.Passing {
			continue
		}
		if a.Addr().Is4() {
			return a.Addr(), true
		}
		if !local.IsValid() {
			local = a.Addr()
		}
	}
	return local, local.IsValid()
}
