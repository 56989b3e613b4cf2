package admin

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry/record"
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

// segmented are the routes that are answered with the VXLAN segments that this node
// is in, also without a registry.
func (s *Server) segmented() map[string]func(Segments, *http.Request) (any, error) {
	return map[string]func(Segments, *http.Request) (any, error){
		"GET /v1/segments":       func(all Segments, _ *http.Request) (any, error) { return all.Segments(), nil },
		"GET /v1/segments/{vni}": segment,
	}
}

func segment(all Segments, r *http.Request) (any, error) {
	text := r.PathValue("vni")
	vni, err := strconv.Atoi(text)
	if err != nil || vni < 1 || vni > record.MaxVNI {
		return nil, failure(http.StatusBadRequest, "%w", &ipam.FieldError{Place: "vni", Msg: fmt.Sprintf("%q is no number between 1 and %d", text, record.MaxVNI)})
	}
	out, ok := all.Segment(vni)
	if !ok {
		return nil, failure(http.StatusNotFound, "no attachment of this node is in a segment of VNI %d", vni)
	}
	return out, nil
}

func (s *Server) ofSegments(f func(Segments, *http.Request) (any, error)) http.HandlerFunc {
	return s.document(func(_ *ledger.Ledger, r *http.Request) (any, error) { return f(s.conf.Segments, r) })
}
