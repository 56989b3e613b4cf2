package api

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/underlay-cni/underlay/ipam/registry/record"
)

var (
	// ErrConflict is returned for what does not go with what the registry has:
	// it exists, overlaps, is in use, or its node is running.
	ErrConflict = errors.New("conflict")
	// ErrNoRegistry is returned by an agent that has no registry.
	ErrNoRegistry = errors.New("the agent has no registry")
	// ErrUnreachable is returned when the agent's registry does not answer, or
	// has not said whether a change was made.
	ErrUnreachable = errors.New("the registry cannot be used")
)

// Kinds of a Problem that a client tells apart by more than its status.
const (
	KindNoRegistry  = "noRegistry"
	KindUnreachable = "unreachable"
)

// Cluster says which cluster the registry is of, and how it is.
func (c *Client) Cluster(ctx context.Context) (v Cluster, err error) {
	return v, c.call(ctx, http.MethodGet, "/v1/cluster", nil, &v)
}

// Recover says, for an operator, that a registry which has gone back is to be
// gone on with. ErrConflict if no node has reported that.
func (c *Client) Recover(ctx context.Context) (v Cluster, err error) {
	return v, c.call(ctx, http.MethodPost, "/v1/cluster/recover", nil, &v)
}

// ClusterPools lists the cluster pools.
func (c *Client) ClusterPools(ctx context.Context) (p []ClusterPool, err error) {
	return p, c.call(ctx, http.MethodGet, "/v1/cluster/pools", nil, &p)
}

// ClusterPool returns one of them; ErrNotFound if there is none of that name.
func (c *Client) ClusterPool(ctx context.Context, name string) (p record.Pool, err error) {
	return p, c.call(ctx, http.MethodGet, item("pools", name), nil, &p)
}

// CreatePool makes the pool of a document, as record.LoadPool reads it. It is
// checked by the agent.
func (c *Client) CreatePool(ctx context.Context, document []byte) (p record.Pool, err error) {
	return p, c.send(ctx, http.MethodPost, "/v1/cluster/pools", nil, document, &p)
}

// UpdatePool changes a pool into what its document says.
func (c *Client) UpdatePool(ctx context.Context, name string, document []byte) (p record.Pool, err error) {
	return p, c.send(ctx, http.MethodPut, item("pools", name), nil, document, &p)
}

// DeletePool deletes a pool of which nothing is in use, and returns what it
// was.
func (c *Client) DeletePool(ctx context.Context, name string) (p record.Pool, err error) {
	return p, c.call(ctx, http.MethodDelete, item("pools", name), nil, &p)
}

// Networks lists the networks.
func (c *Client) Networks(ctx context.Context) (n []record.Network, err error) {
	return n, c.call(ctx, http.MethodGet, "/v1/cluster/networks", nil, &n)
}

// Network returns one of them; ErrNotFound if there is none of that name.
func (c *Client) Network(ctx context.Context, name string) (n record.Network, err error) {
	return n, c.call(ctx, http.MethodGet, item("networks", name), nil, &n)
}

// CreateNetwork makes the network of a document, as record.DecodeNetwork reads
// it. It is checked by the agent.
func (c *Client) CreateNetwork(ctx context.Context, document []byte) (n record.Network, err error) {
	return n, c.send(ctx, http.MethodPost, "/v1/cluster/networks", nil, document, &n)
}

// PutNetwork makes a network or changes it.
func (c *Client) PutNetwork(ctx context.Context, name string, document []byte) (n record.Network, err error) {
	return n, c.send(ctx, http.MethodPut, item("networks", name), nil, document, &n)
}

// DeleteNetwork deletes a network and returns what it was; the zero value if
// that could not be read.
func (c *Client) DeleteNetwork(ctx context.Context, name string) (n record.Network, err error) {
	return n, c.call(ctx, http.MethodDelete, item("networks", name), nil, &n)
}

