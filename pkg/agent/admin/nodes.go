package admin

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// defaultRest is how long the addresses of a removed node stay out of use: its
// containers may be running yet when an operator believes that it is off.
const defaultRest = 10 * time.Minute

func clusterNodes(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	out := []api.ClusterNode{}
	alive, err := reg.Alive(r.Context())
	if err != nil {
		return nil, err
	}
	for n, leased := range leasedByNode(v) {
		out = append(out, describe(v, n, leased, alive[n]))
	}
	slices.SortFunc(out, func(a, b api.ClusterNode) int {
		return strings.Compare(a.Name+"\x00"+a.Node, b.Name+"\x00"+b.Node)
	})
	return out, nil
}

// leasedByNode counts, of all nodes that the registry names, what each has of
// each pool, by UUID.
func leasedByNode(v *registry.View) map[lease.Node]map[string]int {
	out := make(map[lease.Node]map[string]int)
	know := func(n lease.Node) {
		if out[n] == nil {
			out[n] = make(map[string]int)
		}
	}
	for n := range v.Nodes {
		know(n)
	}
	for _, n := range v.UnreadNodes() {
		know(n)
	}
	for n := range v.Gone {
		know(n)
	}
	for pool, blocks := range v.Blocks {
		p, known := v.Pool(pool)
		for _, s := range blocks {
			counts := maps.All(s.Block.Nodes())
			if known {
				counts = p.Value.Nodes(s.Block)
			}
			for n, count := range counts {
				know(n)
				out[n][pool] += count
			}
		}
	}
	return out
}

func describe(v *registry.View, n lease.Node, leased map[string]int, alive bool) api.ClusterNode {
	node := v.Nodes[n].Value
	d := api.ClusterNode{NodeName: *named(v, n), Alive: alive, Machine: node.Machine, Addresses: node.Addresses, Asserted: node.Asserted, Pools: []api.NodePool{}}
	for uuid, count := range leased {
		if count > 0 {
			d.Leased += count
			p, _ := v.Pool(uuid)
			d.Pools = append(d.Pools, api.NodePool{Pool: p.Value.Name, PoolUUID: uuid, Leased: count})
		}
	}
	slices.SortFunc(d.Pools, func(a, b api.NodePool) int {
		return strings.Compare(a.Pool+"\x00"+a.PoolUUID, b.Pool+"\x00"+b.PoolUUID)
	})
	if g, gone := v.Gone[n]; gone {
		d.Removed = &api.Removed{At: g.Value.At, Rest: g.Value.Rest}
	}
	return d
}

// resolve finds a node by its UUID or, if one node has it, its name. A node
// that was removed is called by its name only if no other node is.
func resolve(v *registry.View, text string) (lease.Node, map[string]int, error) {
	all := leasedByNode(v)
	if leased, ok := all[lease.Node(text)]; ok {
		return lease.Node(text), leased, nil
	}
	var present, removed []string
	for n := range all {
		if named(v, n).Name != text {
			continue
		}
		if _, gone := v.Gone[n]; gone {
			removed = append(removed, string(n))
		} else {
			present = append(present, string(n))
		}
	}
	if len(present) == 0 {
		present = removed
	}
	switch len(present) {
	case 0:
		return "", nil, failure(http.StatusNotFound, "the registry knows no node %q", text)
	case 1:
		n := lease.Node(present[0])
		return n, all[n], nil
	}
	slices.Sort(present)
	return "", nil, failure(http.StatusConflict, "%d nodes are called %q: %s", len(present), text, strings.Join(present, ", "))
}

func clusterNode(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	n, leased, err := resolve(v, r.PathValue("node"))
	if err != nil {
		return nil, err
	}
	alive, err := reg.Alive(r.Context())
	if err != nil {
		return nil, err
	}
	return describe(v, n, leased, alive[n]), nil
}

// removeNode frees, after a rest, what a node has. That it is off is the word
// of an operator.
func (s *Server) removeNode(reg registry.Registry, r *http.Request) (any, error) {
	rest := defaultRest
	if text := r.FormValue("rest"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return nil, bad(fmt.Errorf(`rest: %q is not a duration such as "10m"`, text))
		}
		rest = d
	}
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	n, _, err := resolve(v, r.PathValue("node"))
	if err != nil {
		return nil, err
	}
	if err := reg.Remove(r.Context(), n, rest); err != nil {
		return nil, err
	}
	s.conf.Log.Info("removed a node, as an operator asked", "removed", n, "rest", rest)
	if v, err = reg.View(r.Context()); err != nil {
		return nil, err
	}
	return describe(v, n, leasedByNode(v)[n], false), nil
}

func (s *Server) leases(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	pool, node := r.FormValue("pool"), lease.Node("")
	if _, ok := v.Pools[pool]; pool != "" && !ok {
		return nil, failure(http.StatusNotFound, "the registry has no pool %q", pool)
	}
	if text := r.FormValue("node"); text != "" {
		if node, _, err = resolve(v, text); err != nil {
			return nil, err
		}
	}
	out := []api.Lease{}
	for uuid := range v.Blocks {
		p, _ := v.Pool(uuid)
		if pool != "" && p.Value.Name != pool {
			continue
		}
		lent := s.lent(uuid)
		for _, seen := range v.Seen(uuid) {
			b := seen.Block
			// A block that was given back in whole is nobody's.
			if (b.Owner != "" || len(b.Given) > 0) && (node == "" || b.Names(node)) {
				l := oneLease(v, b)
				l.Pool, l.PoolUUID, l.Lent = p.Value.Name, uuid, lent[b.CIDR]
				out = append(out, l)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b api.Lease) int {
		return strings.Compare(a.Pool+"\x00"+a.PoolUUID, b.Pool+"\x00"+b.PoolUUID)
	})
	return out, nil
}

// lent says what of a pool this node lends, and to whom. A ledger that cannot be
// read does not keep anybody from what the registry says.
func (s *Server) lent(pool string) map[netip.Prefix]string {
	out := map[netip.Prefix]string{}
	_ = s.conf.Ledger.With(func(l *ledger.Ledger) error {
		blocks, err := l.Blocks(pool)
		for _, b := range blocks {
			out[b.CIDR] = b.Lent
		}
		return err
	})
	return out
}

func oneLease(v *registry.View, b lease.Block) api.Lease {
	l := api.Lease{CIDR: b.CIDR, Owner: named(v, b.Owner), Size: b.Size(), Given: []api.Given{}}
	for n, count := range b.Nodes() {
		if n == b.Owner {
			l.Owned += count
		} else {
			l.Others += count
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(b.Given), netip.Addr.Compare) {
		e := b.Given[a]
		if e.Parked() {
			l.Parked++
		}
		l.Given = append(l.Given, api.Given{Address: a, Node: named(v, e.Node), Key: e.Key, Since: e.Since})
	}
	return l
}
