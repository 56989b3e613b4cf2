package vxlan

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/digest"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// Segment is one L2 segment of hosts that do not share one: a bridge with the
// VXLAN device of a VNI as a port, and a leg, a veth whose other end is the
// parent of whatever is to be in the segment. (On a bridge itself there may be no
// macvlan that hears what the bridge answers.)
//
// Nothing is learned from VXLAN and the bridge answers for known addresses
// itself, so that neither ARP nor neighbour discovery for those leaves the host.
type Segment struct {
	// Device is the VTEP; it has no addresses.
	Device
}

// Names of what a segment has on a host, beside its device.
func BridgeName(vni int) string { return fmt.Sprint("br", vni) }
func LegName(vni int) string    { return link.LegName(vni) }
func portName(vni int) string   { return fmt.Sprint("lp", vni) }

// Apply makes the segment as it is wanted, in the namespace n, or, if it is nil,
// in that of the calling thread. made says that something is another one than
// before, without its entries.
func (s Segment) Apply(n *netns.NS) (made bool, err error) {
	err = at(n, func(h *netlink.Handle) error {
		have, err := find(h, Name(s.VNI))
		if err != nil {
			return err
		}
		known := have != nil
		if known && ours(have) {
			if network, is := networkOf(have); is {
				return fmt.Errorf("%s, by which the peers of network %q are routed to, %w; give the segment another vni", Name(s.VNI), network, ErrForeign)
			}
		}
		anew, err := s.Device.apply(h)
		if err != nil {
			return fmt.Errorf("%s: %w", Name(s.VNI), err)
		}
		// What was not there before goes again if this fails.
		added := []string{}
		if !known {
			added = append(added, Name(s.VNI))
		}
		made = made || anew
		for _, part := range []func(*netlink.Handle) (string, error){s.bridge, s.leg, s.join} {
			name, err := part(h)
			if name != "" {
				added, made = append(added, name), true
			}
			if err != nil {
				return errors.Join(err, remove(h, added...))
			}
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("segment of VNI %d: %w", s.VNI, err)
	}
	return made, nil
}

// RemoveSegment removes what is there of the segment of a VNI, and ours.
func RemoveSegment(n *netns.NS, vni int) error {
	err := at(n, func(h *netlink.Handle) error { return remove(h, LegName(vni), Name(vni), BridgeName(vni)) })
	if err != nil {
		return fmt.Errorf("segment of VNI %d: %w", vni, err)
	}
	return nil
}

func remove(h *netlink.Handle, names ...string) (err error) {
	for _, name := range names {
		l, ferr := find(h, name)
		if ferr != nil || l == nil || !mine(l) {
			err = errors.Join(err, ferr)
			continue
		}
		if _, is := networkOf(l); is {
			continue
		}
		err = errors.Join(err, gone(h.LinkDel(l)))
	}
	return err
}

// mine is ours for any kind.
func mine(l netlink.Link) bool {
	a := l.Attrs()
	return a.Alias == link.SharedAlias || a.Alias == "" && a.Group == unfinished
}

// ensure finds or makes a link of a kind, and finishes it. made is its name if it
// was not there.
func (s Segment) ensure(h *netlink.Handle, want netlink.Link) (l netlink.Link, made string, err error) {
	name := want.Attrs().Name
	l, err = find(h, name)
	if err != nil {
		return nil, "", err
	}
	if l != nil && (l.Type() != want.Type() || !mine(l)) {
		return nil, "", fmt.Errorf("the %s %s of somebody else %w; remove it, or give the segment another vni", l.Type(), name, ErrForeign)
	}
	if l == nil {
		if err := h.LinkAdd(want); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) {
				err = fmt.Errorf("the kernel has no %s support; try: modprobe %s", want.Type(), want.Type())
			}
			return nil, "", fmt.Errorf("create %s: %w", name, err)
		}
		if l, err = find(h, name); err == nil && l == nil {
			err = fmt.Errorf("%q: %w", name, link.ErrNotFound) // somebody has removed it
		}
		if err != nil {
			return nil, name, err
		}
		made = name
	}
	return l, made, s.finish(h, l)
}

// finish brings a link up, without an IPv6 address that nobody has asked for.
func (s Segment) finish(h *netlink.Handle, l netlink.Link) error {
	a := l.Attrs()
	mtu, err := s.mtu(h)
	if err != nil {
		return err
	}
	if a.MTU != mtu {
		if err := h.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set MTU %d of %s: %w", mtu, a.Name, err)
		}
	}
	if a.Flags&net.FlagUp == 0 {
		_ = netns.Sysctl("net/ipv6/conf/"+a.Name+"/addr_gen_mode", "1") // there may be no IPv6
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", a.Name, err)
		}
	}
	if a.Alias == link.SharedAlias {
		return nil
	}
	if err := h.LinkSetAlias(l, link.SharedAlias); err != nil {
		return fmt.Errorf("set alias of %s: %w", a.Name, err)
	}
	if err := h.LinkSetGroup(l, 0); err != nil {
		return fmt.Errorf("set group of %s: %w", a.Name, err)
	}
	return nil
}

// mtu is that of the device, as it is.
func (s Segment) mtu(h *netlink.Handle) (int, error) {
	l, err := find(h, Name(s.VNI))
	if err == nil && l == nil {
		err = fmt.Errorf("%q: %w", Name(s.VNI), link.ErrNotFound)
	}
	if err != nil {
		return 0, err
	}
	return l.Attrs().MTU, nil
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.Group = name, unfinished
	return a
}

