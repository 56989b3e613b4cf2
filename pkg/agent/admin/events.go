package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// events answers with what the agent remembers, or goes on with what comes.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	f, follow, err := eventFilter(r)
	if err != nil {
		write(w, http.StatusBadRequest, api.Problem{Error: wire.NewFailure(err)})
		return
	}
	if follow {
		s.stream(w, r, f)
		return
	}
	out := []api.Event{}
	all, _ := s.conf.Events.Since(f.Since)
	for _, e := range all {
		if f.Kind == "" || e.Kind == f.Kind {
			out = append(out, e)
		}
	}
	write(w, http.StatusOK, out)
}

func eventFilter(r *http.Request) (f api.EventFilter, follow bool, err error) {
	if v := r.FormValue("since"); v != "" {
		if f.Since, err = strconv.ParseUint(v, 10, 64); err != nil {
			return f, false, &ipam.FieldError{Place: "since", Msg: fmt.Sprintf("%q is no number of an event", v)}
		}
	}
	if v := r.FormValue("follow"); v != "" {
		if follow, err = strconv.ParseBool(v); err != nil {
			return f, false, &ipam.FieldError{Place: "follow", Msg: fmt.Sprintf("%q is neither true nor false", v)}
		}
	}
	if f.Kind = api.EventKind(r.FormValue("kind")); f.Kind != "" && !slices.Contains(api.EventKinds(), f.Kind) {
		err = &ipam.FieldError{Place: "kind", Msg: fmt.Sprintf("%q is none of %q", f.Kind, api.EventKinds())}
	}
	return f, follow, err
}

// stream writes an event a line until the caller goes or the agent ends. One
// who reads more slowly than events come misses those that are forgotten
// meanwhile, and sees it by their numbers.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, f api.EventFilter) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	lines, out := json.NewEncoder(w), http.NewResponseController(w)
	for {
		events, more := s.conf.Events.Since(f.Since)
		for _, e := range events {
			f.Since = e.Seq
			if f.Kind != "" && e.Kind != f.Kind {
				continue
			}
			if lines.Encode(e) != nil {
				return // whoever asked has gone
			}
		}
		if out.Flush() != nil {
			return
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return
		case <-s.closing:
			return
		}
	}
}
