package admin

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

func networks(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	return byName(v.Networks), nil
}

func network(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	return find(v, v.Networks, "network", record.NetworkFolder, r.PathValue("name"))
}

func (s *Server) createNetwork(reg registry.Registry, r *http.Request) (any, error) {
	text, err := body(r)
	if err != nil {
		return nil, err
	}
	n, err := record.DecodeNetwork(text)
	if err != nil {
		return nil, bad(err)
	}
	if err := missingPool(reg.CreateNetwork(r.Context(), n)); err != nil {
		return nil, err
	}
	s.conf.Log.Info("created a network, as an operator asked", "network", n.Name)
	return n, nil
}

func (s *Server) putNetwork(reg registry.Registry, r *http.Request) (any, error) {
	text, err := body(r)
	if err != nil {
		return nil, err
	}
	n, err := record.DecodeNetwork(text)
	if err != nil {
		return nil, bad(err)
	}
	if err := samePath(r, "network", n.Name); err != nil {
		return nil, err
	}
	if err := missingPool(reg.PutNetwork(r.Context(), n)); err != nil {
		return nil, err
	}
	s.conf.Log.Info("put a network, as an operator asked", "network", n.Name)
	return n, nil
}

// missingPool: what is missing is not what the path names.
func missingPool(err error) error {
	if errors.Is(err, registry.ErrNoPool) {
		return &status{err, http.StatusConflict}
	}
	return err
}

// deleteNetwork deletes one that cannot be read, too: an operator has no other
// way to be rid of it.
func (s *Server) deleteNetwork(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	n, err := find(v, v.Networks, "network", record.NetworkFolder, name)
	if err != nil && !errors.Is(err, registry.ErrUnread) {
		return nil, err
	}
	if err := reg.DeleteNetwork(r.Context(), name); err != nil {
		return nil, err
	}
	s.conf.Log.Info("deleted a network, as an operator asked", "network", name)
	return n, nil
}

// allTenants are those that have a quota, VNIs or a pool.
func allTenants(v *registry.View) map[string]*api.Tenant {
	out := make(map[string]*api.Tenant)
	add := func(name string) *api.Tenant {
		if out[name] == nil {
			out[name] = &api.Tenant{Name: name, Leased: v.Leased(name), Pools: []string{}}
		}
		return out[name]
	}
	for name, t := range v.Tenants {
		x := add(name)
		x.Quota, x.VNIs = t.Value.Quota, t.Value.VNIs
	}
	for _, p := range byName(v.Pools) {
		t := add(p.Tenant)
		t.Pools = append(t.Pools, p.Name)
	}
	return out
}

func tenants(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	all := allTenants(v)
	out := []*api.Tenant{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[name])
	}
	return out, nil
}

func tenant(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	return oneTenant(v, r.PathValue("name"))
}

func oneTenant(v *registry.View, name string) (*api.Tenant, error) {
	if why := v.Unread[record.TenantFolder+name]; why != nil {
		return nil, fmt.Errorf("tenant %q: %w: %w", name, registry.ErrUnread, why)
	}
	if t := allTenants(v)[name]; t != nil {
		return t, nil
	}
	return nil, failure(http.StatusNotFound, "no pool is of tenant %q, and it has no quota", name)
}

func (s *Server) putTenant(reg registry.Registry, r *http.Request) (any, error) {
	text, err := body(r)
	if err != nil {
		return nil, err
	}
	t, err := record.DecodeTenant(text)
	if err != nil {
		return nil, bad(err)
	}
	if err := samePath(r, "tenant", t.Name); err != nil {
		return nil, err
	}
	if err := reg.PutTenant(r.Context(), t); err != nil {
		return nil, err
	}
	s.conf.Log.Info("set a quota and VNIs, as an operator asked", "tenant", t.Name, "quota", t.Quota, "vnis", t.VNIs)
	return tenant(reg, r)
}

// deleteTenant forgets a quota and VNIs, also one that cannot be read.
func (s *Server) deleteTenant(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	t, err := oneTenant(v, name)
	if errors.Is(err, registry.ErrUnread) {
		t, err = &api.Tenant{Name: name, Pools: []string{}}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := reg.DeleteTenant(r.Context(), name); err != nil {
		return nil, err
	}
	s.conf.Log.Info("deleted a quota and VNIs, as an operator asked", "tenant", name)
	return t, nil
}

func nameOf(n record.Number) api.SegmentName {
	return api.SegmentName{VNI: n.VNI, Tenant: n.Tenant, Name: n.Name}
}

func segmentNames(reg registry.Registry, r *http.Request) (any, error) {
	names, err := reg.Names(r.Context())
	out := []api.SegmentName{}
	for _, n := range names {
		out = append(out, nameOf(n))
	}
	return out, err
}

// forgetSegment frees the VNI that a segment has by its name.
func (s *Server) forgetSegment(reg registry.Registry, r *http.Request) (any, error) {
	n, err := reg.Forget(r.Context(), r.PathValue("name"), r.PathValue("segment"))
	if err != nil {
		return nil, err
	}
	s.conf.Log.Info("forgot the VNI of a segment, as an operator asked", "tenant", n.Tenant, "segment", n.Name, "vni", n.VNI)
	return nameOf(n), nil
}
