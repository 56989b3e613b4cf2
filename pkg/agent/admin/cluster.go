package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

const (
	// maxDocument is more than any object may have that the registry takes.
	maxDocument = 512 << 10
	// registryPatience is how long one request may take in the registry.
	registryPatience = 15 * time.Second
)

// cluster are the routes that are answered with what the registry has.
func (s *Server) cluster() map[string]func(registry.Registry, *http.Request) (any, error) {
	return map[string]func(registry.Registry, *http.Request) (any, error){
		"GET /v1/cluster":                    clusterStatus,
		"POST /v1/cluster/recover":           s.recoverRegistry,
		"GET /v1/cluster/pools":              clusterPools,
		"POST /v1/cluster/pools":             s.createPool,
		"GET /v1/cluster/pools/{name}":       clusterPool,
		"PUT /v1/cluster/pools/{name}":       s.updatePool,
		"DELETE /v1/cluster/pools/{name}":    s.deletePool,
		"GET /v1/cluster/networks":           networks,
		"POST /v1/cluster/networks":          s.createNetwork,
		"GET /v1/cluster/networks/{name}":    network,
		"PUT /v1/cluster/networks/{name}":    s.putNetwork,
		"DELETE /v1/cluster/networks/{name}": s.deleteNetwork,
		"GET /v1/cluster/tenants":            tenants,
		"GET /v1/cluster/tenants/{name}":     tenant,
		"PUT /v1/cluster/tenants/{name}":     s.putTenant,
		"DELETE /v1/cluster/tenants/{name}":  s.deleteTenant,
		"GET /v1/cluster/segments":           segmentNames,
		"GET /v1/cluster/nodes":              clusterNodes,
		"GET /v1/cluster/nodes/{node}":       clusterNode,
		"DELETE /v1/cluster/nodes/{node}":    s.removeNode,
		"GET /v1/cluster/leases":             s.leases,

		"DELETE /v1/cluster/tenants/{name}/segments/{segment}": s.forgetSegment,
	}
}

// inRegistry answers with what f makes of the registry.
func (s *Server) inRegistry(f func(registry.Registry, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		if r.Method != http.MethodGet {
			// What was begun is ended, whether or not somebody waits for it.
			ctx = context.WithoutCancel(ctx)
		}
		ctx, cancel := context.WithTimeout(ctx, registryPatience)
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, maxDocument)
		var v any
		reg, err := s.registry()
		if err == nil {
			v, err = f(reg, r)
		}
		if err != nil {
			code, kind := blame(err)
			write(w, code, api.Problem{Error: wire.NewFailure(err), Kind: kind})
			return
		}
		write(w, http.StatusOK, v)
	}
}

// errNoRegistry is what an agent without one answers.
var errNoRegistry = errors.New("this agent has no registry, so it knows no cluster")

func (s *Server) registry() (registry.Registry, error) {
	if s.conf.Cluster == nil {
		return registry.Registry{}, errNoRegistry
	}
	return s.conf.Cluster()
}

// blame tells the status and the kind of what went wrong.
func blame(err error) (code int, kind string) {
	var known *status
	var large *http.MaxBytesError
	var overlap *registry.OverlapError
	var used *registry.InUseError
	switch {
	case errors.As(err, &large):
		return http.StatusRequestEntityTooLarge, ""
	case errors.As(err, &known):
		return known.code, ""
	case errors.Is(err, registry.ErrNoPool), errors.Is(err, registry.ErrNoNode), errors.Is(err, registry.ErrNoName):
		return http.StatusNotFound, ""
	case errors.As(err, &overlap):
		return http.StatusConflict, "overlap"
	case errors.As(err, &used):
		return http.StatusConflict, "inUse"
	case errors.Is(err, errNoRegistry):
		return http.StatusServiceUnavailable, api.KindNoRegistry
	}
	for _, c := range []struct {
		err  error
		kind string
	}{
		{registry.ErrExists, "exists"}, {registry.ErrLive, "live"}, {registry.ErrFixed, "fixed"}, {registry.ErrTenant, "tenant"},
		{registry.ErrClosed, "closed"}, {registry.ErrUnread, "unread"}, {registry.ErrMoved, "moved"}, {registry.ErrNoCluster, "noCluster"},
	} {
		if errors.Is(err, c.err) {
			return http.StatusConflict, c.kind
		}
	}
	return http.StatusServiceUnavailable, api.KindUnreachable
}

