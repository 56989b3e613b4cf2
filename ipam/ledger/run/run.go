// Package run keeps sets of addresses as their longest unbroken runs, in a
// bucket of ordered keys: last address -> first address. The key is the last one
// so that a single forward seek finds the run that an address lies in, or the
// next one after it. Whatever the set holds, each operation takes a bounded
// number of steps in the bucket.
//
// Left out: what a set means, and transactions.
package run

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"github.com/underlay-cni/underlay/ipam"
)

// ErrBroken is returned when the bucket holds what is no set, or when an address
// to be added is in it, or one to be removed is not.
var ErrBroken = errors.New("the runs of addresses are wrong")

// Bucket is what a set is kept in.
type Bucket interface {
	// Seek returns the first entry from key on, a nil key if there is none.
	Seek(key []byte) (k, v []byte)
	Get(key []byte) []byte
	Put(key, value []byte) error
	Delete(key []byte) error
}

// Key is the form of an address in a key: '4' or '6' and its 4 or 16 bytes.
func Key(a netip.Addr) []byte {
	if a.Is4() {
		return append([]byte{'4'}, a.AsSlice()...)
	}
	return append([]byte{'6'}, a.AsSlice()...)
}

// ParseKey is the inverse of Key; ok is false for anything else.
func ParseKey(key []byte) (a netip.Addr, ok bool) {
	if len(key) == 0 {
		return a, false
	}
	a, ok = netip.AddrFromSlice(key[1:])
	return a, ok && !a.Is4In6() && bytes.Equal(Key(a), key)
}

// Decode reads a run from an entry, whose key is without the set's prefix.
func Decode(key, value []byte) (r ipam.Interval, err error) {
	last, ok := ParseKey(key)
	first, ok2 := ParseKey(value)
	if !ok || !ok2 || last.Less(first) || first.Is4() != last.Is4() {
		return r, fmt.Errorf("%w: %x-%x is none", ErrBroken, value, key)
	}
	return ipam.Interval{First: first, Last: last}, nil
}

// Set is the set of those keys of a bucket that begin with Prefix.
type Set struct {
	Bucket Bucket
	Prefix []byte
}

func (s Set) key(a netip.Addr) []byte { return append(bytes.Clone(s.Prefix), Key(a)...) }

// From returns the first run that ends at a or later.
func (s Set) From(a netip.Addr) (r ipam.Interval, ok bool, err error) {
	k, v := s.Bucket.Seek(s.key(a))
	rest, ours := bytes.CutPrefix(k, s.Prefix)
	if k == nil || !ours || len(rest) == 0 || rest[0] != Key(a)[0] {
		return r, false, nil
	}
	r, err = Decode(rest, v)
	return r, err == nil, err
}

// At returns the run that a lies in, if any.
func (s Set) At(a netip.Addr) (r ipam.Interval, ok bool, err error) {
	r, ok, err = s.From(a)
	return r, ok && !a.Less(r.First), err
}

// Add adds a, joining the runs that it connects.
func (s Set) Add(a netip.Addr) error {
	next, ok, err := s.From(a)
	if err != nil {
		return err
	}
	r := ipam.Interval{First: a, Last: a}
	switch {
	case !ok:
	case !a.Less(next.First):
		return fmt.Errorf("%w: %s is there already", ErrBroken, a)
	case next.First == a.Next():
		r.Last = next.Last
	}
	if p := a.Prev(); p.IsValid() {
		if v := s.Bucket.Get(s.key(p)); v != nil {
			before, err := Decode(Key(p), v)
			if err != nil {
				return err
			}
			r.First = before.First
			if err := s.Bucket.Delete(s.key(p)); err != nil {
				return err
			}
		}
	}
	return s.Bucket.Put(s.key(r.Last), Key(r.First))
}

// Remove takes a out of its run, splitting it.
func (s Set) Remove(a netip.Addr) error {
	r, ok, err := s.At(a)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: %s is not there", ErrBroken, a)
	}
	if a == r.Last {
		err = s.Bucket.Delete(s.key(a))
	} else {
		err = s.Bucket.Put(s.key(r.Last), Key(a.Next()))
	}
	if err == nil && r.First != a {
		err = s.Bucket.Put(s.key(a.Prev()), Key(r.First))
	}
	return err
}
