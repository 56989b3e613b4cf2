package registry

import (
	"net/netip"
	"strings"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// News is whom a change of a view is about.
type News struct {
	// All: everybody.
	All bool
	// Nodes that have something else of a block than before.
	Nodes map[lease.Node]bool
	// Wants are the pools, by UUID, for which a flag went up: that is about those
	// who have something to give, and about the node itself.
	Wants map[string]bool
	// Peers: how nodes reach each other may have changed, since there is another
	// network, pool or node, or a block has another owner.
	Peers bool
}

// For reports whether a node has to look at the view again. Most changes are of
// other nodes' blocks, and in a large cluster there is one all the time.
func (n News) For(node lease.Node) bool { return n.All || n.Nodes[node] }

// news applies a batch and says whom it is about.
func (v *View) news(b Batch) (n News) {
	n, v.Untold = v.Untold, News{}
	if n.Nodes == nil {
		n.Nodes = make(map[lease.Node]bool)
	}
	n.Wants = make(map[string]bool)
	blocks, applied := make(map[string]lease.Block), false
	look := func(key string) {
		switch folder := key[:strings.LastIndexByte(key, '/')+1]; {
		case strings.HasPrefix(key, record.BlockFolder):
			if pool, cidr, ok := record.ParseBlockKey(key); ok {
				b := v.Blocks[pool][cidr].Block
				before, looked := blocks[key]
				if looked {
					differ(before, b, n.Nodes)
				}
				n.Peers = n.Peers || looked && before.Owner != b.Owner || v.Unread[key] != nil
				blocks[key] = b
			}
		case folder == record.NodeFolder:
			// A node that joins concerns nobody; one that has yet to assert what
			// it has stops all, and all go on when it has (Present).
			n.Peers = true
			node, known := v.Nodes[lease.Node(key[len(folder):])]
			n.All = n.All || v.Unread[key] != nil || known && node.Value.Asserted < v.Cluster.Value.Epoch.Number
		case strings.HasPrefix(key, record.WantFolder):
			pool, node, _ := strings.Cut(key[len(record.WantFolder):], "/")
			n.Nodes[lease.Node(node)] = true
			if _, up := v.Wants[pool][lease.Node(node)]; up && applied {
				n.Wants[pool] = true
			}
		default:
			n.All = true
			n.Peers = n.Peers || folder == record.NetworkFolder || folder == record.PoolFolder || folder == record.GoneFolder
		}
	}
	for _, i := range b.Items {
		look(i.Key)
	}
	v.Apply(b)
	applied = true
	for _, i := range b.Items {
		look(i.Key)
	}
	return n
}

// differ notes the nodes that have something else by one record of a block than
// by another.
func differ(a, b lease.Block, nodes map[lease.Node]bool) {
	note := func(n lease.Node) {
		if n != "" {
			nodes[n] = true
		}
	}
	if a.Owner != b.Owner {
		note(a.Owner)
		note(b.Owner)
	}
	for _, way := range [2][2]lease.Block{{a, b}, {b, a}} {
		for addr, e := range way[0].Given {
			if other := way[1].At(addr); other != e {
				note(e.Node)
				note(other.Node)
			}
		}
	}
}

// Learn takes in the record of a block that did not come by the watch.
func (v *View) Learn(pool string, s lease.Seen) {
	if s.Rev == 0 {
		return
	}
	if v.Blocks[pool] == nil {
		v.Blocks[pool] = make(map[netip.Prefix]lease.Seen)
	}
	if v.Untold.Nodes == nil {
		v.Untold.Nodes = make(map[lease.Node]bool)
	}
	before := v.Blocks[pool][s.Block.CIDR].Block
	differ(before, s.Block, v.Untold.Nodes)
	v.Untold.Peers = v.Untold.Peers || before.Owner != s.Block.Owner
	v.Blocks[pool][s.Block.CIDR] = s
}
