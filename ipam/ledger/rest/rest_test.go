package rest

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
)

// TestOf: entries sort by their end, tell who may have the address, and come back
// as they went.
func TestOf(t *testing.T) {
	t.Parallel()
	since := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	record := func(addr string, state ipam.State, strict bool, rest time.Duration) ipam.Record {
		return ipam.Record{Address: netip.MustParsePrefix(addr), State: state, Strict: strict, Since: since, Until: since.Add(rest)}
	}
	var before []byte
	for _, tt := range []struct {
		rec  ipam.Record
		kind Kind
	}{
		{record("10.0.0.9/24", ipam.Cooling, false, -time.Second), Anybody}, // by a clock that was set back
		{record("10.0.0.1/24", ipam.Cooling, true, time.Second), Owner},
		{record("2001:db8::1/64", ipam.Quarantined, true, time.Minute), Nobody},
	} {
		key, value := Of(tt.rec)
		if bytes.Compare(key, before) <= 0 {
			t.Errorf("%s does not come after what ends before", tt.rec.Address)
		}
		before = key
		e, err := Decode(key, value)
		want := Entry{Addr: tt.rec.Address.Addr(), Since: tt.rec.Since, Until: tt.rec.Until, Kind: tt.kind}
		if err != nil || e != want || !Rests(tt.rec) {
			t.Errorf("%+v, %v, want %+v", e, err, want)
		}
		for _, odd := range [][2][]byte{{key[:8], value}, {key[:len(key)-1], value}, {key, value[:8]}, {nil, nil}} {
			if _, err := Decode(odd[0], odd[1]); !errors.Is(err, ErrBroken) {
				t.Errorf("%x, %x: %v", odd[0], odd[1], err)
			}
		}
	}
	if Rests(record("10.0.0.1/24", ipam.Held, false, 0)) {
		t.Error("what is held rests")
	}
}
