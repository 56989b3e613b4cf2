package ledger

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/underlay-cni/underlay/ipam"
)

func TestMark(t *testing.T) {
	p := pool("lan", set(t, "10.0.0.0/24"))
	// Each case starts from a ledger in which a and then b were allocated.
	// older is the file as it was before b.
	tests := []struct {
		name    string
		tamper  func(t *testing.T, o *Options, older []byte)
		openErr error // of Open
		refused error // of Allocate
	}{
		{"untouched", func(*testing.T, *Options, []byte) {}, nil, nil},
		{"mark missing", func(t *testing.T, o *Options, _ []byte) { remove(t, o.markPath()) }, nil, nil},
		{"mark half written", func(t *testing.T, o *Options, _ []byte) { write(t, o.markPath(), []byte("boot-1 4")) }, nil, nil},
		{"another boot", func(t *testing.T, o *Options, _ []byte) { o.BootID = "boot-2" }, nil, nil},
		{"another boot and older", func(t *testing.T, o *Options, older []byte) {
			o.BootID = "boot-2"
			write(t, o.dbPath(), older)
		}, nil, nil},
		{"deleted", func(t *testing.T, o *Options, _ []byte) { remove(t, o.dbPath()) }, ErrLost, nil},
		{"folder deleted", func(t *testing.T, o *Options, _ []byte) {
			if err := os.RemoveAll(o.DataDir); err != nil {
				t.Fatal(err)
			}
		}, ErrLost, nil},
		{"replaced by an older copy", func(t *testing.T, o *Options, older []byte) { write(t, o.dbPath(), older) }, nil, ErrLost},
		{"replaced by another ledger", func(t *testing.T, o *Options, _ []byte) {
			other := testOptions(t, newClock())
			l := open(t, other)
			for _, id := range []string{"x", "y", "z"} { // it has seen more transactions than ours
				add(t, l, request(p, id))
			}
			shut(t, l)
			b, err := os.ReadFile(other.dbPath())
			if err != nil {
				t.Fatal(err)
			}
			write(t, o.dbPath(), b)
		}, nil, ErrLost},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t, newClock())
			l := open(t, o)
			add(t, l, request(p, "a"))
			shut(t, l)
			older, err := os.ReadFile(o.dbPath())
			if err != nil {
				t.Fatal(err)
			}
			l = open(t, o)
			add(t, l, request(p, "b"))
			shut(t, l)
			tt.tamper(t, &o, older)

			// As often as somebody tries, the answer stays the same.
			for range 3 {
				l, err := Open(t.Context(), o)
				if !errors.Is(err, tt.openErr) {
					t.Fatalf("open: %v, want %v", err, tt.openErr)
				}
				if err != nil {
					if _, err := os.Stat(o.dbPath()); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("a ledger was made: %v", err)
					}
					continue
				}
				_, err = l.Allocate(request(p, "c"), nil)
				if !errors.Is(err, tt.refused) || !errors.Is(l.Refused(), tt.refused) {
					t.Errorf("allocate: %v, want %v", err, tt.refused)
				}
				// DEL works whatever there is.
				for _, id := range []string{"c", "a", "b"} {
					if _, err := l.Release(ipam.ReleaseRequest{Attachment: att(id)}); err != nil {
						t.Errorf("release: %v", err)
					}
				}
				shut(t, l)
			}
			if tt.openErr == nil && tt.refused == nil {
				return
			}
			// And a rebuild ends it.
			if err := Rebuild(t.Context(), o, nil); err != nil {
				t.Fatal(err)
			}
			if got := add(t, open(t, o), request(p, "c")); got != "10.0.0.2" {
				t.Errorf("first address of a new ledger: %s", got)
			}
		})
	}
}
