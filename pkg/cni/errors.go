package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
)

// CodeNotAvailable is the specification's "plugin not available" of STATUS.
const CodeNotAvailable = 50

// Codes of this suite, beside those of the specification. 102, 104 and 105
// belong to address management (package ipam).
const (
	// CodeParent: the parent interface is missing, down or cannot carry the link.
	CodeParent = 100
	// CodeLink: the interface's name is taken, or the kernel refused the link.
	CodeLink = 101
	// CodeConflict: somebody else answers for an address asked for by name.
	CodeConflict = 103
	// CodeCheck: CHECK found a difference.
	CodeCheck = 105
)

// Error is an error with the code that the runtime is to see.
type Error struct {
	Code uint
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// CNICode is Code.
func (e *Error) CNICode() uint { return e.Code }

// Errorf makes an Error; the format is fmt.Errorf's.
func Errorf(code uint, format string, args ...any) error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...)}
}

// toCNI turns any error into one with a code: that of the first error in the
// chain that knows one (a method CNICode() uint), or of a foreign plugin, or
// 11 when time ran out, or 5.
func toCNI(err error) error {
	if err == nil {
		return nil
	}
	var foreign *types.Error
	var coded interface{ CNICode() uint }
	code := uint(types.ErrIOFailure)
	switch {
	case errors.As(err, &coded):
		code = coded.CNICode()
	case errors.As(err, &foreign):
		if error(foreign) == err {
			return foreign
		}
		return types.NewError(foreign.Code, err.Error(), foreign.Details)
	case errors.Is(err, context.DeadlineExceeded):
		code = types.ErrTryAgainLater
	}
	return types.NewError(code, err.Error(), "")
}
