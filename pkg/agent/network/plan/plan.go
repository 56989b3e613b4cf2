package plan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/hostnet"
	"github.com/underlay-cni/underlay/pkg/route"
)

// OwnMetric is that of the routes to nowhere of this node's own blocks: any
// other route wins, and what no container has is answered instead of sent back
// to where it came from.
const OwnMetric = 1 << 20

// Plan is what has to be on this host.
type Plan struct {
	Wants []route.Want
	// Overlays are the VXLAN devices, by VNI.
	Overlays []Overlay
	// Peers by network, name, and family.
	Peers []Peer
	// Devs are the interfaces by which peers are reached.
	Devs []string
	// Forward are the subnets of all pools, and Nodes the addresses of all nodes.
	Forward []netip.Prefix
	Nodes   []netip.Addr
}

// Peer is a node that has blocks of a network, and how it is reached in one
// address family.
type Peer struct {
	Network string
	Node    lease.Node
	Name    string
	Blocks  []netip.Prefix
	// Address of the peer, and the interface by which it is reached: with VXLAN,
	// of its VTEP, and this host's device. Zero where it is not reached.
	Address netip.Addr
	Dev     string
	VXLAN   bool
	// Reason says why the peer is not reached, or not directly.
	Reason string
	// Near is the peer as a neighbour of this host, whose answer matters; zero
	// where it is none.
	Near hostnet.Neighbour
	// Wants are the indexes of its routes in the Plan.
	Wants []int
}

// Make plans for a host that is in state h. Parents are the interfaces that are
// tried first, in order, and the addresses of which peers know this node by;
// answer tells what is known of a neighbour.
func Make(s *Snapshot, h hostnet.State, parents []string, answer func(hostnet.Neighbour) hostnet.Answer) *Plan {
	m := maker{s: s, p: &Plan{}, answer: answer, own: make(map[netip.Addr]bool), at: make(map[route.Route]int)}
	for _, n := range s.Networks {
		m.p.Forward = append(m.p.Forward, n.Prefixes...)
	}
	m.subnets(h, parents)
	m.told = Addresses(h, parents)
	for _, n := range s.Networks {
		switch {
		case n.Why != "":
		case n.Backend == record.HostGW:
			m.network(n, nil)
		case n.Backend == record.VXLAN:
			m.overlay(n)
		}
	}
	slices.SortFunc(m.p.Overlays, func(a, b Overlay) int { return cmp.Compare(a.Device.VNI, b.Device.VNI) })
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		m.p.Nodes = append(m.p.Nodes, s.Nodes[id].Addresses...)
	}
	return m.p
}

// Address of this host, and the interface that has it.
type Address struct {
	netip.Addr
	Dev string
}

// Addresses are those of interfaces that last, the preferred one first. Of an
// interface, those of IPv4 come first, the primary one before others; the kernel
// has no order for those of IPv6 that would stay.
func Addresses(h hostnet.State, devs []string) (out []Address) {
	for _, dev := range devs {
		l, _ := h.Link(dev)
		var four, six []netip.Addr
		for _, a := range l.Addrs {
			switch {
			case a.Passing:
			case a.Addr().Is4():
				four = append(four, a.Addr())
			default:
				six = append(six, a.Addr())
			}
		}
		slices.SortFunc(six, netip.Addr.Compare)
		for _, a := range slices.Concat(four, six) {
			if !slices.ContainsFunc(out, func(o Address) bool { return o.Addr == a }) {
				out = append(out, Address{a, dev})
			}
		}
	}
	return out
}

type maker struct {
	s      *Snapshot
	p      *Plan
	answer func(hostnet.Neighbour) hostnet.Answer
	told   []Address // at which peers reach this node
	// preferred are the parents' subnets, and others those of the rest.
	preferred, others []subnet
	own               map[netip.Addr]bool
	at                map[route.Route]int // index in Wants
}

// subnet is one that this host is on.
type subnet struct {
	netip.Prefix
	link hostnet.Link
}

// subnets lists those of the host, but for those of pools: a node's address is
// in none of them.
func (m *maker) subnets(h hostnet.State, parents []string) {
	list := func(l hostnet.Link) (out []subnet) {
		for _, a := range l.Addrs {
			m.own[a.Addr()] = true
			p := a.Masked()
			if !a.IsSingleIP() && !slices.ContainsFunc(m.p.Forward, p.Overlaps) {
				out = append(out, subnet{p, l})
			}
		}
		return out
	}
	for _, name := range parents {
		if l, ok := h.Link(name); ok {
			m.preferred = append(m.preferred, list(l)...)
		}
	}
	for _, l := range h.Links {
		if !slices.Contains(parents, l.Name) {
			m.others = append(m.others, list(l)...)
		}
	}
	// A smaller subnet within a larger one is the nearer.
	slices.SortStableFunc(m.others, func(a, b subnet) int { return cmp.Compare(b.Bits(), a.Bits()) })
}

