package admin

import (
	"errors"
	"net/netip"
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
