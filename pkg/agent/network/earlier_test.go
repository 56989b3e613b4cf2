package network

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/underlay-cni/underlay/ipam"
)

// TestEarlier: what an agent of this boot has set is there for the next one,
// which need not reach the registry for it.
func TestEarlier(t *testing.T) {
	t.Parallel()
	away := errors.New("the registry is out of reach")
	plain, masqueraded := ipam.Uses{Network: "pods"}, ipam.Uses{Network: "pods", Masquerade: true}
	for _, tt := range []struct {
		name   string
		before ipam.Uses
		spoil  func(file string) error
		// ok are plain and masqueraded after it.
		ok [2]bool
	}{
		{"routes", plain, nil, [2]bool{true, false}},
		{"masquerading too", masqueraded, nil, [2]bool{true, true}},
		{"a reboot", masqueraded, func(file string) error {
			return os.WriteFile(file, []byte(`{"boot":"another","value":{"pods":true}}`), 0o600)
		}, [2]bool{}},
		{"a file that is cut off", masqueraded, func(file string) error { return os.Truncate(file, 5) }, [2]bool{}},
		{"nothing", masqueraded, os.Remove, [2]bool{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			keep := func(c *Config) { c.RunDir = dir }
			t.Run("first", func(t *testing.T) {
				d := newDesk(t, keep, peer(5)...)
				d.run(t)
				must(t, d.Await(t.Context(), tt.before))
			})
			if tt.spoil != nil {
				must(t, tt.spoil(filepath.Join(dir, syncedFile)))
			}
			d := newDesk(t, keep)
			d.cluster.away = away
			d.run(t)
			for i, u := range []ipam.Uses{plain, masqueraded} {
				if err := d.Await(t.Context(), u); (err == nil) != tt.ok[i] {
					t.Errorf("%+v: %v, want it to be ok: %t", u, err, tt.ok[i])
				}
			}
		})
	}
}
