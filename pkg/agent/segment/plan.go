package segment

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// plan is where the endpoints of a segment are, seen from this host.
type plan struct {
	// Nodes that are in the segment, by name, and this one first.
	Nodes []node
	// Endpoints by node and MAC.
	Endpoints []endpointAt
	// VTEPs that what is for all goes to.
	VTEPs []vxlan.Peer
	// From are the addresses that what arrives may come from.
	From []netip.Addr
	// Gone are nodes that were removed and have a record yet.
	Gone []lease.Node
}

// node is one that is in the segment.
type node struct {
	record.Segment
	Local bool
	// Reason says why nothing leads to it; "" where something does.
	Reason string
}

// endpointAt is an endpoint and where it is.
type endpointAt struct {
	node
	record.Endpoint
	since lease.Rev
	// Reason says why nothing, or not all, leads to it.
	Reason string
	// taken are the addresses that have come to another one since.
	taken map[netip.Addr]bool
}

// makePlan says what follows from what this node has, and what the members of the
// segment say. Own is this node's part.
func makePlan(own record.Segment, m *registry.Members, gone map[lease.Node]bool) *plan {
	p := &plan{}
	here := node{Segment: own, Local: true}
	p.Nodes = append(p.Nodes, here)
	published := m.Nodes[own.Node].Since
	p.add(here, func(mac string) lease.Rev {
		if since, told := published[mac]; told {
			return since
		}
		return 1<<63 - 1 // it has just come
	})
	vteps := make(map[netip.Addr]bool)
	for _, id := range slices.Sorted(maps.Keys(m.Nodes)) {
		s := m.Nodes[id]
		switch {
		case id == own.Node:
			continue
		case gone[id]:
			p.Gone = append(p.Gone, id)
			continue
		}
		n := node{Segment: s.Segment}
		n.Reason = apart(own, s.Segment)
		p.Nodes = append(p.Nodes, n)
		p.add(n, func(mac string) lease.Rev { return s.Since[mac] })
		if n.Reason == "" && !vteps[s.VTEP] {
			vteps[s.VTEP] = true
			p.VTEPs = append(p.VTEPs, vxlan.Peer{Name: who(s.Segment), VTEP: s.VTEP})
			p.From = append(p.From, s.VTEP)
		}
	}
	slices.SortStableFunc(p.Nodes[1:], func(a, b node) int { return cmp.Compare(who(a.Segment), who(b.Segment)) })
	p.decide()
	slices.SortStableFunc(p.Endpoints, func(a, b endpointAt) int {
		local := 0
		if a.Local != b.Local {
			if local = 1; a.Local {
				local = -1
			}
		}
		return cmp.Or(local, cmp.Compare(who(a.Segment), who(b.Segment)), cmp.Compare(a.MAC, b.MAC))
	})
	return p
}

// apart says why VXLAN does not lead from one node to another.
func apart(own, s record.Segment) string {
	switch {
	case s.Port != own.Port:
		return fmt.Sprintf("it takes VXLAN at port %d, and this node at port %d; give both the same", s.Port, own.Port)
	case s.VTEP.Is4() != own.VTEP.Is4():
		return fmt.Sprintf("its VTEP %s and this node's, %s, are of different families", s.VTEP, own.VTEP)
	case s.VTEP == own.VTEP:
		return fmt.Sprintf("its VTEP %s is this node's, too", s.VTEP)
	}
	return ""
}

func who(s record.Segment) string {
	if s.Name != "" {
		return s.Name
	}
	return string(s.Node)
}

func (p *plan) add(n node, since func(mac string) lease.Rev) {
	for _, e := range n.Endpoints {
		p.Endpoints = append(p.Endpoints, endpointAt{node: n, Endpoint: e, since: since(e.MAC), Reason: n.Reason})
	}
}

// decide has each MAC and each address lead to one endpoint: that which has come
// last. Those that nothing leads to take nothing.
func (p *plan) decide() {
	slices.SortStableFunc(p.Endpoints, func(a, b endpointAt) int { return cmp.Compare(b.since, a.since) })
	macs, addrs := make(map[string]int), make(map[netip.Addr]int)
	for i := range p.Endpoints {
		e := &p.Endpoints[i]
		if e.Reason != "" {
			continue
		}
		if first, taken := macs[e.MAC]; taken {
			e.Reason = "its MAC has come to node " + who(p.Endpoints[first].Segment) + " since"
			continue
		}
		macs[e.MAC] = i
		for _, a := range e.Addrs {
			first, taken := addrs[a]
			if !taken {
				addrs[a] = i
				continue
			}
			if first == i {
				continue
			}
			if e.taken == nil {
				e.taken = make(map[netip.Addr]bool)
			}
			e.taken[a] = true
			e.Reason = fmt.Sprintf("%s has come to %s on node %s since", a, p.Endpoints[first].MAC, who(p.Endpoints[first].Segment))
		}
	}
}

// vxlan is the endpoint as it is led to; ok says whether it is.
func (e endpointAt) vxlan() (out vxlan.Endpoint, ok bool) {
	if e.Reason != "" && e.taken == nil {
		return out, false
	}
	mac, err := neigh.ParseMAC(e.MAC)
	if err != nil {
		return out, false
	}
	out = vxlan.Endpoint{Peer: who(e.Segment), MAC: mac}
	if !e.Local {
		out.VTEP = e.VTEP
	}
	for _, a := range e.Addrs {
		if !e.taken[a] && !slices.Contains(out.Addrs, a) {
			out.Addrs = append(out.Addrs, a)
		}
	}
	return out, true
}

// wants are the entries.
func (p *plan) wants(vni int) []neigh.Want {
	endpoints := make([]vxlan.Endpoint, 0, len(p.Endpoints))
	for _, e := range p.Endpoints {
		if v, ok := e.vxlan(); ok {
			endpoints = append(endpoints, v)
		}
	}
	return vxlan.Segmented(vni, p.VTEPs, endpoints)
}
