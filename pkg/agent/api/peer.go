package api

import (
	"context"
	"net/http"
	"net/netip"
)

// PeerState says how a peer is reached.
type PeerState string

const (
	// PeerDirect: by routes through its address, on a subnet of this node.
	PeerDirect PeerState = "direct"
	// PeerVXLAN: through the network's VXLAN device, to its VTEP.
	PeerVXLAN PeerState = "vxlan"
	// PeerSilent: directly, but nobody answers at its address.
	PeerSilent PeerState = "silent"
	// PeerPending: its routes are about to be made.
	PeerPending PeerState = "pending"
	// PeerFailed: the kernel refuses a route; it is tried again.
	PeerFailed PeerState = "failed"
	// PeerUnreachable: there is no way to it.
	PeerUnreachable PeerState = "unreachable"
)

// PeerStates are all of them.
func PeerStates() []PeerState {
	return []PeerState{PeerDirect, PeerVXLAN, PeerSilent, PeerPending, PeerFailed, PeerUnreachable}
}

// Peer is an element of /v1/peers: a node that has blocks of a network, and how
// this node reaches them in one address family.
type Peer struct {
	Network string `json:"network"`
	NodeName
	// Address of the peer, or of its VTEP, and the interface by which it is
	// reached.
	Address netip.Addr `json:"address,omitzero"`
	Dev     string     `json:"dev,omitempty"`
	// Via is the gateway of its routes: Address, or with VXLAN what stands for the
	// peer on Dev.
	Via netip.Addr `json:"via,omitzero"`
	// Prefixes that are routed to it.
	Prefixes []netip.Prefix `json:"prefixes"`
	State    PeerState      `json:"state"`
	// Reason says why it is not direct.
	Reason string `json:"reason,omitempty"`
}

// Routing is the document of /v1/routing: how far this node is with what its
// routes to peers need.
type Routing struct {
	// Addresses at which peers reach this node, as it has told them.
	Addresses []netip.Addr     `json:"addresses"`
	Networks  []RoutingNetwork `json:"networks"`
	// Rules says why the nftables table is not as it has to be; "" if it is.
	Rules string `json:"rules,omitempty"`
	// Drops are others' policies by which the host drops what is forwarded.
	Drops []ForwardDrop `json:"drops"`
	// Skipped are the records of the registry that cannot be read, or used.
	Skipped []SkippedRecord `json:"skipped"`
}

// RoutingNetwork is a network that this node follows.
type RoutingNetwork struct {
	Name    string `json:"name"`
	Backend string `json:"backend"`
	Pool    string `json:"pool"`
	// Prefixes are the pool's subnets, Own this node's blocks.
	Prefixes []netip.Prefix `json:"prefixes"`
	Own      []netip.Prefix `json:"own"`
	// Synced: its routes and rules have been set once since the agent started.
	Synced bool `json:"synced"`
	// Masquerade: what this node's containers send out of the cluster gets an
	// address of the host.
	Masquerade bool `json:"masquerade"`
	// Reason says why there is nothing to route in it.
	Reason string `json:"reason,omitempty"`
}

// ForwardDrop is a policy that is in the way.
type ForwardDrop struct {
	Chain string `json:"chain"`
	// Command lets pass what our rules have marked.
	Command string `json:"command"`
	// Passes: that has been done.
	Passes bool `json:"passes"`
}

// SkippedRecord is a record about a network that was skipped.
type SkippedRecord struct {
	Network string       `json:"network,omitempty"`
	Node    string       `json:"node,omitempty"`
	Block   netip.Prefix `json:"block,omitzero"`
	Reason  string       `json:"reason"`
}

// Peers lists the peers of a network, or of all if that is "".
func (c *Client) Peers(ctx context.Context, network string) (p []Peer, err error) {
	return p, c.call(ctx, http.MethodGet, "/v1/peers", query("network", network), &p)
}

// Routing says how far this node is with what its routes to peers need.
func (c *Client) Routing(ctx context.Context) (r Routing, err error) {
	return r, c.call(ctx, http.MethodGet, "/v1/routing", nil, &r)
}
