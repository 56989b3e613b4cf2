// Package plan says, without any I/O, what this host's routes to its peers have
// to be: a Snapshot is what the registry says of networks, a Plan what follows
// from it on this host.
//
//   - A record that cannot be read is not absent: what it said before holds as
//     long as that is remembered.
//   - A peer is routed to directly where one of its addresses is on a subnet that
//     this host is on, by a link on which neighbours are found by asking. A network
//     with VXLAN does so where it is told to, and the peer answers; the rest is
//     reached through VXLAN. Whoever is not reached in the best way is told with the
//     reason.
//   - Nothing outside the pools' subnets is ever routed.
package plan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// Snapshot is what the registry says of networks at one moment. It does not
// change.
type Snapshot struct {
	// Me is this node.
	Me lease.Node
	// Networks that are followed, by name.
	Networks []Network
	// Nodes that are there, and were not removed.
	Nodes map[lease.Node]Node
	// Odd are the records about networks that cannot be read.
	Odd []Odd
	// Partial: of one of them nothing is known from before, either, as when an
	// agent of an older version starts. What it says may be in the kernel.
	Partial bool
}

// Network is one way for nodes to reach each other's blocks of a pool.
type Network struct {
	Name, Backend, Pool string
	// VNI and Port of the backend vxlan; DirectRouting: it does without where it
	// can.
	VNI, Port     int
	DirectRouting bool
	// Prefixes are the pool's subnets.
	Prefixes []netip.Prefix
	// Blocks that somebody has, by address.
	Blocks []Block
	// Why there is nothing to route in it; "" where there is.
	Why string

	uuid   string         // of the pool
	unread []netip.Prefix // blocks of which nothing is known
}

// Block is a part of a pool, and the node that has it.
type Block struct {
	CIDR  netip.Prefix
	Owner lease.Node
}

// Node is what a node says of itself.
type Node struct {
	Name string
	// Addresses at which its peers reach it, the preferred one first.
	Addresses []netip.Addr
	// Why its record cannot be read; "" where it can.
	Why string
}

// Odd is a record that was skipped.
type Odd struct {
	// Network that it is about; "" where it is about any.
	Network string
	// Node that it is the record of, or the Block; else neither.
	Node  lease.Node
	Block netip.Prefix
	Why   string
}

// String says it for people.
func (o Odd) String() string {
	what := "network " + o.Network
	switch {
	case o.Block.IsValid():
		what = "block " + o.Block.String()
	case o.Node != "":
		what = "node " + string(o.Node)
	}
	return what + ": " + o.Why
}

// Network returns the network of a name, if it is followed.
func (s *Snapshot) Network(name string) (Network, bool) {
	i, ok := slices.BinarySearchFunc(s.Networks, name, func(n Network, name string) int { return cmp.Compare(n.Name, name) })
	if !ok {
		return Network{}, false
	}
	return s.Networks[i], true
}

// Choice reports whether there is a network whose peers are reached in one way or
// another, as they answer.
func (s *Snapshot) Choice() bool {
	return slices.ContainsFunc(s.Networks, func(n Network) bool { return n.DirectRouting && n.Why == "" })
}

// Blind reports whether there is a node of which no address is known, since its
// record cannot be read.
func (s *Snapshot) Blind() bool {
	for _, n := range s.Nodes {
		if n.Why != "" && len(n.Addresses) == 0 {
			return true
		}
	}
	return false
}

// Within returns the UUID of the pool that a subnet lies in, "" for none, and
// whether it has something of a block of this node's.
func (s *Snapshot) Within(subnet netip.Prefix) (pool string, own bool) {
	for _, n := range s.Networks {
		if !within(n.Prefixes, subnet) {
			continue
		}
		pool = n.uuid
		own = own || slices.ContainsFunc(n.Blocks, func(b Block) bool { return b.Owner == s.Me && b.CIDR.Overlaps(subnet) })
	}
	return pool, own
}

// Take reads a view for the node me. Follow are the names of the networks that
// are followed; nil means all. Before, unless nil, is the last Snapshot.
func Take(v *registry.View, me lease.Node, follow []string, before *Snapshot) *Snapshot {
	t := taker{v: v, before: before, s: &Snapshot{Me: me, Nodes: make(map[lease.Node]Node, len(v.Nodes))}, blocks: make(map[string][]netip.Prefix)}
	if before == nil || before.Me != me {
		t.before = &Snapshot{}
	}
	t.unread(follow)
	for name, n := range v.Networks {
		if follow == nil || slices.Contains(follow, name) {
			v := n.Value
			t.network(Network{Name: name, Backend: v.Backend, Pool: v.Pool, VNI: v.VNI, Port: v.Port, DirectRouting: v.DirectRouting})
		}
	}
	slices.SortFunc(t.s.Networks, func(a, b Network) int { return cmp.Compare(a.Name, b.Name) })
	t.oneEach()
	for id, n := range v.Nodes {
		if _, gone := v.Gone[id]; !gone {
			t.s.Nodes[id] = Node{Name: n.Value.Name, Addresses: n.Value.Addresses}
		}
	}
	slices.SortFunc(t.s.Odd, func(a, b Odd) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Node, b.Node), a.Block.Compare(b.Block))
	})
	return t.s
}

// taker makes a Snapshot.
type taker struct {
	v         *registry.View
	before, s *Snapshot
	blocks    map[string][]netip.Prefix // that cannot be read, by pool
	pools     map[string]error
}

