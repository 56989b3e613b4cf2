package live

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// ParseAlias tells the attachment that a link's alias names; ok is false for
// a link that is not one of this suite's.
func ParseAlias(alias string) (network, containerID string, ok bool) {
	parts := strings.Split(alias, ":")
	if len(parts) != 3 || parts[0] != "underlay" || parts[1] == "" || parts[2] == "" {
		return "", "", false
	}
	return parts[1], parts[2], true
}

// Attachments finds what is attached in namespaces other than this process's
// own, as a ledger would have it: the pool is named like the network.
// networks, unless empty, are the only ones of which attachments are wanted.
//
// Addresses of links that are not this suite's may still be from its IPAM:
// other main plugins use it too. They are found without an attachment, after
// the others, unless one of these has the same address.
func (n *Namespaces) Attachments(networks []string) ([]ledger.Found, error) {
	h, err := lookAtHost()
	if err != nil {
		return nil, err
	}
	defer h.ns.Close()
	var ours, others []ledger.Found
	held := make(map[netip.Addr]bool)
	for _, at := range n.all {
		if at.Dev == h.self.Dev && at.Inode == h.self.Inode {
			continue
		}
		var there []ledger.Found
		err := In(at, func(k *link.Handle) (err error) {
			there, err = h.lookInto(k, at)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, f := range there {
			if f.Attachment == (ipam.Attachment{}) {
				others = append(others, f)
				continue
			}
			for _, a := range f.Addresses {
				held[a.Prefix.Addr()] = true
			}
			network, _, _ := strings.Cut(f.Attachment.Network, "/")
			if len(networks) == 0 || slices.Contains(networks, network) {
				ours = append(ours, f)
			}
		}
	}
	others = slices.DeleteFunc(others, func(f ledger.Found) bool { return held[f.Addresses[0].Prefix.Addr()] })
	slices.SortFunc(ours, func(a, b ledger.Found) int { return cmp.Compare(a.Attachment.String(), b.Attachment.String()) })
	slices.SortFunc(others, func(a, b ledger.Found) int { return a.Addresses[0].Prefix.Addr().Compare(b.Addresses[0].Prefix.Addr()) })
	return append(ours, others...), nil
}

// host is the namespace of this process, which parents and shared links are in.
type host struct {
	self    ipam.Netns
	ns      *netns.NS
	byIndex map[int]link.Link
	// reach has what the host has routes to through each shared link, by name.
	reach map[string]map[netip.Addr]bool
}

// lookAtHost opens the namespace, besides; close it.
func lookAtHost() (_ *host, err error) {
	const here = "/proc/thread-self/ns/net"
	h := &host{
		self:    client.Identify(here),
		byIndex: make(map[int]link.Link),
		reach:   make(map[string]map[netip.Addr]bool),
	}
	if h.ns, err = netns.Open(here); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			h.ns.Close()
		}
	}()
	k, err := link.Open()
	if err != nil {
		return nil, err
	}
	defer k.Close()
	links, err := k.List()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		h.byIndex[l.Index] = l
		if l.Alias != link.SharedAlias {
			continue
		}
		routes, err := k.Routes(l.Index)
		if err != nil {
			return nil, err
		}
		h.reach[l.Name] = make(map[netip.Addr]bool)
		for _, r := range routes {
			h.reach[l.Name][r.Dst.Addr()] = true
		}
	}
	return h, nil
}

// uses tells from the host's side what a link in a container, whose parent is
// on the host, shares there.
func (h *host) uses(l link.Link, addrs []netip.Prefix) (u ipam.Uses) {
	carrier, ok := h.byIndex[l.Parent]
	if !ok {
		return u // it has gone meanwhile
	}
	u.Parent, u.Port = carrier.Name, l.Port()
	u.Segment.VNI = carrier.Segment()
	if parent, ok := h.byIndex[carrier.Parent]; ok && carrier.OwnVLAN() {
		u.Parent, u.VLAN = parent.Name, carrier.VLAN
	}
	reached := h.reach[link.SiblingName(carrier.Name)]
	for _, a := range addrs {
		u.HostAccess = u.HostAccess || reached[a.Addr()]
	}
	if !u.Any() {
		return ipam.Uses{}
	}
	return u
}

