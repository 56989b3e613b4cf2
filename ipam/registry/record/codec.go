package record

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

// Version of the JSON shapes that this package writes, one for all.
const Version = 1

// ErrNewer is returned for a value that a newer version of underlay wrote.
var ErrNewer = errors.New("a newer version of underlay wrote it")

// decode reads a versioned object into the struct that v points to.
func decode(value []byte, place string, version *int, v any) error {
	// What comes out again as it came in has no keys but ours, spelled as we do.
	// So it is with nearly all values, and it takes a fraction of the time that it
	// takes to look at each key; every agent reads every change of the registry.
	if json.Unmarshal(value, v) == nil && *version == Version {
		if again, err := json.Marshal(v); err == nil && bytes.Equal(again, value) {
			return nil
		}
	}
	reflect.ValueOf(v).Elem().SetZero()
	// A newer shape may have other keys: its version comes first.
	var w struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(value, &w); err != nil {
		return fmt.Errorf("%s: %w", place, err)
	}
	switch {
	case w.Version == nil:
		return fmt.Errorf("%s.version: is missing", place)
	case *w.Version > Version:
		return fmt.Errorf("%s.version: %d: %w", place, *w.Version, ErrNewer)
	case *w.Version < 1:
		return fmt.Errorf("%s.version: %d was never written", place, *w.Version)
	}
	*version = *w.Version
	return ipam.DecodeObject(value, place, v)
}

// encode writes what decode reads. The shapes hold nothing that JSON has no
// form for.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// ValidUUID reports whether s is a UUID in the one form that we write: 36
// characters, lower case.
func ValidUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch dash := i == 8 || i == 13 || i == 18 || i == 23; {
		case dash && c != '-':
			return false
		case !dash && (c < '0' || c > '9') && (c < 'a' || c > 'f'):
			return false
		}
	}
	return true
}

// NewUUID returns a random UUID.
func NewUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func checkNode(place string, n lease.Node) error {
	if !ValidUUID(string(n)) {
		return fmt.Errorf("%s: %q is not the UUID of a ledger", place, n)
	}
	return nil
}

func checkName(place, s string) error { return ipam.CheckName(place, s) }
