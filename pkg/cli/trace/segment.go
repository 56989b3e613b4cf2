package trace

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// inSegment goes by the VXLAN segment that the container is in, to wherever the
// agent has told the kernel that the other one is.
func (t *Trace) inSegment(f facts) {
	vni, to := f.from.uses.Segment.VNI, f.to.addr
	if f.segment == nil {
		t.arrive("segment %d, whoever has %s in it", vni, to)
		return
	}
	e, known := endpointOf(*f.segment, to)
	if !known {
		t.arrive("segment %d, whoever has %s; nobody is known to, so that all %d nodes of it are asked", vni, to, f.segment.Nodes)
		return
	}
	node := e.Name
	if node == "" {
		node = e.Node
	}
	switch e.State {
	case api.EndpointLocal:
		t.arrive("segment %d, MAC %s, on this node too", vni, e.MAC)
	case api.EndpointRemote:
		t.hop("segment %d, MAC %s, VXLAN", vni, e.MAC)
		at := ""
		for _, m := range f.segment.Members {
			if m.Node == e.Node {
				at = fmt.Sprintf(", VTEP %s", m.VTEP)
			}
		}
		t.arrive("node %s%s, has %s", node, at, to)
	default:
		t.hop("segment %d, MAC %s", vni, e.MAC)
		t.fail("%s is on node %s, and %s: %s", to, node, e.State, e.Reason)
	}
}

// endpointOf is who has an address in a segment. One that it has moved away from
// is asked last.
func endpointOf(s api.SegmentDetail, a netip.Addr) (e api.SegmentEndpoint, known bool) {
	for _, x := range s.All {
		if slices.Contains(x.Addresses, a) && (!known || e.State == api.EndpointMoved) {
			e, known = x, true
		}
	}
	return e, known
}