// lookInto finds what is attached in one namespace.
func (h *host) lookInto(k *link.Handle, at ipam.Netns) (found []ledger.Found, err error) {
	links, err := k.List()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		addrs, err := addresses(k, l)
		if err != nil {
			return nil, err
		}
		network, containerID, ours := ParseAlias(l.Alias)
		if !ours {
			for _, a := range addrs {
				found = append(found, ledger.Found{
					Reason: fmt.Sprintf("%s in %s", l.Name, at.Path), Netns: at,
					Addresses: []ipam.Address{{Prefix: a}},
				})
			}
			continue
		}
		f := ledger.Found{
			Attachment: ipam.Attachment{Network: network, ContainerID: containerID, IfName: l.Name},
			Netns:      at, MAC: l.MAC.String(), Pool: network,
		}
		onHost, err := k.ParentIn(l, h.ns.Fd())
		if err != nil {
			return nil, err
		}
		if onHost {
			f.Uses = h.uses(l, addrs)
		}
		routes, err := k.Routes(l.Index)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			f.Addresses = append(f.Addresses, ipam.Address{Prefix: a, Gateway: gateway(routes, a)})
		}
		found = append(found, f)
		made, is, err := h.segment(f)
		if err != nil {
			return nil, err
		}
		if is {
			found = append(found, made)
		}
	}
	return found, nil
}

// segment is what the plugin before f in the chain has on record of an attachment
// that is in a VXLAN segment: the segment goes with the last of these.
func (h *host) segment(f ledger.Found) (made ledger.Found, is bool, err error) {
	vni := f.Uses.Segment.VNI
	if vni == 0 {
		return made, false, nil
	}
	d, is, err := vxlan.Find(h.ns, vni)
	if err != nil || !is {
		return made, false, err
	}
	made = ledger.Found{Attachment: f.Attachment, Netns: f.Netns, Uses: ipam.Uses{Parent: d.Parent, Segment: ipam.Segment{VNI: vni, Port: d.Port}}}
	made.Attachment.Network += "/vxlan"
	return made, true, nil
}

// addresses are those of a link that address management may have given it:
// none of loopback and link-local ones, and none that the kernel has made of
// the MAC and a router's prefix (RFC 4862).
func addresses(k *link.Handle, l link.Link) ([]netip.Prefix, error) {
	all, err := k.Addrs(l.Index)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range all {
		if x := a.Addr(); !x.IsLoopback() && !x.IsLinkLocalUnicast() && !fromMAC(x, l.MAC) {
			out = append(out, a.Prefix)
		}
	}
	return out, nil
}

// fromMAC reports whether the lower half of an IPv6 address is the modified
// EUI-64 of a MAC (RFC 4291, appendix A), or what the kernel makes instead for
// links that share one, ipvlan's: the number of the link between the halves of
// the MAC, and the bit as it is.
func fromMAC(a netip.Addr, mac net.HardwareAddr) bool {
	if !a.Is6() || len(mac) != 6 {
		return false
	}
	b := a.As16()
	low, middle := b[8:], [2]byte{b[11], b[12]}
	if !slices.Equal(low[1:3], mac[1:3]) || !slices.Equal(low[5:], mac[3:]) {
		return false
	}
	if middle == [2]byte{0xff, 0xfe} {
		return low[0] == mac[0]^2
	}
	return low[0] == mac[0]
}

// gateway is that of the default route in the subnet of an address.
func gateway(routes []link.Route, subnet netip.Prefix) netip.Addr {
	for _, r := range routes {
		if r.Dst.Bits() == 0 && subnet.Contains(r.GW) {
			return r.GW
		}
	}
	return netip.Addr{}
}
