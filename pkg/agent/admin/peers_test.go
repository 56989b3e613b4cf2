package admin

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// routed knows two peers of two networks.
type routed struct{}

func (routed) Peers(network string) (out []api.Peer) {
	for _, p := range []api.Peer{
		{Network: "pods", NodeName: api.NodeName{Node: n2, Name: "two"}, Address: netip.MustParseAddr("192.0.2.2"), Dev: "eth1",
			Prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.0.64/26")}, State: api.PeerDirect},
		{Network: "red", NodeName: api.NodeName{Node: n3}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.6.0.0/26")}, State: api.PeerUnreachable, Reason: "far"},
	} {
		if network == "" || p.Network == network {
			out = append(out, p)
		}
	}
	return out
}

func (routed) Routing() api.Routing { return api.Routing{Rules: "no nft"} }

func TestPeers(t *testing.T) {
	t.Parallel()
	c, _, server := serve(t)
	if _, err := c.Peers(t.Context(), ""); !errors.Is(err, api.ErrNoRegistry) {
		t.Errorf("without a cluster: %v", err)
	}
	server.conf.Networks = routed{}
	all, err := c.Peers(t.Context(), "")
	expect(t, "all", routed{}.Peers(""), all, err)
	some, err := c.Peers(t.Context(), "red")
	expect(t, "of a network", routed{}.Peers("red"), some, err)
	r, err := c.Routing(t.Context())
	expect(t, "routing", routed{}.Routing(), r, err)
}

// in is a node that is in one segment.
type in struct{}

func (in) Segments() []api.Segment {
	return []api.Segment{{VNI: 7, Port: 8472, Parent: "eth1", VTEP: netip.MustParseAddr("192.0.2.1"), MTU: 1450, Synced: true, Published: true, Nodes: 1, Endpoints: 1}}
}

func (in) Segment(vni int) (s api.SegmentDetail, ok bool) {
	return api.SegmentDetail{
		Segment: in{}.Segments()[0],
		Members: []api.SegmentMember{{NodeName: api.NodeName{Node: n2, Name: "two"}, Local: true, VTEP: netip.MustParseAddr("192.0.2.1"), Port: 8472, Endpoints: 1}},
		All: []api.SegmentEndpoint{{NodeName: api.NodeName{Node: n2, Name: "two"}, MAC: "02:00:00:00:00:01",
			Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.1")}, State: api.EndpointLocal}},
		Skipped: []api.SkippedEndpoints{{Node: n3, Reason: "odd"}},
	}, vni == 7
}

func TestSegments(t *testing.T) {
	t.Parallel()
	c, _, server := serve(t)
	none, err := c.Segments(t.Context())
	expect(t, "none", []api.Segment{}, none, err)
	server.conf.Segments = in{}
	all, err := c.Segments(t.Context())
	expect(t, "all", in{}.Segments(), all, err)
	one, err := c.Segment(t.Context(), 7)
	want, _ := in{}.Segment(7)
	expect(t, "one", want, one, err)
	if _, err := c.Segment(t.Context(), 8); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("another one: %v", err)
	}
	if _, err := c.Segment(t.Context(), 1<<24); err == nil || errors.Is(err, api.ErrNotFound) || !strings.Contains(err.Error(), "between 1 and 16777215") {
		t.Errorf("what is no VNI: %v", err)
	}
}
