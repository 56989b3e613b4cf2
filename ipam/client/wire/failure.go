package wire

import (
	"context"
	"errors"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
)

// ErrElsewhere is returned by an agent whose ledger is not the one that is
// meant: the plugin opens that itself.
var ErrElsewhere = errors.New("the agent has another ledger open")

// Failure is an error on the wire: its text, and of what it stands on what a
// caller may want to know.
type Failure struct {
	Text string `json:"text"`
	// Is names the errors of sentinels that it is one of.
	Is []string `json:"is,omitempty"`
	// At most one of these.
	Field     *ipam.FieldError     `json:"field,omitempty"`
	Exhausted *ipam.ExhaustedError `json:"exhausted,omitempty"`
	Taken     *ipam.TakenError     `json:"taken,omitempty"`
	Ledger    *ledgerFailure       `json:"ledger,omitempty"`
	// Code for the runtime, 0 for none.
	Code uint `json:"code,omitempty"`
}

type ledgerFailure struct {
	Path  string `json:"path"`
	Msg   string `json:"msg"`
	Hint  string `json:"hint,omitempty"`
	Code  uint   `json:"code,omitempty"`
	Cause string `json:"cause,omitempty"`
}

// sentinels are the errors that somebody asks for with errors.Is, by name.
var sentinels = []struct {
	name string
	err  error
}{
	{"lost", ledger.ErrLost},
	{"newerSchema", ledger.ErrNewerSchema},
	{"unconfirmed", ledger.ErrUnconfirmed},
	{"readOnly", ledger.ErrReadOnly},
	{"corrupt", ledger.ErrCorrupt},
	{"noSpace", ledger.ErrNoSpace},
	{"locked", ledger.ErrLocked},
	{"unknown", boltfile.ErrUnknown},
	{"elsewhere", ErrElsewhere},
	{"deadline", context.DeadlineExceeded},
}

// NewFailure says err on the wire.
func NewFailure(err error) *Failure {
	f := &Failure{Text: err.Error()}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			f.Is = append(f.Is, s.name)
		}
	}
	var full *ipam.ExhaustedError
	var field *ipam.FieldError
	var taken *ipam.TakenError
	var l *ipam.LedgerError
	switch {
	case errors.As(err, &full):
		f.Exhausted = full
	case errors.As(err, &field):
		f.Field = field
	case errors.As(err, &taken):
		f.Taken = taken
	case errors.As(err, &l):
		f.Ledger = &ledgerFailure{Path: l.Path, Msg: l.Msg, Hint: l.Hint, Code: l.Code}
		if l.Err != nil {
			f.Ledger.Cause = l.Err.Error()
		}
	}
	var coded interface{ CNICode() uint }
	if errors.As(err, &coded) {
		f.Code = coded.CNICode()
	}
	return f
}

// told is an error that came over the wire.
type told struct {
	text string
	is   []error
}

func (e *told) Error() string   { return e.text }
func (e *told) Unwrap() []error { return e.is }

// toldCode is one with a code for the runtime.
type toldCode struct {
	told
	code uint
}

func (e *toldCode) CNICode() uint { return e.code }

// Err is the error that f says; nil for none.
func (f *Failure) Err() error {
	if f == nil {
		return nil
	}
	var is []error
	for _, s := range sentinels {
		for _, name := range f.Is {
			if name == s.name {
				is = append(is, s.err)
			}
		}
	}
	var typed error
	switch {
	case f.Exhausted != nil:
		typed = f.Exhausted
	case f.Field != nil:
		typed = f.Field
	case f.Taken != nil:
		typed = f.Taken
	case f.Ledger != nil:
		l := &ipam.LedgerError{Path: f.Ledger.Path, Msg: f.Ledger.Msg, Hint: f.Ledger.Hint, Code: f.Ledger.Code}
		if f.Ledger.Cause != "" {
			l.Err = &told{f.Ledger.Cause, is}
		}
		typed = l
	}
	if typed != nil && typed.Error() == f.Text {
		return typed
	}
	if typed != nil {
		is = append([]error{typed}, is...)
	}
	if f.Code != 0 {
		return &toldCode{told{f.Text, is}, f.Code}
	}
	return &told{f.Text, is}
}
