package trace

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/hostnet"
	"github.com/underlay-cni/underlay/pkg/link"
)

// held is a container of this node.
func held(id, prefix string, l link.Link, path link.Path) end {
	p := netip.MustParsePrefix(prefix)
	r := &ipam.Record{Address: p, Gateway: p.Masked().Addr().Next(), Attachment: ipam.Attachment{Network: "n", ContainerID: id, IfName: "eth0"}}
	e := end{addr: p.Addr(), record: r, link: l, path: path}
	if l.Kind != "veth" {
		e.parent = "eth1"
	}
	return e
}

// pair is a container that the host routes to.
func pair(id, prefix string) end {
	e := held(id, prefix, link.Link{Kind: "veth"}, link.Path{Connected: true})
	e.path.Link = link.Link{Kind: "veth", Name: link.PeerName(e.record.Attachment.String())}
	return e
}

func macvlan(id, prefix, mode string) end {
	return held(id, prefix, link.Link{Kind: "macvlan", Mode: mode}, dev("eth1"))
}

func dev(name string) link.Path { return link.Path{Connected: true, Link: link.Link{Name: name}} }

func via(gw, name string) link.Path {
	return link.Path{Via: netip.MustParseAddr(gw), Link: link.Link{Name: name}}
}

func with(e end, f func(*end)) end {
	f(&e)
	return e
}

func away(addr string, path link.Path) end { return end{addr: netip.MustParseAddr(addr), path: path} }

