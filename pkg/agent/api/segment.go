package api

import (
	"context"
	"net/http"
	"net/netip"
	"strconv"
)

// EndpointState says how an endpoint of a segment is reached.
type EndpointState string

const (
	// EndpointLocal: it is on this node.
	EndpointLocal EndpointState = "local"
	// EndpointRemote: by VXLAN, at the VTEP of its node.
	EndpointRemote EndpointState = "remote"
	// EndpointPending: its entries are about to be made.
	EndpointPending EndpointState = "pending"
	// EndpointFailed: the kernel refuses an entry; it is tried again.
	EndpointFailed EndpointState = "failed"
	// EndpointMoved: its MAC, or an address, has come to another endpoint since.
	EndpointMoved EndpointState = "moved"
	// EndpointUnreachable: nothing leads to its node.
	EndpointUnreachable EndpointState = "unreachable"
)

// EndpointStates are all of them.
func EndpointStates() []EndpointState {
	return []EndpointState{EndpointLocal, EndpointRemote, EndpointPending, EndpointFailed, EndpointMoved, EndpointUnreachable}
}

// Segment is an element of /v1/segments: a VXLAN segment that this node has
// attachments in.
type Segment struct {
	VNI  int `json:"vni"`
	Port int `json:"port"`
	// Parent is the interface that other nodes are reached by, VTEP the address of
	// this node there, MTU that of the segment; as the segment was last made.
	Parent string     `json:"parent"`
	VTEP   netip.Addr `json:"vtep,omitzero"`
	MTU    int        `json:"mtu,omitempty"`
	// Synced: the entries of all its endpoints have been set once since the agent
	// started. Published: the registry has this node's own.
	Synced    bool `json:"synced"`
	Published bool `json:"published"`
	// Nodes and Endpoints are how many are known, with this node's.
	Nodes     int `json:"nodes"`
	Endpoints int `json:"endpoints"`
	// Reason says what is not as it should be.
	Reason string `json:"reason,omitempty"`
}

// SegmentDetail is the document of /v1/segments/{vni}.
type SegmentDetail struct {
	Segment
	Members []SegmentMember   `json:"members"`
	All     []SegmentEndpoint `json:"all"`
	// Skipped are records of the registry that cannot be read, and attachments of
	// this node that cannot be told others.
	Skipped []SkippedEndpoints `json:"skipped"`
}

// SegmentMember is a node in a segment.
type SegmentMember struct {
	NodeName
	Local bool       `json:"local"`
	VTEP  netip.Addr `json:"vtep"`
	Port  int        `json:"port"`
	// Endpoints are how many it has.
	Endpoints int `json:"endpoints"`
	// Reason says why nothing leads there.
	Reason string `json:"reason,omitempty"`
}

// SegmentEndpoint is an attachment in a segment, on this node or another one.
type SegmentEndpoint struct {
	NodeName
	MAC       string        `json:"mac"`
	Addresses []netip.Addr  `json:"addresses"`
	State     EndpointState `json:"state"`
	// Reason says why it is neither local nor remote.
	Reason string `json:"reason,omitempty"`
}

// SkippedEndpoints is what was skipped of a segment.
type SkippedEndpoints struct {
	// Node whose record it is; "" for an attachment of this one.
	Node   string `json:"node,omitempty"`
	Reason string `json:"reason"`
}

// Segments lists the segments that this node has attachments in.
func (c *Client) Segments(ctx context.Context) (s []Segment, err error) {
	return s, c.call(ctx, http.MethodGet, "/v1/segments", nil, &s)
}

// Segment says who is in one; ErrNotFound if this node has no attachment in it.
func (c *Client) Segment(ctx context.Context, vni int) (s SegmentDetail, err error) {
	return s, c.call(ctx, http.MethodGet, "/v1/segments/"+strconv.Itoa(vni), nil, &s)
}
