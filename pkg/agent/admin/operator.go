package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// history lists who held an address.
func history(l *ledger.Ledger, r *http.Request) (any, error) {
	a, err := parseAddress(r)
	if err != nil {
		return nil, err
	}
	out := []ipam.Hold{}
	err = l.History(a, func(h ipam.Hold) error {
		out = append(out, h)
		return nil
	})
	return out, err
}

func conflicts(l *ledger.Ledger, _ *http.Request) (any, error) {
	out := []ipam.Record{}
	err := l.Records(func(rec ipam.Record) error {
		if rec.State == ipam.Quarantined {
			out = append(out, rec)
		}
		return nil
	})
	return out, err
}

// reserve keeps an address out of use.
func (s *Server) reserve(l *ledger.Ledger, r *http.Request) (any, error) {
	a, err := parseAddress(r)
	if err != nil {
		return nil, err
	}
	rec, err := l.Reserve(r.FormValue("pool"), a, r.FormValue("reason"))
	if err == nil {
		s.conf.Log.Info("reserved an address, as an operator asked", "addr", a, "pool", rec.Pool)
	}
	return rec, err
}

// clear frees an address that is in a state.
func (s *Server) clear(state ipam.State) func(*ledger.Ledger, *http.Request) (any, error) {
	return func(l *ledger.Ledger, r *http.Request) (any, error) {
		a, err := parseAddress(r)
		if err != nil {
			return nil, err
		}
		rec, err := l.Clear(a, state)
		if err == nil {
			s.conf.Log.Info("freed an address that was "+string(state)+", as an operator asked", "addr", a, "pool", rec.Pool)
		}
		return rec, err
	}
}

// backup streams a copy of the file. The copy is made first: whoever reads slowly
// would keep the ledger from growing.
func (s *Server) backup(w http.ResponseWriter, _ *http.Request) {
	err := func() error {
		f, err := os.CreateTemp("", "underlayd-backup-*")
		if err != nil {
			return err
		}
		defer f.Close()
		if err := os.Remove(f.Name()); err != nil {
			return err
		}
		if err := s.conf.Ledger.With(func(l *ledger.Ledger) error { return l.Backup(f) }); err != nil {
			return err
		}
		size, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		_, _ = io.Copy(w, f) // one that is cut off is seen by its length
		return nil
	}()
	if err != nil {
		write(w, http.StatusServiceUnavailable, api.Problem{Error: wire.NewFailure(err)})
	}
}

// take imports what another address manager gave out.
func (s *Server) take(l *ledger.Ledger, r *http.Request) (any, error) {
	var found []ledger.Found
	d := json.NewDecoder(io.LimitReader(r.Body, 64<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(&found); err != nil {
		return nil, &ipam.FieldError{Place: "body", Msg: fmt.Sprintf("is no list of what was found: %v", err)}
	}
	if err := l.Import(found); err != nil {
		return nil, err
	}
	s.conf.Log.Info("imported addresses, as an operator asked", "entries", len(found))
	return api.Imported{Imported: len(found)}, nil
}
