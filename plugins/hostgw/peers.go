package main

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"

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
		prefix, err := netip.ParsePrefix(p.Prefix)
		if err != nil {
			return nil, invalid("peers[%d].prefix: %q is no prefix, such as 10.5.2.0/24", i, p.Prefix)
		}
		via, err := netip.ParseAddr(p.Via)
		if err != nil {
			return nil, invalid("peers[%d].via: %q is no IP address", i, p.Via)
		}
		j, twice := first[prefix]
		first[prefix] = i
		switch {
		case prefix.Addr().Is4In6():
			return nil, invalid("peers[%d].prefix: %s is IPv4 written as IPv6", i, prefix)
		case prefix.Addr().IsMulticast() || prefix.Addr().IsLoopback() || prefix.Addr().IsLinkLocalUnicast():
			return nil, invalid("peers[%d].prefix: %s has no containers of another host", i, prefix)
		case prefix != prefix.Masked():
			return nil, invalid("peers[%d].prefix: %s is an address in %s; write that", i, prefix, prefix.Masked())
		case prefix.Bits() == 0:
			return nil, invalid("peers[%d].prefix: %s would take the place of the host's default route", i, prefix)
		case twice:
			return nil, invalid("peers[%d].prefix: %s is that of peers[%d], too", i, prefix, j)
		case via.Is4In6():
			return nil, invalid("peers[%d].via: %s is IPv4 written as IPv6; write %s", i, via, via.Unmap())
		case via.Zone() != "":
			return nil, invalid("peers[%d].via: %s has a zone; write the address alone, of a kind that is known on all segments", i, via)
		case via.Is4() != prefix.Addr().Is4():
			return nil, invalid("peers[%d].via: %s is of another address family than %s", i, via, prefix)
		case via.IsLinkLocalUnicast() || via.IsMulticast() || via.IsUnspecified() || via.IsLoopback() || via == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			return nil, invalid("peers[%d].via: %s is no address that another host is known by", i, via)
		}
		out = append(out, static.Peer{Prefix: prefix, Via: via})
	}
	return out, nil
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
