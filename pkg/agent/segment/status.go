package segment

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/reconcile"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// Segments tells of the segments that this node has attachments in.
func (t *Task) Segments() []api.Segment {
	out := []api.Segment{}
	for _, p := range t.all() {
		out = append(out, p.status().segment())
	}
	return out
}

// Segment tells who is in the segment of a VNI; ok is false if this node is not.
func (t *Task) Segment(vni int) (out api.SegmentDetail, ok bool) {
	t.mu.Lock()
	p := t.parts[vni]
	t.mu.Unlock()
	if p == nil {
		return out, false
	}
	s := p.status()
	out = api.SegmentDetail{Segment: s.segment(), Members: []api.SegmentMember{}, All: []api.SegmentEndpoint{}, Skipped: []api.SkippedEndpoints{}}
	for _, n := range s.plan.Nodes {
		out.Members = append(out.Members, api.SegmentMember{
			NodeName: name(n.Segment), Local: n.Local, VTEP: n.VTEP, Port: n.Port, Endpoints: len(n.Endpoints), Reason: n.Reason,
		})
	}
	s.each(func(e endpointAt, state api.EndpointState, reason string) {
		out.All = append(out.All, api.SegmentEndpoint{NodeName: name(e.Segment), MAC: e.MAC, Addresses: append([]netip.Addr{}, e.Addrs...), State: state, Reason: reason})
	})
	if s.members != nil {
		for _, key := range slices.Sorted(maps.Keys(s.members.Unread)) {
			_, n, _ := record.ParseSegmentKey(key)
			skipped := api.SkippedEndpoints{Node: string(n), Reason: s.members.Unread[key].Error()}
			if n == "" {
				skipped.Reason = key + ": " + skipped.Reason
			}
			out.Skipped = append(out.Skipped, skipped)
		}
	}
	for _, why := range s.want.odd {
		out.Skipped = append(out.Skipped, api.SkippedEndpoints{Reason: why})
	}
	return out, true
}

func name(s record.Segment) api.NodeName { return api.NodeName{Node: string(s.Node), Name: s.Name} }

// status is how a part is at one moment.
type status struct {
	*part
	alone     bool // without a registry
	want      want
	built     vxlan.Segment
	members   *registry.Members
	plan      *plan
	synced    bool
	published bool
	errs      []error
	entries   []neigh.Status
}

func (p *part) status() status {
	own, _ := p.own()
	p.mu.Lock()
	s := status{
		part: p, alone: p.t.conf.Cluster == nil, want: p.want, built: p.built, members: p.members, plan: p.plan, synced: p.plan != nil, published: p.published && p.putErr == nil,
		errs: []error{p.buildErr},
	}
	if !s.alone {
		s.errs = append(s.errs, p.listErr, p.putErr)
	}
	entries := p.entries
	p.mu.Unlock()
	if entries != nil { // they may be busy
		s.errs = append(s.errs, entries.Err())
		s.entries = entries.Status()
	}
	if s.plan == nil {
		// This node's own is all that is known.
		own.VNI, own.Name, own.Port, own.Endpoints, own.VTEP = p.vni, p.t.conf.Node, s.want.port, s.want.endpoints, s.built.Local
		s.plan = makePlan(own, &registry.Members{}, nil)
	}
	return s
}

func (s status) segment() api.Segment {
	out := api.Segment{
		VNI: s.vni, Port: s.want.port, Parent: s.want.parent, VTEP: s.built.Local, MTU: s.built.MTU, Synced: s.synced, Published: s.published,
		Nodes: len(s.plan.Nodes), Endpoints: len(s.plan.Endpoints),
	}
	var parts []string
	for _, err := range s.errs {
		if err != nil && !errors.Is(err, errPending) {
			parts = append(parts, strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
	if name, taken := s.t.stands().networks[s.vni]; taken {
		parts = append(parts, fmt.Sprintf("network %q has this VNI too; give one of them another", name))
	}
	if s.alone {
		parts = append(parts, `the agent has no registry, so nothing is known of other nodes`)
	}
	out.Reason = strings.Join(parts, "; ")
	return out
}

// each calls f with each endpoint, and how it is reached.
func (s status) each(f func(e endpointAt, state api.EndpointState, reason string)) {
	became := make(map[neigh.Entry]error, len(s.entries))
	for _, e := range s.entries {
		if e.Peer != "" {
			became[e.Object] = e.Err
		}
	}
	for _, e := range s.plan.Endpoints {
		state, reason := s.stateOf(e, became)
		f(e, state, reason)
	}
}

func (s status) stateOf(e endpointAt, became map[neigh.Entry]error) (api.EndpointState, string) {
	switch {
	case e.node.Reason != "":
		return api.EndpointUnreachable, e.node.Reason
	case e.Reason != "":
		return api.EndpointMoved, e.Reason
	case s.alone:
		return api.EndpointLocal, ""
	}
	v, _ := e.vxlan()
	pending := false
	for _, w := range vxlan.Segmented(s.vni, nil, []vxlan.Endpoint{v}) {
		switch err, known := became[w.Object]; {
		case !known, errors.Is(err, reconcile.ErrPending):
			pending = true
		case err != nil:
			return api.EndpointFailed, strings.ReplaceAll(err.Error(), "\n", "; ")
		}
	}
	switch {
	case pending:
		return api.EndpointPending, "its entries have not been tried yet"
	case e.Local:
		return api.EndpointLocal, ""
	}
	return api.EndpointRemote, ""
}