func TestFollow(t *testing.T) {
	t.Parallel()
	h2 := &api.Peer{Network: "pods", NodeName: api.NodeName{Name: "h2"}, Address: netip.MustParseAddr("192.0.2.2"), Via: netip.MustParseAddr("192.0.2.2"), Dev: "eth1", State: api.PeerDirect}
	silent, lost, far := *h2, *h2, *h2
	far.State, far.Via, far.Dev = api.PeerVXLAN, netip.MustParseAddr("10.5.2.1"), "vx7"
	silent.State, silent.Reason = api.PeerSilent, "no answer for 5 s"
	lost.State, lost.Reason = api.PeerUnreachable, "it is on no subnet of this node"
	peer := func(p *api.Peer, path link.Path) end {
		return with(away("10.5.2.2", path), func(e *end) { e.peer = p })
	}
	host := func(addr string) end { return away(addr, link.Path{Own: true}) }
	access := func(e *end) { e.uses.HostAccess = true }
	gaveUp := func(e *end) { e.answer = hostnet.Silent }
	asked := func(e *end) { e.answer = hostnet.Asking }
	a := pair("a", "10.5.1.2/26")
	tests := []struct {
		name    string
		from    end
		to      end
		reached bool
		// last is in the last hop, or in the reason.
		last string
		// have is in the only difference; "" means that there is none.
		have string
	}{
		{"two of one host", a, pair("b", "10.5.1.3/26"), true, "container b, eth0 of network n has 10.5.1.3", ""},
		{"to the host", a, host("192.0.2.1"), true, "this host has 192.0.2.1", ""},
		{"from the host", host("192.0.2.1"), a, true, "container a", ""},
		{"to a peer", a, peer(h2, via("192.0.2.2", "eth1")), true, "peer h2, via 192.0.2.2 dev eth1, network pods", ""},
		{"the route is gone", a, peer(h2, link.Path{}), false, "is another", "no route"},
		{"the default route takes it", a, peer(h2, via("192.0.2.254", "eth1")), false, "is another", "via 192.0.2.254 dev eth1"},
		{"a silent peer", a, peer(&silent, via("192.0.2.2", "eth1")), false, "no answer for 5 s", ""},
		{"a peer that the kernel gave up", a, with(peer(h2, via("192.0.2.2", "eth1")), gaveUp), false, "nobody answers at 192.0.2.2 on eth1: the neighbour's entry there is FAILED", ""},
		{"a peer that is asked", a, with(peer(h2, via("192.0.2.2", "eth1")), asked), true, "peer h2, via 192.0.2.2 dev eth1", ""},
		{"the route is gone, and nobody answers", a, with(peer(h2, via("192.0.2.254", "eth1")), gaveUp), false, "is another", "via 192.0.2.254 dev eth1"},
		{"a router that the kernel gave up", a, with(away("198.51.100.1", via("192.0.2.254", "eth1")), gaveUp), false, "nobody answers at 192.0.2.254 on eth1", ""},
		{"a container that does not answer", a, with(pair("b", "10.5.1.3/26"), gaveUp), false, "nobody answers at 10.5.1.3 on ", ""},
		{"no way to a peer", a, peer(&lost, link.Path{}), false, "on no subnet of this node", ""},
		{"a peer of an overlay", a, peer(&far, via("10.5.2.1", "vx7")), true, "peer h2, VTEP 192.0.2.2, network pods", ""},
		{"the overlay's route is gone", a, peer(&far, via("192.0.2.254", "eth1")), false, "is another", "via 192.0.2.254 dev eth1"},
		{"a stray", a, with(away("10.5.1.9", link.Path{}), func(e *end) { e.network = "pods" }), false, "no container has it", ""},
		{"out", with(a, func(e *end) { e.uses.Masquerade = true }), away("198.51.100.1", via("192.0.2.254", "eth1")), true, "masqueraded", ""},
		{"nowhere", a, away("198.51.100.1", link.Path{}), false, "no route to 198.51.100.1", ""},
		{"the pair's route is another", a, with(pair("b", "10.5.1.3/26"), func(e *end) { e.path = dev("eth1") }), false, "another", "dev eth1"},
		{"on a bridge", a, with(pair("b", "10.5.1.3/26"), func(e *end) { e.path.Link = link.Link{Kind: "bridge", Name: "ul0"} }), true, "dev ul0", ""},

		{"macvlan siblings", macvlan("a", "192.0.2.10/24", "bridge"), macvlan("b", "192.0.2.11/24", "bridge"), true, "a sibling on eth1", ""},
		{"vepa", macvlan("a", "192.0.2.10/24", "vepa"), macvlan("b", "192.0.2.11/24", "vepa"), true, "a sibling on eth1", ""},
		{"private", macvlan("a", "192.0.2.10/24", "bridge"), macvlan("b", "192.0.2.11/24", "private"), false, "do not meet in mode private", ""},
		{"source", macvlan("a", "192.0.2.10/24", "source"), macvlan("b", "192.0.2.11/24", "source"), false, "do not meet in mode source", ""},
		{"parent's host", macvlan("a", "192.0.2.10/24", "bridge"), host("192.0.2.1"), false, "hostAccess", ""},
		{"parent's host, with access", with(macvlan("a", "192.0.2.10/24", "bridge"), access), host("192.0.2.1"), true, "this host", ""},
		{"from the parent's host", host("192.0.2.1"), macvlan("a", "192.0.2.10/24", "bridge"), false, "hostAccess", ""},
		{"from there, the route is gone", host("192.0.2.1"), with(macvlan("a", "192.0.2.10/24", "bridge"), access), false, "is another", "dev eth1"},
		{"the wire", macvlan("a", "192.0.2.10/24", "bridge"), away("192.0.2.99", dev("eth1")), true, "whoever has 192.0.2.99", ""},
		{"another node's", macvlan("a", "192.0.2.10/24", "bridge"), with(away("192.0.2.99", dev("eth1")), func(e *end) { e.owner = "h3" }), true, "node h3 has 192.0.2.99", ""},
		{"the gateway", macvlan("a", "192.0.2.10/24", "bridge"), away("198.51.100.1", dev("eth1")), true, "gateway 192.0.2.1", ""},
		{"no gateway", with(macvlan("a", "192.0.2.10/24", "bridge"), func(e *end) { e.record.Gateway = netip.Addr{} }), away("198.51.100.1", dev("eth1")), false, "no gateway", ""},
		{"ipvlan l3", held("a", "10.5.1.2/26", link.Link{Kind: "ipvlan", Mode: "l3", Flag: "bridge"}, dev("eth1")), peer(h2, via("192.0.2.2", "eth1")), true, "peer h2", ""},
		{"ipvlan l2 siblings", held("a", "192.0.2.10/24", link.Link{Kind: "ipvlan", Mode: "l2", Flag: "bridge"}, dev("eth1")),
			held("b", "192.0.2.11/24", link.Link{Kind: "ipvlan", Mode: "l2", Flag: "bridge"}, dev("eth1")), true, "a sibling on eth1", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := follow(facts{node: "h1", from: tt.from, to: tt.to})
			said := got.Reason
			if tt.reached {
				said = got.Hops[len(got.Hops)-1]
			}
			if got.Reached != tt.reached || !strings.Contains(said, tt.last) || (got.Reason == "") != tt.reached {
				t.Errorf("got %+v, want reached: %t, and %q", got, tt.reached, tt.last)
			}
			var have string
			for _, d := range got.Differs {
				have += d.Have
			}
			if diff := cmp.Diff(tt.have, have); diff != "" {
				t.Errorf("what differs (-want +got):\n%s", diff)
			}
		})
	}
	if got := follow(facts{node: "h1", from: a, to: with(peer(h2, via("192.0.2.2", "eth1")), asked), unknown: errors.New("a")}); !strings.HasPrefix(got.Unknown, "a; whether 192.0.2.2 on eth1 answers: the neighbour's entry there is INCOMPLETE") {
		t.Errorf("a neighbour that is asked: %+v", got)
	}
	if got := follow(facts{node: "h1", from: a, to: host("192.0.2.1"), unknown: errors.New("no agent")}); got.Unknown != "no agent" {
		t.Errorf("without an agent: %+v", got)
	}
}

