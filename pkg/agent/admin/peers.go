package admin

import (
	"net/http"

	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// networked are the routes that are answered with what this node makes of the
// cluster's networks, also while the registry is away.
func (s *Server) networked() map[string]func(Networks, *http.Request) any {
	return map[string]func(Networks, *http.Request) any{
		"GET /v1/peers":   func(n Networks, r *http.Request) any { return n.Peers(r.FormValue("network")) },
		"GET /v1/routing": func(n Networks, _ *http.Request) any { return n.Routing() },
	}
}

func (s *Server) ofNetworks(f func(Networks, *http.Request) any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.conf.Networks == nil {
			write(w, http.StatusServiceUnavailable, api.Problem{Error: wire.NewFailure(errNoRegistry), Kind: api.KindNoRegistry})
			return
		}
		write(w, http.StatusOK, f(s.conf.Networks, r))
	}
}
