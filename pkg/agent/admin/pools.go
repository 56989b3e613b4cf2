package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

func clusterPools(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	out := []api.ClusterPool{}
	for _, p := range byName(v.Pools) {
		c := api.ClusterPool{Pool: p, Networks: []string{}}
		if c.Sets, err = usage(v, p); err != nil {
			return nil, err
		}
		for _, n := range byName(v.Networks) {
			if n.Pool == p.Name {
				c.Networks = append(c.Networks, n.Name)
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// usage counts what is leased of each range set of a pool.
func usage(v *registry.View, p record.Pool) ([]api.ClusterCounts, error) {
	out := make([]api.ClusterCounts, len(p.Sets))
	for i, set := range p.Sets {
		grid, err := p.Grid(i)
		if err != nil {
			return nil, err
		}
		c := &out[i]
		c.Usable = set.Size()
		for cidr, s := range v.Blocks[p.UUID] {
			if !grid.Contains(cidr) || s.Block.Owner == "" && len(s.Block.Given) == 0 {
				continue
			}
			if s.Block.Owner != "" {
				c.Blocks++
			}
			for a := cidr.Addr(); cidr.Contains(a); a = a.Next() {
				e := s.Block.At(a)
				if _, usable := set.Find(a); !usable {
					continue
				}
				if e.Node != "" {
					c.Leased++
				} else if e.Parked() {
					c.Parked++
				}
			}
		}
	}
	return out, nil
}

func clusterPool(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	return find(v, v.Pools, "pool", record.PoolFolder, r.PathValue("name"))
}

func (s *Server) createPool(reg registry.Registry, r *http.Request) (any, error) {
	text, err := body(r)
	if err != nil {
		return nil, err
	}
	p, err := record.LoadPool(text)
	switch {
	case err != nil:
		return nil, bad(err)
	case p.State != "":
		return nil, bad(errors.New("pool.state: is kept by the registry; leave it out"))
	}
	if p, err = reg.CreatePool(r.Context(), p); err != nil {
		return nil, err
	}
	s.conf.Log.Info("created a pool, as an operator asked", "pool", p.Name)
	return p, nil
}

func (s *Server) updatePool(reg registry.Registry, r *http.Request) (any, error) {
	text, err := body(r)
	if err != nil {
		return nil, err
	}
	p, err := record.LoadPool(text)
	if err != nil {
		return nil, bad(err)
	}
	if err := samePath(r, "pool", p.Name); err != nil {
		return nil, err
	}
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	old, err := find(v, v.Pools, "pool", record.PoolFolder, p.Name)
	if err != nil {
		return nil, err
	}
	if err := sameBlocks(text, old); err != nil {
		return nil, err
	}
	if p, err = reg.UpdatePool(r.Context(), p); err != nil {
		return nil, err
	}
	s.conf.Log.Info("updated a pool, as an operator asked", "pool", p.Name)
	return p, nil
}

// samePath: a document is put where it says that it is.
func samePath(r *http.Request, what, name string) error {
	if at := r.PathValue("name"); name != at {
		return bad(fmt.Errorf("%s.name: %q stands in the document of %q", what, name, at))
	}
	return nil
}

// sameBlocks refuses a document that names another size of blocks than the
// pool has. One that names none means that one, not the default.
func sameBlocks(text []byte, old record.Pool) error {
	var w struct {
		BlockPrefix map[string]int `json:"blockPrefix"`
	}
	if err := json.Unmarshal(text, &w); err != nil {
		return bad(fmt.Errorf("pool.blockPrefix: %w", err))
	}
	have := map[string]int{"ipv4": old.Bits4, "ipv6": old.Bits6}
	for _, family := range slices.Sorted(maps.Keys(w.BlockPrefix)) {
		if want := w.BlockPrefix[family]; want != 0 && have[family] != 0 && want != have[family] {
			return fmt.Errorf("pool.blockPrefix.%s: %d, and pool %q has %d: %w", family, want, old.Name, have[family], registry.ErrFixed)
		}
	}
	return nil
}

func (s *Server) deletePool(reg registry.Registry, r *http.Request) (any, error) {
	v, err := reg.View(r.Context())
	if err != nil {
		return nil, err
	}
	p, err := find(v, v.Pools, "pool", record.PoolFolder, r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	if err := reg.DeletePool(r.Context(), p.Name); err != nil {
		return nil, err
	}
	s.conf.Log.Info("deleted a pool, as an operator asked", "pool", p.Name)
	return p, nil
}
