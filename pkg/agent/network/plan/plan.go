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
	// Peers by network, name, and family.
	Peers []Peer
	// Devs are the interfaces by which peers are reached; Six of them with IPv6.
	Devs, Six []string
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
	// Address of the peer, and the interface by which it is reached; zero where
	// Reason says why it is not.
	Address netip.Addr
	Dev     string
	Reason  string
	// Wants are the indexes of its routes in the Plan.
	Wants []int
}

// Make plans for a host that is in state h. Parents are the interfaces that are
// tried first, in order.
func Make(s *Snapshot, h hostnet.State, parents []string) *Plan {
	m := maker{s: s, p: &Plan{}, own: make(map[netip.Addr]bool), at: make(map[route.Route]int)}
	for _, n := range s.Networks {
		m.p.Forward = append(m.p.Forward, n.Prefixes...)
	}
	m.subnets(h, parents)
	for _, n := range s.Networks {
		if n.Backend == record.HostGW && n.Why == "" {
			m.network(n)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		m.p.Nodes = append(m.p.Nodes, s.Nodes[id].Addresses...)
	}
	return m.p
}

type maker struct {
	s *Snapshot
	p *Plan
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

// network adds a network's routes.
func (m *maker) network(n Network) {
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
			m.p.Peers = append(m.p.Peers, m.peer(n, k.node, k.six))
		}
		m.p.Peers[i].Blocks = append(m.p.Peers[i].Blocks, b.CIDR)
	}
	peers := m.p.Peers[first:]
	slices.SortFunc(peers, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Node, b.Node), a.Blocks[0].Addr().Compare(b.Blocks[0].Addr()))
	})
	for i := range peers {
		p := &peers[i]
		if p.Reason != "" {
			continue
		}
		for _, b := range p.Blocks {
			p.Wants = append(p.Wants, m.want(route.Want{Peer: who(*p), Object: route.Route{Dst: b, Via: p.Address, Dev: p.Dev}}))
		}
		m.use(p.Dev, p.Address.Is6())
	}
}

// who is a peer for people.
func who(p Peer) string {
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

func (m *maker) use(dev string, six bool) {
	if !slices.Contains(m.p.Devs, dev) {
		m.p.Devs = append(m.p.Devs, dev)
	}
	if six && !slices.Contains(m.p.Six, dev) {
		m.p.Six = append(m.p.Six, dev)
	}
}

// peer decides how a node is reached in a family.
func (m *maker) peer(n Network, id lease.Node, six bool) Peer {
	node, known := m.s.Nodes[id]
	p := Peer{Network: n.Name, Node: id, Name: node.Name}
	family := "IPv4"
	if six {
		family = "IPv6"
	}
	var addrs []netip.Addr
	for _, a := range node.Addresses {
		if a.Is6() == six {
			addrs = append(addrs, a)
		}
	}
	switch {
	case !known:
		p.Reason = "the registry has no record of the node"
	case len(addrs) == 0 && node.Why != "":
		p.Reason = "the record of the node cannot be read: " + node.Why
	case len(addrs) == 0:
		p.Reason = "the node has told no " + family + " address"
	default:
		m.reach(&p, addrs)
	}
	return p
}

// reach finds the first address that is on a subnet of this host: on one of its
// parents, or else on any link.
func (m *maker) reach(p *Peer, addrs []netip.Addr) {
	why := fmt.Sprintf("%s is on no subnet that this node is on", addrs[0])
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
					return
				}
			}
		}
	}
	p.Reason = why
}
