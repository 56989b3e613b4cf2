package ipam

import (
	"fmt"
	"net/netip"
)

// Error codes as the CNI specification fixes them, and this suite's own from
// 100 on. pkg/cni prints them; the domain only says which one applies.
const (
	CodeUnsupportedField = 2
	CodeInvalidEnv       = 4
	CodeIO               = 5
	CodeDecode           = 6
	CodeInvalidConfig    = 7
	CodeTryAgainLater    = 11
	CodeAddressTaken     = 102
	CodeLedger           = 104
	CodeCheck            = 105
)

// FieldError is a value in a configuration or an argument that cannot be
// used. Place is its path, such as `ipam.ranges[0][1].gateway`.
type FieldError struct {
	Place string `json:"place"`
	Msg   string `json:"msg"`
	// Code is CodeInvalidConfig unless set.
	Code uint `json:"code,omitempty"`
}

func (e *FieldError) Error() string {
	if e.Place == "" {
		return e.Msg
	}
	return e.Place + ": " + e.Msg
}

// CNICode is the code that the error carries to the runtime.
func (e *FieldError) CNICode() uint {
	if e.Code == 0 {
		return CodeInvalidConfig
	}
	return e.Code
}

func fieldErrorf(place, format string, args ...any) *FieldError {
	return &FieldError{Place: place, Msg: fmt.Sprintf(format, args...)}
}

// Counts of the addresses of a range set.
type Counts struct {
	// Usable addresses in all; 1<<63-1 stands for that many and more.
	Usable      uint64 `json:"usable"`
	Held        uint64 `json:"held"`
	Cooling     uint64 `json:"cooling"`
	Quarantined uint64 `json:"quarantined"`
	// Reserved are also those that are lent.
	Reserved uint64 `json:"reserved"`
	// Other are addresses that the host itself or overlapping pools hold.
	Other uint64 `json:"other"`
	// Giving and Elsewhere, of a cluster pool: on their way to another node, and
	// not this node's.
	Giving    uint64 `json:"giving,omitempty"`
	Elsewhere uint64 `json:"elsewhere,omitempty"`
}

// Free reports whether this node has an address left to give, if only one that
// still cools.
func (c Counts) Free() bool {
	return c.Held+c.Quarantined+c.Reserved+c.Other+c.Giving+c.Elsewhere < c.Usable
}

// ExhaustedError is returned when a range set has no address left to give.
type ExhaustedError struct {
	Pool   string `json:"pool"`
	Ranges string `json:"ranges"`
	Counts Counts `json:"counts"`
	// Cluster: the node leases what it has of the pool.
	Cluster bool `json:"cluster,omitempty"`
}

// More reports whether there are addresses that the node might get yet.
func (e *ExhaustedError) More() bool { return e.Counts.Elsewhere > 0 }

func (e *ExhaustedError) Error() string {
	c := e.Counts
	if e.Cluster {
		return e.cluster()
	}
	return fmt.Sprintf("pool %q has no free address in %s: %d usable, %d held, %d cooling, %d quarantined, %d reserved, %d used by others; underlayctl ledger check names holders that are gone",
		e.Pool, e.Ranges, c.Usable, c.Held, c.Cooling, c.Quarantined, c.Reserved, c.Other)
}

func (e *ExhaustedError) cluster() string {
	c := e.Counts
	s := fmt.Sprintf("pool %q has no free address on this node in %s: of %d usable it leases %d: %d held, %d cooling, %d quarantined, %d reserved, %d used by others, %d on their way to other nodes",
		e.Pool, e.Ranges, c.Usable, c.Usable-c.Elsewhere, c.Held, c.Cooling, c.Quarantined, c.Reserved, c.Other, c.Giving)
	if e.More() {
		return s
	}
	return s + "; the node has all of the pool"
}

// CNICode asks the runtime to try again later.
func (e *ExhaustedError) CNICode() uint { return CodeTryAgainLater }

// TakenError is returned when an address that was asked for by name cannot
// be given.
type TakenError struct {
	Addr  netip.Addr `json:"addr"`
	State State      `json:"state"`
	// Holder is the attachment, or the reason of a quarantine or reservation.
	Holder string `json:"holder"`
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("requested address %s is %s: %s", e.Addr, e.State, e.Holder)
}

// CNICode is CodeAddressTaken.
func (e *TakenError) CNICode() uint { return CodeAddressTaken }

// LedgerError is a ledger that cannot be used as it is. Hint says what the
// operator can do.
type LedgerError struct {
	Path string
	Msg  string
	Hint string
	Err  error
	// Code is CodeLedger unless set.
	Code uint
}

func (e *LedgerError) Error() string {
	s := "ledger " + e.Path + ": " + e.Msg
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

func (e *LedgerError) Unwrap() error { return e.Err }

// CNICode is the code that the error carries to the runtime.
func (e *LedgerError) CNICode() uint {
	if e.Code == 0 {
		return CodeLedger
	}
	return e.Code
}