// unread takes over what was known of records that cannot be read now.
func (t *taker) unread(follow []string) {
	t.pools = make(map[string]error)
	for _, n := range t.v.UnreadNodes() {
		known := t.before.Nodes[n]
		known.Why = t.v.Unread[record.NodeFolder+string(n)].Error()
		t.s.Nodes[n] = known
		t.s.Odd = append(t.s.Odd, Odd{Node: n, Why: known.Why})
	}
	t.s.Partial = t.s.Blind()
	for key, why := range t.v.Unread {
		if name, is := strings.CutPrefix(key, record.PoolFolder); is {
			t.pools[name] = why
		}
		if pool, cidr, is := record.ParseBlockKey(key); is && strings.HasPrefix(key, record.BlockFolder) {
			t.blocks[pool] = append(t.blocks[pool], cidr)
		}
	}
	for key, why := range t.v.Unread {
		name, is := strings.CutPrefix(key, record.NetworkFolder)
		if !is || follow != nil && !slices.Contains(follow, name) {
			continue
		}
		t.s.Odd = append(t.s.Odd, Odd{Network: name, Why: why.Error()})
		if known, ok := t.before.Network(name); ok {
			t.network(Network{Name: name, Backend: known.Backend, Pool: known.Pool, VNI: known.VNI, Port: known.Port, DirectRouting: known.DirectRouting})
		} else {
			t.s.Partial = true
		}
	}
}

// network adds what the view says of a network's pool.
func (t *taker) network(n Network) {
	before, _ := t.before.Network(n.Name)
	p, known := t.v.Pools[n.Pool]
	why, odd := t.pools[n.Pool]
	switch {
	case known && p.Value.Kind != record.Routed:
		n.Why = fmt.Sprintf("pool %q is shared: its addresses are on the hosts' own network, and need no routes", n.Pool)
	case known:
		n.uuid = p.Value.UUID
		for _, set := range p.Value.Sets {
			for _, r := range set {
				if s := r.Subnet.Masked(); !slices.Contains(n.Prefixes, s) {
					n.Prefixes = append(n.Prefixes, s)
				}
			}
		}
	case odd && before.Pool == n.Pool && before.uuid != "":
		n.uuid, n.Prefixes = before.uuid, before.Prefixes
		t.s.Odd = append(t.s.Odd, Odd{Network: n.Name, Why: fmt.Sprintf("pool %q: %v", n.Pool, why)})
	case odd:
		t.s.Partial = true
		n.Why = fmt.Sprintf("pool %q cannot be read: %v", n.Pool, why)
		t.s.Odd = append(t.s.Odd, Odd{Network: n.Name, Why: n.Why})
	default:
		n.Why = fmt.Sprintf("the registry has no pool %q", n.Pool)
	}
	if n.uuid != "" {
		t.take(&n, before)
	}
	t.s.Networks = append(t.s.Networks, n)
}

// oneEach: a host has one device of a VNI, which is that of the first network.
func (t *taker) oneEach() {
	of := make(map[int]string)
	for i := range t.s.Networks {
		n := &t.s.Networks[i]
		if n.Backend != record.VXLAN || n.Why != "" {
			continue
		}
		if first, taken := of[n.VNI]; taken {
			n.Why = fmt.Sprintf("vni %d is that of network %q, too; give one of them another", n.VNI, first)
		} else {
			of[n.VNI] = n.Name
		}
	}
}

// take adds the blocks of the pool.
func (t *taker) take(n *Network, before Network) {
	n.Blocks = make([]Block, 0, len(t.v.Blocks[n.uuid])+len(t.blocks[n.uuid]))
	for cidr, seen := range t.v.Blocks[n.uuid] {
		owner := seen.Block.Owner
		switch _, gone := t.v.Gone[owner]; {
		case owner == "" || gone: // nobody's, or a dead node's
		case !within(n.Prefixes, cidr):
			t.s.Odd = append(t.s.Odd, Odd{Network: n.Name, Node: owner, Block: cidr, Why: "it is in no subnet of the pool"})
		default:
			n.Blocks = append(n.Blocks, Block{cidr, owner})
		}
	}
	var then map[netip.Prefix]lease.Node
	if len(t.blocks[n.uuid]) > 0 && before.uuid == n.uuid {
		then = maps.Collect(func(yield func(netip.Prefix, lease.Node) bool) {
			for _, b := range before.Blocks {
				if !yield(b.CIDR, b.Owner) {
					return
				}
			}
		})
	}
	for _, cidr := range t.blocks[n.uuid] {
		owner := then[cidr]
		if _, gone := t.v.Gone[owner]; owner != "" && !gone {
			n.Blocks = append(n.Blocks, Block{cidr, owner})
		}
		// One of another size than the pool's was never a block.
		if is := t.v.Pools[n.Pool].Value.Bits(cidr.Addr()) == cidr.Bits(); is && (before.uuid != n.uuid || slices.Contains(before.unread, cidr)) {
			n.unread, t.s.Partial = append(n.unread, cidr), true
		}
		t.s.Odd = append(t.s.Odd, Odd{Network: n.Name, Node: owner, Block: cidr, Why: t.v.Unread[record.BlockKey(n.uuid, cidr)].Error()})
	}
	slices.SortFunc(n.Blocks, func(a, b Block) int { return a.CIDR.Compare(b.CIDR) })
}

// within reports whether a prefix lies in one of several.
func within(prefixes []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(s netip.Prefix) bool { return s.Bits() <= p.Bits() && s.Contains(p.Addr()) })
}
