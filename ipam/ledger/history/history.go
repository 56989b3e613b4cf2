// Package history keeps who held which address until when, in a bucket of
// ordered keys: number, address -> the hold. Numbers grow by one from hold to
// hold, so that one is added at the end whatever the clock says, and the ends of
// the bucket tell how many there are. Of many the oldest are dropped, a batch at
// a time: the beginning of the bucket is seldom touched.
//
// To read it is to go through all of it. Left out: what lasts still, which the
// records of addresses say, and transactions.
package history

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
	"github.com/underlay-cni/underlay/ipam/ledger/run"
)

// ErrBroken is returned when the bucket holds what is no history.
var ErrBroken = errors.New("the history of addresses is wrong")

// Most is how many holds are kept. It is some months of a node where a container
// ends every two minutes, in some 16 MiB.
const Most = 1 << 16

// Bucket is what a history is kept in.
type Bucket interface {
	// Seek returns the first entry from key on, Last the last one; a nil key if
	// there is none.
	Seek(key []byte) (k, v []byte)
	Last() (k, v []byte)
	Put(key, value []byte) error
	Delete(key []byte) error
}

// Log is the history in a bucket.
type Log struct {
	Bucket Bucket
	// Most holds are kept; 0 stands for the constant.
	Most int
}

const numberLen = 8

func key(n uint64, a netip.Addr) []byte {
	return append(binary.BigEndian.AppendUint64(nil, n), run.Key(a)...)
}

func parseKey(k []byte) (n uint64, a netip.Addr, err error) {
	if len(k) > numberLen {
		if a, ok := run.ParseKey(k[numberLen:]); ok {
			return binary.BigEndian.Uint64(k), a, nil
		}
	}
	return 0, a, fmt.Errorf("%w: %x is no key", ErrBroken, k)
}

// Decode reads a hold from an entry, and its number.
func Decode(k, v []byte) (n uint64, h ipam.Hold, err error) {
	n, a, err := parseKey(k)
	if err != nil {
		return 0, h, err
	}
	if h, err = record.DecodeHold(v); err != nil {
		return 0, ipam.Hold{}, fmt.Errorf("%w: number %d, of %s: %w", ErrBroken, n, a, err)
	}
	h.Address = a
	return n, h, nil
}

// ends returns the numbers of the first and last hold, and how many there are.
func (l Log) ends() (first, last uint64, count int, err error) {
	k, _ := l.Bucket.Seek(nil)
	if k == nil {
		return 0, 0, 0, nil
	}
	if first, _, err = parseKey(k); err != nil {
		return 0, 0, 0, err
	}
	k, _ = l.Bucket.Last()
	if last, _, err = parseKey(k); err != nil {
		return 0, 0, 0, err
	}
	return first, last, int(last - first + 1), nil
}

// Count returns how many holds there are.
func (l Log) Count() (int, error) {
	_, _, n, err := l.ends()
	return n, err
}

// Add adds a hold that has ended, and drops the oldest of too many.
func (l Log) Add(h ipam.Hold) error {
	_, last, count, err := l.ends()
	if err != nil {
		return err
	}
	most := l.Most
	if most == 0 {
		most = Most
	}
	if count >= most {
		if err := l.drop(count - most + max(1, most/128)); err != nil {
			return err
		}
	}
	return l.Bucket.Put(key(last+1, h.Address), record.EncodeHold(h))
}

// drop drops the n oldest.
func (l Log) drop(n int) error {
	for range n {
		k, _ := l.Bucket.Seek(nil)
		if k == nil {
			return nil
		}
		if err := l.Bucket.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// Of calls fn with the holds of an address, or of all for the zero Addr, first
// to end first.
func (l Log) Of(addr netip.Addr, fn func(ipam.Hold) error) error {
	for k, v := l.Bucket.Seek(nil); k != nil; {
		n, a, err := parseKey(k)
		if err != nil {
			return err
		}
		if a == addr || !addr.IsValid() {
			_, h, err := Decode(k, v)
			if err != nil {
				return err
			}
			if err := fn(h); err != nil {
				return err
			}
		}
		k, v = l.Bucket.Seek(binary.BigEndian.AppendUint64(nil, n+1))
	}
	return nil
}