func (s Segment) bridge(h *netlink.Handle) (made string, err error) {
	off := false // groups are flooded: nobody in the segment asks who listens
	b := &netlink.Bridge{LinkAttrs: attrs(BridgeName(s.VNI)), MulticastSnooping: &off}
	// One of its own: a bridge else takes the lowest of its ports', and its
	// address changes as they come and go.
	mac := bridgeMAC(s.MAC)
	b.HardwareAddr = mac[:]
	_, made, err = s.ensure(h, b)
	return made, err
}

// bridgeMAC differs from that of the device, and from others' bridges.
func bridgeMAC(of neigh.MAC) neigh.MAC {
	sum := digest.Sum256(of[:])
	m := neigh.MAC(sum[:6])
	m[0] = m[0]&^1 | 2
	return m
}

func (s Segment) leg(h *netlink.Handle) (made string, err error) {
	leg, err := find(h, LegName(s.VNI))
	if err != nil {
		return "", err
	}
	// The kernel would not say which of the two names is taken.
	if port, err := find(h, portName(s.VNI)); err != nil {
		return "", err
	} else if leg == nil && port != nil {
		return "", fmt.Errorf("the %s %s of somebody else %w; remove it, or give the segment another vni", port.Type(), portName(s.VNI), ErrForeign)
	}
	v := netlink.NewVeth(attrs(LegName(s.VNI)))
	v.PeerName = portName(s.VNI)
	// One that the kernel has chosen is soon changed by udev, and by then others
	// have been told that ipvlan on the leg is reached by it.
	v.HardwareAddr, v.PeerHardwareAddr = anyMAC(), anyMAC()
	_, made, err = s.ensure(h, v)
	return made, err
}

// anyMAC is one that nobody else has.
func anyMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // which never fails
	mac[0] = mac[0]&^1 | 2
	return mac
}

// join puts the ports into the bridge.
func (s Segment) join(h *netlink.Handle) (made string, err error) {
	bridge, err := find(h, BridgeName(s.VNI))
	if err != nil || bridge == nil {
		return "", errors.Join(err, link.ErrNotFound)
	}
	for _, name := range []string{portName(s.VNI), Name(s.VNI)} {
		port, err := find(h, name)
		if err == nil && port == nil {
			err = fmt.Errorf("%q: %w", name, link.ErrNotFound)
		}
		if err != nil {
			return "", err
		}
		if name != Name(s.VNI) {
			if err := s.finish(h, port); err != nil {
				return "", err
			}
		}
		if port.Attrs().MasterIndex == bridge.Attrs().Index {
			continue
		}
		if err := h.LinkSetMaster(port, bridge); err != nil {
			return "", fmt.Errorf("put %s into %s: %w", name, bridge.Attrs().Name, err)
		}
	}
	device, err := find(h, Name(s.VNI))
	if err != nil || device == nil {
		return "", errors.Join(err, link.ErrNotFound)
	}
	// What is as it should be is left alone: who hears that the bridge has another
	// setting looks at all again.
	have, err := h.LinkGetProtinfo(device)
	known := err == nil
	if !known || !have.NeighSuppress {
		if err := h.LinkSetBrNeighSuppress(device, true); err != nil {
			return "", fmt.Errorf("have the bridge answer for %s: %w", Name(s.VNI), err)
		}
	}
	if !known || have.Learning {
		if err := h.LinkSetLearning(device, false); err != nil {
			return "", fmt.Errorf("have the bridge learn nothing from %s: %w", Name(s.VNI), err)
		}
	}
	return "", nil
}

// Endpoint is an attachment in a segment.
type Endpoint struct {
	// Peer is the node that it is on, for people.
	Peer  string
	MAC   neigh.MAC
	Addrs []netip.Addr
	// VTEP is the node's address in the underlay; the zero value is this host.
	VTEP netip.Addr
}

// Segmented are the neighbours and FDB entries that lead to the endpoints of a
// segment, those of this host among them: what has an address in it asks nobody
// else. What is for all, or for whom nothing is known, goes to each of the VTEPs.
// They are of the devices that Devices names.
func Segmented(vni int, vteps []Peer, endpoints []Endpoint) (entries []neigh.Want) {
	for _, p := range vteps {
		entries = append(entries, neigh.Want{Peer: p.Name, Object: neigh.Entry{Kind: neigh.Self, Dev: Name(vni), Addr: p.VTEP}})
	}
	for _, e := range endpoints {
		add := func(o neigh.Entry) { entries = append(entries, neigh.Want{Peer: e.Peer, Object: o}) }
		port := Name(vni)
		if e.VTEP.IsValid() {
			add(neigh.Entry{Kind: neigh.Self, Dev: port, MAC: e.MAC, Addr: e.VTEP})
		} else {
			port = portName(vni)
		}
		add(neigh.Entry{Kind: neigh.Master, Dev: port, MAC: e.MAC})
		for _, a := range e.Addrs {
			add(neigh.Entry{Kind: neigh.Neighbour, Dev: BridgeName(vni), MAC: e.MAC, Addr: a})
		}
	}
	return entries
}

// Devices are those whose neighbours and FDB entries are a segment's.
func Devices(vni int) []string { return []string{BridgeName(vni), Name(vni), portName(vni)} }
