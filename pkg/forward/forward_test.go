package forward

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// newTree makes a folder of sysctls, `key=value` each.
func newTree(t *testing.T, keys ...string) *tree {
	t.Helper()
	tr := &tree{root: t.TempDir()}
	for _, k := range keys {
		key, value, _ := strings.Cut(k, "=")
		path := filepath.Join(tr.root, key)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

// values are all of them, sorted.
func (tr *tree) values(t *testing.T) (all []string) {
	t.Helper()
	err := filepath.WalkDir(tr.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		key, err := filepath.Rel(tr.root, path)
		if err != nil {
			return err
		}
		value, err := tr.get(key)
		all = append(all, key+"="+value)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestForward(t *testing.T) {
	t.Parallel()
	const (
		v4 = "net/ipv4/conf/"
		v6 = "net/ipv6/conf/"
	)
	for _, tt := range []struct {
		name            string
		have            []string
		six             bool
		want, changed   []string
		complainsOfThis string
	}{
		{name: "IPv4, of these alone",
			have:    []string{v4 + "a/forwarding=0", v4 + "b/forwarding=0", v4 + "c/forwarding=1"},
			want:    []string{v4 + "a/forwarding=1", v4 + "b/forwarding=0", v4 + "c/forwarding=1"},
			changed: []string{v4 + "a/forwarding=1"}},
		{name: "IPv6, of these alone", six: true,
			have:    []string{v6 + "a/force_forwarding=0", v6 + "all/forwarding=0", v6 + "b/accept_ra=1", v6 + "default/force_forwarding=0"},
			want:    []string{v6 + "a/force_forwarding=1", v6 + "all/forwarding=0", v6 + "b/accept_ra=1", v6 + "default/force_forwarding=0"},
			changed: []string{v6 + "a/force_forwarding=1"}},
		{name: "IPv6 of an older kernel: who listens to routers goes on", six: true,
			have:    []string{v6 + "a/accept_ra=0", v6 + "all/accept_ra=1", v6 + "all/forwarding=0", v6 + "b/accept_ra=1", v6 + "c/accept_ra=2", v6 + "default/accept_ra=1"},
			want:    []string{v6 + "a/accept_ra=0", v6 + "all/accept_ra=1", v6 + "all/forwarding=1", v6 + "b/accept_ra=2", v6 + "c/accept_ra=2", v6 + "default/accept_ra=1"},
			changed: []string{v6 + "b/accept_ra=2", v6 + "all/forwarding=1"}},
		{name: "an older kernel that forwards already", six: true,
			have: []string{v6 + "all/forwarding=1", v6 + "b/accept_ra=1"},
			want: []string{v6 + "all/forwarding=1", v6 + "b/accept_ra=1"}},
		{name: "IPv6, an interface that is gone or has none: not between all others", six: true, complainsOfThis: `"a" is gone, or has no IPv6`,
			have: []string{v6 + "all/forwarding=0", v6 + "b/accept_ra=1", v6 + "default/force_forwarding=0"},
			want: []string{v6 + "all/forwarding=0", v6 + "b/accept_ra=1", v6 + "default/force_forwarding=0"}},
		{name: "no IPv6", six: true, complainsOfThis: "no IPv6"},
		{name: "no such interface", complainsOfThis: "ipv4/conf/a/forwarding"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tr := newTree(t, tt.have...)
			forward := tr.ipv4
			if tt.six {
				forward = tr.ipv6
			}
			for range 2 { // the second time changes nothing
				err := forward([]string{"a"})
				if (err != nil) != (tt.complainsOfThis != "") || err != nil && !strings.Contains(err.Error(), tt.complainsOfThis) {
					t.Errorf("%v, want %q", err, tt.complainsOfThis)
				}
			}
			if diff := cmp.Diff(tt.want, tr.values(t)); diff != "" {
				t.Errorf("sysctls (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.changed, tr.changed); diff != "" {
				t.Errorf("told of (-want +got):\n%s", diff)
			}
		})
	}
}
