package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// status is an error with the status that it is answered with.
type status struct {
	error
	code int
}

func (s *status) Unwrap() error { return s.error }

func failure(code int, format string, args ...any) error {
	return &status{fmt.Errorf(format, args...), code}
}

// plain are the routes that are answered without the ledger, or say so.
func (s *Server) plain() map[string]http.Handler {
	return map[string]http.Handler{
		"GET /healthz":          http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }),
		"GET /readyz":           http.HandlerFunc(s.readyz),
		"GET /metrics":          promhttp.HandlerFor(s.conf.Registry, promhttp.HandlerOpts{}),
		"GET /v1/ledger/backup": http.HandlerFunc(s.backup),
		"GET /v1/events":        http.HandlerFunc(s.events),
		"GET /v1/openapi.yaml": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/yaml")
			_, _ = w.Write(api.OpenAPI)
		}),
	}
}

// documents are the routes that are answered with what the ledger has.
func (s *Server) documents() map[string]func(*ledger.Ledger, *http.Request) (any, error) {
	return map[string]func(*ledger.Ledger, *http.Request) (any, error){
		"GET /v1/node":                               s.node,
		"GET /v1/pools":                              pools,
		"GET /v1/pools/{name}":                       pool,
		"GET /v1/addresses":                          addresses,
		"GET /v1/addresses/{address}":                address,
		"DELETE /v1/addresses/{address}":             s.release,
		"GET /v1/addresses/{address}/history":        history,
		"PUT /v1/addresses/{address}/reservation":    s.reserve,
		"DELETE /v1/addresses/{address}/reservation": s.clear(ipam.Reserved),
		"GET /v1/conflicts":                          conflicts,
		"DELETE /v1/conflicts/{address}":             s.clear(ipam.Quarantined),
		"POST /v1/ledger/import":                     s.take,
		"GET /v1/attachments":                        attachments,
		"GET /v1/ledger":                             func(l *ledger.Ledger, _ *http.Request) (any, error) { return l.Dump() },
		"GET /v1/ledger/check":                       check,
	}
}

// handler routes the requests.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range s.plain() {
		mux.Handle(pattern, h)
	}
	for pattern, f := range s.documents() {
		mux.HandleFunc(pattern, s.document(f))
	}
	for pattern, f := range s.cluster() {
		mux.HandleFunc(pattern, s.inRegistry(f))
	}
	for pattern, f := range s.networked() {
		mux.HandleFunc(pattern, s.ofNetworks(f))
	}
	for pattern, f := range s.segmented() {
		mux.HandleFunc(pattern, s.ofSegments(f))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		write(w, http.StatusNotFound, api.Problem{Error: wire.NewFailure(fmt.Errorf("there is no %s %s", r.Method, r.URL.Path))})
	})
	return s.fatal(mux)
}