// TestFollowSegment: in a segment a packet goes where the agent leads it.
func TestFollowSegment(t *testing.T) {
	t.Parallel()
	a := with(macvlan("a", "10.9.0.1/24", "bridge"), func(e *end) { e.parent, e.uses.Segment.VNI = "lg7", 7 })
	b := with(macvlan("b", "10.9.0.2/24", "bridge"), func(e *end) { e.parent = "lg7" })
	foreign := with(macvlan("c", "10.9.0.3/24", "bridge"), func(e *end) { e.parent = "lg8" })
	n2, n3 := api.NodeName{Node: "u2", Name: "h2"}, api.NodeName{Node: "u3"}
	at := func(n api.NodeName, addr string, state api.EndpointState) api.SegmentEndpoint {
		return api.SegmentEndpoint{NodeName: n, MAC: "02:00:5e:00:53:01", Addresses: []netip.Addr{netip.MustParseAddr(addr)}, State: state, Reason: "why"}
	}
	s := &api.SegmentDetail{
		Segment: api.Segment{VNI: 7, Nodes: 3},
		Members: []api.SegmentMember{{NodeName: n2, VTEP: netip.MustParseAddr("192.0.2.2")}, {NodeName: n3, VTEP: netip.MustParseAddr("192.0.2.3")}},
		All: []api.SegmentEndpoint{
			at(n3, "10.9.0.3", api.EndpointMoved), at(n2, "10.9.0.3", api.EndpointRemote), at(n3, "10.9.0.3", api.EndpointMoved),
			at(n3, "10.9.0.4", api.EndpointRemote), at(n3, "10.9.0.5", api.EndpointFailed), at(n2, "10.9.0.6", api.EndpointUnreachable), at(n2, "10.9.0.7", api.EndpointLocal),
		},
	}
	for _, tt := range []struct {
		name    string
		to      end
		segment *api.SegmentDetail
		reached bool
		last    string
	}{
		{"on this node", b, s, true, "a sibling on lg7"},
		{"on another node, not this one's of another segment", foreign, s, true, "node h2, VTEP 192.0.2.2, has 10.9.0.3"},
		{"on a node without a name", away("10.9.0.4", dev("eth1")), s, true, "node u3, VTEP 192.0.2.3, has 10.9.0.4"},
		{"refused by the kernel", away("10.9.0.5", dev("eth1")), s, false, "10.9.0.5 is on node u3, and failed: why"},
		{"on a node that nothing leads to", away("10.9.0.6", dev("eth1")), s, false, "10.9.0.6 is on node h2, and unreachable: why"},
		{"on another parent of this node", away("10.9.0.7", dev("eth1")), s, true, "on this node too"},
		{"nobody's", away("10.9.0.99", dev("eth1")), s, true, "all 3 nodes of it are asked"},
		{"without an agent", away("10.9.0.4", dev("eth1")), nil, true, "segment 7, whoever has 10.9.0.4"},
		{"out of it", away("198.51.100.1", dev("eth1")), s, true, "gateway 10.9.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := follow(facts{node: "h1", from: a, to: tt.to, segment: tt.segment})
			said := got.Reason
			if tt.reached {
				said = got.Hops[len(got.Hops)-1]
			}
			if got.Reached != tt.reached || !strings.Contains(said, tt.last) || (got.Reason == "") != tt.reached || len(got.Differs) > 0 {
				t.Errorf("got %+v, want reached: %t, and %q", got, tt.reached, tt.last)
			}
		})
	}
}
