package vxlan

import (
	"net/netip"

	"github.com/underlay-cni/underlay/pkg/digest"
	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/route"
)

// MAC is that of a node's device in a network: the same on all hosts and after
// each start, so that nobody need tell it.
func MAC(node, network string) neigh.MAC {
	sum := digest.Sum256([]byte(node + "\x00" + network))
	m := neigh.MAC(sum[:6])
	m[0] = m[0]&^1 | 2 // of one station, and administered locally (IEEE 802)
	return m
}

// Peer is another node of a network.
type Peer struct {
	// Name is for people.
	Name string
	// VTEP is the node's address in the underlay, MAC that of its device.
	VTEP netip.Addr
	MAC  neigh.MAC
	// Blocks are what it leases of the network's pool.
	Blocks []netip.Prefix
}

// Gateway is the first usable address of a block, which stands for the node that
// leases it.
func Gateway(block netip.Prefix) netip.Addr { return block.Masked().Addr().Next() }

// Routed are the routes to what peers lease, through the device of a name, and
// the neighbours and FDB entries that take them there: of each peer one of each,
// and more only where it has more blocks or both families. src are addresses of
// this host's, IPv4 and IPv6, that the peers can answer to; the zero value leaves
// the choice to the kernel.
func Routed(dev string, peers []Peer, src [2]netip.Addr) (routes []route.Want, entries []neigh.Want) {
	for _, p := range peers {
		var via [2]netip.Addr // IPv4, IPv6
		for _, b := range p.Blocks {
			i := 0
			if b.Addr().Is6() {
				i = 1
			}
			if !via[i].IsValid() {
				via[i] = Gateway(b)
				entries = append(entries, neigh.Want{Peer: p.Name, Object: neigh.Entry{Kind: neigh.Neighbour, Dev: dev, MAC: p.MAC, Addr: via[i]}})
			}
			routes = append(routes, route.Want{Peer: p.Name, Object: route.Route{Dst: b, Via: via[i], Dev: dev, Onlink: true, Src: src[i]}})
		}
		if len(p.Blocks) > 0 {
			entries = append(entries, neigh.Want{Peer: p.Name, Object: neigh.Entry{Kind: neigh.Self, Dev: dev, MAC: p.MAC, Addr: p.VTEP}})
		}
	}
	return routes, entries
}