// network adds a network's routes, through o where there is no direct one.
func (m *maker) network(n Network, o *Overlay) {
	type key struct {
		node lease.Node
		six  bool
	}
	of := make(map[key]int)
	first := len(m.p.Peers)
	for _, b := range n.Blocks {
		if b.Owner == m.s.Me {
			m.want(route.Want{Object: route.Route{Dst: b.CIDR, Unreachable: true, Metric: OwnMetric}})
			continue
		}
		k := key{b.Owner, b.CIDR.Addr().Is6()}
		i, known := of[k]
		if !known {
			i = len(m.p.Peers)
			of[k] = i
			m.p.Peers = append(m.p.Peers, m.peer(n, k.node, k.six, o))
		}
		m.p.Peers[i].Blocks = append(m.p.Peers[i].Blocks, b.CIDR)
	}
	peers := m.p.Peers[first:]
	slices.SortFunc(peers, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Node, b.Node), a.Blocks[0].Addr().Compare(b.Blocks[0].Addr()))
	})
	for i := range peers {
		p := &peers[i]
		if p.Dev == "" || p.VXLAN {
			continue
		}
		for _, b := range p.Blocks {
			p.Wants = append(p.Wants, m.want(route.Want{Peer: Who(*p), Object: route.Route{Dst: b, Via: p.Address, Dev: p.Dev}}))
		}
		m.use(p.Dev)
	}
	if o != nil {
		m.tunnel(o, peers)
	}
}

// Who is a peer for people.
func Who(p Peer) string {
	if p.Name != "" {
		return p.Name
	}
	return string(p.Node)
}

// want adds a route, and returns its index. Two networks of one pool have the
// same.
func (m *maker) want(w route.Want) int {
	i, known := m.at[w.Object]
	if !known {
		i = len(m.p.Wants)
		m.at[w.Object] = i
		m.p.Wants = append(m.p.Wants, w)
	}
	return i
}

func (m *maker) use(dev string) {
	if !slices.Contains(m.p.Devs, dev) {
		m.p.Devs = append(m.p.Devs, dev)
	}
}

// peer decides how a node is reached in a family.
func (m *maker) peer(n Network, id lease.Node, six bool, o *Overlay) Peer {
	node, known := m.s.Nodes[id]
	p := Peer{Network: n.Name, Node: id, Name: node.Name}
	if !known {
		p.Reason = "the registry has no record of the node"
		return p
	}
	if n.Backend == record.HostGW || n.DirectRouting {
		m.reach(&p, node, six)
	}
	if n.Backend == record.VXLAN {
		m.over(&p, node, o)
	}
	return p
}

// addresses are those of a node in a family, or why there are none.
func (n Node) addresses(six bool) (addrs []netip.Addr, why string) {
	for _, a := range n.Addresses {
		if a.Is6() == six {
			addrs = append(addrs, a)
		}
	}
	switch {
	case len(addrs) > 0:
		return addrs, ""
	case n.Why != "":
		return nil, "the record of the node cannot be read: " + n.Why
	}
	return nil, "the node has told no " + family(six) + " address"
}

func family(six bool) string {
	if six {
		return "IPv6"
	}
	return "IPv4"
}

// reach finds the first address that is on a subnet of this host: on one of its
// parents, or else on any link.
func (m *maker) reach(p *Peer, node Node, six bool) {
	addrs, why := node.addresses(six)
	if why != "" {
		p.Reason = why
		return
	}
	why = fmt.Sprintf("%s is on no subnet that this node is on", addrs[0])
	for _, subnets := range [][]subnet{m.preferred, m.others} {
		for _, a := range addrs {
			for _, s := range subnets {
				switch {
				case !s.Contains(a):
				case m.own[a]:
					why = fmt.Sprintf("%s is an address of this node, too", a)
				case !s.link.Up:
					why = fmt.Sprintf("%s is on the subnet of %q, which is down", a, s.link.Name)
				case !s.link.Broadcast:
					why = fmt.Sprintf("%s is on the subnet of %q, on which no neighbour can be asked for", a, s.link.Name)
				default:
					p.Address, p.Dev = a, s.link.Name
					p.Near = hostnet.Neighbour{Dev: p.Dev, Addr: a}
					return
				}
			}
		}
	}
	p.Reason = why
}
