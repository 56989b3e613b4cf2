package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/pkg/hostnet"
	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// Overlay is what a network with VXLAN needs on this host, beside routes.
type Overlay struct {
	// Device has the first address of each of this node's blocks: what the host
	// itself sends to containers of others is answered to one of them.
	Device vxlan.Device
	// Entries are the neighbours and FDB entries of all peers, those that are
	// routed to directly among them: they can be changed over to at any moment.
	Entries []neigh.Want
	// Partial: see Snapshot.
	Partial bool
}

// overlay adds a network whose peers are reached through VXLAN, at least those
// that are not reached directly. It goes by the address that peers know this
// node by first: they send to that, too.
func (m *maker) overlay(n Network) {
	if len(m.told) == 0 {
		m.network(n, nil)
		return
	}
	local := m.told[0]
	o := Overlay{Partial: m.s.Partial, Device: vxlan.Device{
		Network: n.Name, VNI: n.VNI, Port: n.Port, Parent: local.Dev, Local: local.Addr, MAC: vxlan.MAC(string(m.s.Me), n.Name),
	}}
	for _, b := range n.Blocks {
		if b.Owner == m.s.Me {
			gateway := vxlan.Gateway(b.CIDR)
			o.Device.Addrs = append(o.Device.Addrs, netip.PrefixFrom(gateway, gateway.BitLen()))
		}
	}
	m.network(n, &o)
	m.use(vxlan.Name(n.VNI))
	m.p.Overlays = append(m.p.Overlays, o)
}

// over has a peer that does not answer as a neighbour reached by its VTEP.
func (m *maker) over(p *Peer, node Node, o *Overlay) {
	if p.Dev != "" {
		switch m.answer(p.Near) {
		case hostnet.Found:
			return
		case hostnet.Silent:
			p.Reason = fmt.Sprintf("nobody answers at %s on %q", p.Address, p.Dev)
		default:
			p.Reason = fmt.Sprintf("%s has not answered yet on %q", p.Address, p.Dev)
		}
		p.Address, p.Dev = netip.Addr{}, ""
	}
	if o == nil {
		p.Reason = "this node has no address that VXLAN could be sent from"
		return
	}
	addrs, why := node.addresses(o.Device.Local.Is6())
	switch {
	case why != "":
		p.Reason = why
	case m.own[addrs[0]]:
		p.Reason = fmt.Sprintf("%s is an address of this node, too", addrs[0])
	default:
		p.Address, p.Dev, p.VXLAN = addrs[0], vxlan.Name(o.Device.VNI), true
	}
}

// tunnel adds the entries that lead to peers, and the routes of those that are
// not reached in another way.
func (m *maker) tunnel(o *Overlay, peers []Peer) {
	var src [2]netip.Addr // IPv4, IPv6
	for _, a := range slices.Backward(o.Device.Addrs) {
		if a.Addr().Is4() {
			src[0] = a.Addr()
		} else {
			src[1] = a.Addr()
		}
	}
	at := make(map[lease.Node][]int)
	var nodes []lease.Node
	for i, p := range peers {
		if _, known := at[p.Node]; !known {
			nodes = append(nodes, p.Node)
		}
		at[p.Node] = append(at[p.Node], i)
	}
	for _, id := range nodes {
		addrs, why := m.s.Nodes[id].addresses(o.Device.Local.Is6())
		if why != "" || m.own[addrs[0]] {
			continue
		}
		node := vxlan.Peer{Name: Who(peers[at[id][0]]), VTEP: addrs[0], MAC: vxlan.MAC(string(id), o.Device.Network)}
		for _, i := range at[id] {
			node.Blocks = append(node.Blocks, peers[i].Blocks...)
		}
		routes, entries := vxlan.Routed(vxlan.Name(o.Device.VNI), []vxlan.Peer{node}, src)
		o.Entries = append(o.Entries, entries...)
		for _, r := range routes {
			for _, i := range at[id] {
				if p := &peers[i]; p.VXLAN && slices.Contains(p.Blocks, r.Object.Dst) {
					p.Wants = append(p.Wants, m.want(r))
				}
			}
		}
	}
}
