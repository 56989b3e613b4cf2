package forward

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// newTree has these sysctls.
func newTree(t *testing.T, keys map[string]string) *tree {
	t.Helper()
	tr := &tree{root: t.TempDir()}
	for key, value := range keys {
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

// all reads the whole tree.
func (t *tree) all(test *testing.T) map[string]string {
	test.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(t.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		key, err := filepath.Rel(t.root, path)
		if err == nil {
			out[key], err = t.get(key)
		}
		return err
	})
	if err != nil {
		test.Fatal(err)
	}
	return out
}

func TestForward(t *testing.T) {
	t.Parallel()
	const v4, v6 = "net/ipv4/conf/", "net/ipv6/conf/"
	four := func(tr *tree) error { return tr.ipv4([]string{"eth1", "ul0"}) }
	six := func(tr *tree) error { return tr.ipv6([]string{"eth1", "ul0"}) }
	before617 := map[string]string{
		v6 + "all/forwarding": "0", v6 + "all/accept_ra": "1", v6 + "default/accept_ra": "1",
		v6 + "eth1/accept_ra": "1", v6 + "eth2/accept_ra": "0", v6 + "ul0/accept_ra": "2",
	}
	routes := maps.Clone(before617)
	routes[v6+"all/forwarding"] = "1"
	tests := []struct {
		name    string
		have    map[string]string
		do      func(*tree) error
		changed map[string]string
		err     string
	}{
		{name: "IPv4, one is set already", have: map[string]string{v4 + "eth1/forwarding": "1", v4 + "ul0/forwarding": "0", v4 + "eth2/forwarding": "0", v4 + "all/forwarding": "0"},
			do: four, changed: map[string]string{v4 + "ul0/forwarding": "1"}},
		{name: "IPv4, one is gone", have: map[string]string{v4 + "ul0/forwarding": "0"},
			do: four, changed: map[string]string{v4 + "ul0/forwarding": "1"}, err: "eth1/forwarding"},
		{name: "IPv6 by interface", have: map[string]string{v6 + "eth1/force_forwarding": "0", v6 + "ul0/force_forwarding": "0", v6 + "all/forwarding": "0", v6 + "eth1/accept_ra": "1"},
			do: six, changed: map[string]string{v6 + "eth1/force_forwarding": "1", v6 + "ul0/force_forwarding": "1"}},
		{name: "IPv6 before 6.17", have: before617, do: six, changed: map[string]string{v6 + "all/forwarding": "1", v6 + "eth1/accept_ra": "2"}},
		// Whoever made it a router has said what to do with advertisements.
		{name: "IPv6 before 6.17, a router", have: routes, do: six},
		{name: "no IPv6", do: six, err: "the kernel has no IPv6"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tr := newTree(t, tt.have)
			err := tt.do(tr)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			want := maps.Clone(tt.have)
			if want == nil {
				want = map[string]string{}
			}
			maps.Copy(want, tt.changed)
			if diff := cmp.Diff(want, tr.all(t)); diff != "" {
				t.Errorf("sysctls (-want +got):\n%s", diff)
			}
			if len(tr.changed) != len(tt.changed) {
				t.Errorf("tells of %q, changed %v", tr.changed, tt.changed)
			}
			told := len(tr.changed)
			_ = tt.do(tr)
			if len(tr.changed) != told {
				t.Errorf("changes something again: %q", tr.changed[told:])
			}
		})
	}
}
