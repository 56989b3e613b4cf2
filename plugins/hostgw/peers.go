package main

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/static"
)

// peers reads Peers.
func (c *config) peers() (out []static.Peer, err error) {
	first := make(map[netip.Prefix]int)
	for i, p := range c.Peers {
		prefix, perr := netip.ParsePrefix(p.Prefix)
		via, verr := netip.ParseAddr(p.Via)
		j, twice := first[prefix]
		first[prefix] = i
		key, value, why := "prefix", p.Prefix, ""
		switch a := prefix.Addr(); {
		case perr != nil:
			value, why = strconv.Quote(value), "is no prefix, such as 10.5.2.0/24"
		case a.Is4In6():
			why = "is IPv4 written as IPv6"
		case a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast():
			why = "has no containers of another host"
		case prefix != prefix.Masked():
			why = "is an address in " + prefix.Masked().String() + "; write that"
		case prefix.Bits() == 0:
			why = "would take the place of the host's default route"
		case twice:
			why = "is that of peers[" + strconv.Itoa(j) + "], too"
		default:
			key, value = "via", p.Via
			if verr != nil {
				value, why = strconv.Quote(value), "is no IP address"
			} else {
				why = noHost(via, a.Is4())
			}
		}
		if why != "" {
			return nil, invalid("peers[%d].%s: %s %s", i, key, value, why)
		}
		out = append(out, static.Peer{Prefix: prefix, Via: via})
	}
	return out, nil
}

// noHost says why an address is none that another host is known by.
func noHost(via netip.Addr, is4 bool) string {
	switch {
	case via.Is4In6():
		return "is IPv4 written as IPv6; write " + via.Unmap().String()
	case via.Zone() != "":
		return "has a zone; write the address alone, of a kind that is known on all segments"
	case via.Is4() != is4:
		return "is of another address family than the prefix"
	case via.IsLinkLocalUnicast() || via.IsMulticast() || via.IsUnspecified() || via.IsLoopback() || via == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is no address that another host is known by"
	}
	return ""
}

// network is what the plugin itself keeps of a network that no agent does.
func (c *config) network() (static.Network, error) {
	peers, err := c.peers()
	return static.Network{Name: c.Name, Peers: peers, Masquerade: c.IPMasq}, err
}

func (c *config) host(h *link.Handle) static.Host {
	dir := filepath.Join(attach.Client(&c.Config).Options().RunDir, "static.d")
	return static.Host{Dir: dir, Links: h, Notes: os.Stderr, FixDrop: c.FixForwardDrop}
}

// joinNetwork makes what an attachment with these addresses needs of its
// network, if no agent does.
func (c *config) joinNetwork(ctx context.Context, h *link.Handle, att ipam.Attachment, addrs []netip.Prefix) error {
	if c.cluster() != "" {
		return nil
	}
	n, err := c.network()
	if err != nil {
		return err
	}
	a := attachmentOf(att)
	for _, p := range addrs {
		a.Prefixes = append(a.Prefixes, p.Masked())
	}
	if err := c.host(h).Join(ctx, n, a); err != nil {
		return cni.Errorf(cni.CodeParent, "%w", err)
	}
	return nil
}

// leaveNetwork takes that back. Whether it was there is not asked: the
// configuration may have been another one.
func (c *config) leaveNetwork(ctx context.Context, h *link.Handle, att ipam.Attachment) error {
	return c.host(h).Leave(ctx, c.Name, attachmentOf(att))
}

func attachmentOf(att ipam.Attachment) static.Attachment {
	return static.Attachment{ContainerID: att.ContainerID, IfName: att.IfName}
}

func invalid(format string, args ...any) error {
	return cni.Errorf(types.ErrInvalidNetworkConfig, format, args...)
}
