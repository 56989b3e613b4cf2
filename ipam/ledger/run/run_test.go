package run

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// bucket is one in memory.
type bucket map[string][]byte

func (b bucket) Seek(key []byte) (k, v []byte) {
	for _, at := range slices.Sorted(maps.Keys(b)) {
		if at >= string(key) {
			return []byte(at), b[at]
		}
	}
	return nil, nil
}
func (b bucket) Get(key []byte) []byte       { return b[string(key)] }
func (b bucket) Put(key, value []byte) error { b[string(key)] = value; return nil }
func (b bucket) Delete(key []byte) error     { delete(b, string(key)); return nil }

// TestSet has two sets of one bucket, and a map, take the same random steps.
func TestSet(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		b := bucket{}
		sets := []Set{{b, []byte("a\x00")}, {b, []byte("b\x00")}}
		want := []map[netip.Addr]bool{{}, {}}
		base := []netip.Addr{netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.248"), netip.MustParseAddr("::"), netip.MustParseAddr("2001:db8::")}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			i := rapid.IntRange(0, 1).Draw(t, "set")
			a := rapid.SampledFrom(base).Draw(t, "base")
			for range rapid.IntRange(0, 7).Draw(t, "offset") {
				a = a.Next()
			}
			had := want[i][a]
			if rapid.Bool().Draw(t, "add") {
				want[i][a] = true
				if err := sets[i].Add(a); errors.Is(err, ErrBroken) != had {
					t.Fatalf("add %s, which was there %v: %v", a, had, err)
				}
			} else {
				delete(want[i], a)
				if err := sets[i].Remove(a); errors.Is(err, ErrBroken) == had {
					t.Fatalf("remove %s, which was there %v: %v", a, had, err)
				}
			}
			for i, set := range sets {
				got := map[netip.Addr]bool{}
				for _, a := range []netip.Addr{base[0], base[2]} {
					for a.IsValid() {
						r, ok, err := set.From(a)
						if err != nil {
							t.Fatal(err)
						}
						if !ok {
							break
						}
						if got[r.First.Prev()] {
							t.Fatalf("%s is not the longest run", r)
						}
						for a = r.First; a.IsValid() && a.Compare(r.Last) <= 0; a = a.Next() {
							got[a] = true
						}
					}
				}
				if !maps.Equal(got, want[i]) {
					t.Fatalf("set %d has %v, want %v", i, got, want[i])
				}
			}
		}
	})
}