// fatal ends the agent when a handler panics. The server would go on, perhaps
// with a transaction that others wait for and nobody ends.
func (s *Server) fatal(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				s.conf.Log.Error("panic", "err", p, "stack", string(debug.Stack()))
				os.Exit(2)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// document answers with what f makes of the ledger.
func (s *Server) document(f func(*ledger.Ledger, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var v any
		err := s.conf.Ledger.With(func(l *ledger.Ledger) (err error) {
			v, err = f(l, r)
			return err
		})
		var known *status
		var field *ipam.FieldError
		switch {
		case err == nil:
			write(w, http.StatusOK, v)
		case errors.As(err, &known):
			write(w, known.code, api.Problem{Error: wire.NewFailure(known.error)})
		case errors.As(err, &field):
			write(w, http.StatusBadRequest, api.Problem{Error: wire.NewFailure(err)})
		default:
			write(w, http.StatusServiceUnavailable, api.Problem{Error: wire.NewFailure(err)})
		}
	}
}

func write(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // whoever asked has gone
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	r := api.Ready{Pending: s.conf.Pending()}
	if err := s.conf.Ledger.With(func(l *ledger.Ledger) error { return l.Refused() }); err != nil {
		r.Reason = err.Error()
	}
	code := http.StatusOK
	if r.Ready = r.Reason == "" && len(r.Pending) == 0; !r.Ready {
		code = http.StatusServiceUnavailable
	}
	write(w, code, r)
}

func (s *Server) node(l *ledger.Ledger, _ *http.Request) (any, error) {
	info, err := l.Info()
	return api.Node{Name: s.conf.Node, Version: s.conf.Version, DataDir: s.conf.DataDir, Ledger: info}, err
}

func pools(l *ledger.Ledger, _ *http.Request) (any, error) {
	known, err := l.Pools()
	if err != nil {
		return nil, err
	}
	out := []api.Pool{}
	for _, p := range known {
		counts, err := l.Counts(p)
		if err != nil {
			return nil, err
		}
		out = append(out, api.Pool{Pool: p, Counts: counts})
	}
	return out, nil
}

func pool(l *ledger.Ledger, r *http.Request) (any, error) {
	known, err := l.Pools()
	if err != nil {
		return nil, err
	}
	for _, p := range known {
		if p.Name == r.PathValue("name") {
			counts, err := l.Counts(p)
			return api.Pool{Pool: p, Counts: counts}, err
		}
	}
	return nil, failure(http.StatusNotFound, "the ledger knows no pool %q", r.PathValue("name"))
}

func addresses(l *ledger.Ledger, r *http.Request) (any, error) {
	pool, network, state := r.FormValue("pool"), r.FormValue("network"), ipam.State(r.FormValue("state"))
	switch state {
	case "", ipam.Held, ipam.Cooling, ipam.Quarantined, ipam.Reserved, ipam.Lent:
	default:
		return nil, &ipam.FieldError{Place: "state", Msg: fmt.Sprintf("%q is none of held, cooling, quarantined, reserved, lent", state)}
	}
	out := []ipam.Record{}
	err := l.Records(func(rec ipam.Record) error {
		if (pool == "" || rec.Pool == pool) && (network == "" || rec.Attachment.Network == network) && (state == "" || rec.State == state) {
			out = append(out, rec)
		}
		return nil
	})
	return out, err
}

func parseAddress(r *http.Request) (netip.Addr, error) {
	a, err := netip.ParseAddr(r.PathValue("address"))
	if err != nil || a.Zone() != "" {
		return a, &ipam.FieldError{Place: "address", Msg: fmt.Sprintf("%q is not an IP address", r.PathValue("address"))}
	}
	return a.Unmap(), nil
}

func address(l *ledger.Ledger, r *http.Request) (any, error) {
	a, err := parseAddress(r)
	if err != nil {
		return nil, err
	}
	rec, found, err := l.Record(a)
	if err == nil && !found {
		err = failure(http.StatusNotFound, "address %s is free: the ledger has no record of it", a)
	}
	return rec, err
}

// release takes an address from its holder, on the word of an operator.
func (s *Server) release(l *ledger.Ledger, r *http.Request) (any, error) {
	a, err := parseAddress(r)
	if err != nil {
		return nil, err
	}
	rec, err := l.ReleaseAddress(a)
	if err == nil {
		s.conf.Log.Info("released an address, as an operator asked", "addr", a, "container", rec.Attachment.ContainerID)
	}
	return rec, err
}

func attachments(l *ledger.Ledger, r *http.Request) (any, error) {
	network := r.FormValue("network")
	out := []ipam.AttachmentRecord{}
	err := l.Attachments(func(a ipam.AttachmentRecord) error {
		if network == "" || a.Attachment.Network == network {
			out = append(out, a)
		}
		return nil
	})
	return out, err
}

func check(l *ledger.Ledger, _ *http.Request) (any, error) {
	findings, err := l.Check()
	return api.Check{Findings: append([]string{}, findings...)}, err
}