// Tenants lists the tenants that have pools or a quota.
func (c *Client) Tenants(ctx context.Context) (t []Tenant, err error) {
	return t, c.call(ctx, http.MethodGet, "/v1/cluster/tenants", nil, &t)
}

// Tenant returns one of them; ErrNotFound if there is none of that name.
func (c *Client) Tenant(ctx context.Context, name string) (t Tenant, err error) {
	return t, c.call(ctx, http.MethodGet, item("tenants", name), nil, &t)
}

// PutTenant limits what nodes may lease of all pools of a tenant, and says which
// VNIs its segments get.
func (c *Client) PutTenant(ctx context.Context, put record.Tenant) (t Tenant, err error) {
	return t, c.send(ctx, http.MethodPut, item("tenants", put.Name), nil, record.EncodeTenant(put), &t)
}

// SegmentNames lists the segments that have their VNI by their name, by VNI.
func (c *Client) SegmentNames(ctx context.Context) (s []SegmentName, err error) {
	return s, c.call(ctx, http.MethodGet, "/v1/cluster/segments", nil, &s)
}

// ForgetSegment frees the VNI that a segment has by its name, and returns what it
// was. No node may have a part in it.
func (c *Client) ForgetSegment(ctx context.Context, tenant, name string) (s SegmentName, err error) {
	return s, c.call(ctx, http.MethodDelete, item("tenants", tenant)+"/segments/"+url.PathEscape(name), nil, &s)
}

// DeleteTenant forgets the quota and the VNIs of a tenant, and returns what there
// was.
func (c *Client) DeleteTenant(ctx context.Context, name string) (t Tenant, err error) {
	return t, c.call(ctx, http.MethodDelete, item("tenants", name), nil, &t)
}

// ClusterNodes lists the nodes, those that were removed too.
func (c *Client) ClusterNodes(ctx context.Context) (n []ClusterNode, err error) {
	return n, c.call(ctx, http.MethodGet, "/v1/cluster/nodes", nil, &n)
}

// ClusterNode returns a node by its UUID, or by its name if one node has that.
func (c *Client) ClusterNode(ctx context.Context, node string) (n ClusterNode, err error) {
	return n, c.call(ctx, http.MethodGet, item("nodes", node), nil, &n)
}

// RemoveNode removes a node, on the word of an operator that it is off. Its
// addresses are given to others when they have rested.
func (c *Client) RemoveNode(ctx context.Context, node string, rest time.Duration) (n ClusterNode, err error) {
	return n, c.call(ctx, http.MethodDelete, item("nodes", node), query("rest", rest.String()), &n)
}

// LeaseFilter says which blocks are wanted; empty fields are any.
type LeaseFilter struct {
	// Pool by name.
	Pool string
	// Node by UUID or name: blocks of which it has something.
	Node string
}

// Leases lists the blocks of which somebody has something.
func (c *Client) Leases(ctx context.Context, f LeaseFilter) (l []Lease, err error) {
	return l, c.call(ctx, http.MethodGet, "/v1/cluster/leases", query("pool", f.Pool, "node", f.Node), &l)
}

func item(kind, name string) string { return "/v1/cluster/" + kind + "/" + url.PathEscape(name) }

// problem is the error of a document that came with a status.
func problem(status int, p Problem) error {
	err := p.Error.Err()
	switch {
	case status == http.StatusNotFound:
		return &tagged{err, ErrNotFound}
	case status == http.StatusConflict:
		return &tagged{err, ErrConflict}
	case p.Kind == KindNoRegistry:
		return &tagged{err, ErrNoRegistry}
	case p.Kind == KindUnreachable:
		return &tagged{err, ErrUnreachable}
	}
	return err
}

// tagged is an error as the agent has worded it, and what it is for a caller.
type tagged struct{ err, is error }

func (e *tagged) Error() string   { return e.err.Error() }
func (e *tagged) Unwrap() []error { return []error{e.err, e.is} }