// bad is a mistake in a request. The text of err begins with its place, as all
// that package record returns does.
func bad(err error) error {
	place, msg, ok := strings.Cut(err.Error(), ": ")
	if !ok {
		place, msg = "body", err.Error()
	}
	return &status{&ipam.FieldError{Place: place, Msg: msg}, http.StatusBadRequest}
}

// body reads the document of a request.
func body(r *http.Request) ([]byte, error) {
	text, err := io.ReadAll(r.Body)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, fmt.Errorf("the document has more than %d bytes: %w", large.Limit, err)
	case err != nil:
		return nil, bad(fmt.Errorf("body: %w", err))
	}
	return text, nil
}

// find looks an object up that may be there, be absent, or have a value that
// cannot be read.
func find[T any](v *registry.View, m map[string]registry.Kept[T], what, folder, name string) (T, error) {
	k, ok := m[name]
	switch why := v.Unread[folder+name]; {
	case ok:
		return k.Value, nil
	case why != nil:
		return k.Value, fmt.Errorf("%s %q: %w: %w", what, name, registry.ErrUnread, why)
	}
	return k.Value, failure(http.StatusNotFound, "the registry has no %s %q", what, name)
}

// byName lists a map in the order of its keys.
func byName[T any](m map[string]registry.Kept[T]) []T {
	out := []T{}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[name].Value)
	}
	return out
}

func clusterStatus(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	c := v.Cluster.Value
	out := api.Cluster{ID: c.ID, Epoch: c.Epoch, Frozen: c.Frozen, Revision: v.Rev, UnreadCount: len(v.Unread), Waiting: []api.NodeName{}, Unread: []api.Unread{}}
	for _, n := range slices.Sorted(maps.Keys(v.Nodes)) {
		if _, gone := v.Gone[n]; !gone && v.Nodes[n].Value.Asserted < c.Epoch.Number {
			out.Waiting = append(out.Waiting, *named(v, n))
		}
	}
	for _, n := range slices.Sorted(slices.Values(v.UnreadNodes())) {
		out.Waiting = append(out.Waiting, *named(v, n))
	}
	for _, key := range slices.Sorted(maps.Keys(v.Unread)) {
		out.Unread = append(out.Unread, api.Unread{Key: key, Reason: v.Unread[key].Error()})
	}
	return out, nil
}

// recoverRegistry goes on with a registry that has gone back, on the word of an
// operator. A new epoch stops all trade until each node has asserted what it
// has, so one that nobody needs is refused.
func (s *Server) recoverRegistry(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	switch why := v.Unread[record.ClusterKey]; {
	case why != nil:
		return nil, fmt.Errorf("%w: %s: %w", registry.ErrUnread, record.ClusterKey, why)
	case v.Cluster.Rev == 0:
		return nil, registry.ErrNoCluster
	case v.Cluster.Value.Frozen == nil:
		return nil, failure(http.StatusConflict, "the registry is not frozen: no node has reported that it went back")
	}
	epoch, err := reg.Recover(r.Context())
	if err != nil {
		return nil, err
	}
	s.conf.Log.Info("recovered the registry, as an operator asked", "epoch", epoch.Number)
	return clusterStatus(reg, r)
}

// named names a node for people; nil is nobody.
func named(v *registry.View, n lease.Node) *api.NodeName {
	if n == "" {
		return nil
	}
	name := v.Nodes[n].Value.Name
	if name == "" {
		name = v.Gone[n].Value.Name
	}
	return &api.NodeName{Node: string(n), Name: name}
}
