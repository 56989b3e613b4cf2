// Package rest is the form of the entries of the rest queue, in which the
// ledger has the addresses whose state ends by time, those that end first in
// front: end, address -> beginning and kind.
//
// Left out: the queue itself, which is a bucket of the ledger.
package rest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/run"
)

// ErrBroken is returned for what is no entry.
var ErrBroken = errors.New("an entry of the rest queue is none")

// Kind says who may have the address.
type Kind byte

const (
	// Anybody may, when nothing else is free.
	Anybody Kind = 'a'
	// Owner alone.
	Owner Kind = 'o'
	// Nobody.
	Nobody Kind = 'n'
)

// Entry is an address that rests.
type Entry struct {
	Addr         netip.Addr
	Since, Until time.Time
	Kind         Kind
}

// Over is ipam.Record.Over.
func (e Entry) Over(now time.Time) bool { return ipam.RestOver(now, e.Since, e.Until) }

// Rests reports whether a record has an entry.
func Rests(r ipam.Record) bool { return r.State == ipam.Cooling || r.State == ipam.Quarantined }

// Of returns the form of the entry of a record that rests.
func Of(r ipam.Record) (key, value []byte) {
	k := Anybody
	switch {
	case r.State == ipam.Quarantined:
		k = Nobody
	case r.Strict:
		k = Owner
	}
	return append(Micros(r.Until), run.Key(r.Address.Addr())...), append(Micros(r.Since), byte(k))
}

// Decode is the inverse of Of.
func Decode(key, value []byte) (e Entry, err error) {
	ok := len(key) > 8 && len(value) == 9
	if ok {
		e.Until, e.Since, e.Kind = parseMicros(key), parseMicros(value), Kind(value[8])
		e.Addr, ok = run.ParseKey(key[8:])
	}
	if !ok {
		err = fmt.Errorf("%w: %x", ErrBroken, key)
	}
	return e, err
}

// Micros turns a time into bytes that sort like it.
func Micros(t time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(t.UnixMicro())^1<<63)
}

func parseMicros(b []byte) time.Time {
	return time.UnixMicro(int64(binary.BigEndian.Uint64(b) ^ 1<<63)).UTC()
}
