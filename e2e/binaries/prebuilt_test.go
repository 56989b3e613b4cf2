package binaries

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is built into a store is given without Go.
func TestPrebuilt(t *testing.T) {
	store := Store(t.TempDir())
	if err := store.Package(t.Context(), "./e2e/bench/floor"); err != nil {
		t.Fatal(err)
	}
	if err := store.Reference(t.Context(), "./plugins/main/macvlan", "./plugins/ipam/static"); err != nil {
		t.Fatal(err)
	}
	if err := store.Ours(t.Context(), "PROGRAMS=./plugins/macvlan"); err != nil {
		t.Fatal(err)
	}

	t.Setenv(Prebuilt, string(store))
	t.Setenv("PATH", "")
	dir := filepath.Join(t.TempDir(), "bin")
	if err := Package(t.Context(), dir, "./e2e/bench/floor"); err != nil {
		t.Error(err)
	}
	if err := Reference(t.Context(), dir, "./plugins/ipam/static"); err != nil {
		t.Error(err)
	}
	if err := Ours(t.Context(), dir, "PROGRAMS=./plugins/macvlan"); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"floor", "macvlan", "static"}, names(t, dir)); diff != "" {
		t.Errorf("programs (-want +got):\n%s", diff)
	}
	for _, plugin := range []string{"macvlan", "static"} {
		version := exec.CommandContext(t.Context(), filepath.Join(dir, plugin))
		version.Env = []string{"CNI_COMMAND=VERSION"}
		version.Stdin = strings.NewReader(`{"cniVersion": "1.0.0"}`)
		if out, err := version.CombinedOutput(); err != nil || !strings.Contains(string(out), "supportedVersions") {
			t.Errorf("%s: %v, %s", plugin, err, out)
		}
	}
}

func TestPrebuiltOurs(t *testing.T) {
	store := Store(t.TempDir())
	for folder, programs := range map[string][]string{
		store.ours(nil):                         {"macvlan", "underlay"},
		store.ours([]string{"TAGS=faultpoint"}): {"macvlan"},
	} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range programs {
			if err := os.WriteFile(filepath.Join(folder, name), nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv(Prebuilt, string(store))
	tests := []struct {
		name      string
		variables []string
		want      []string
		err       string
	}{
		{name: "plain", want: []string{"macvlan", "underlay"}},
		{name: "with a variable", variables: []string{"TAGS=faultpoint"}, want: []string{"macvlan"}},
		{name: "not there", variables: []string{"RACE=1"}, err: "nothing is prebuilt in " + store.ours([]string{"RACE=1"})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "bin")
			err := Ours(t.Context(), dir, tt.variables...)
			if (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
				t.Fatalf("got error %v, want %q", err, tt.err)
			}
			if tt.err == "" {
				if diff := cmp.Diff(tt.want, names(t, dir)); diff != "" {
					t.Errorf("programs (-want +got):\n%s", diff)
				}
			}
		})
	}
	t.Run("reference not there", func(t *testing.T) {
		if err := Reference(t.Context(), t.TempDir(), "./plugins/main/bridge"); err == nil || !strings.Contains(err.Error(), "not prebuilt: ") {
			t.Errorf("got error %v", err)
		}
	})
}

func TestRoot(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if got := filepath.Join(root, "e2e", "binaries"); got != here {
		t.Errorf("the root is %q, which %q is not under", root, here)
	}
	outside := t.TempDir()
	t.Chdir(outside)
	if root, err := Root(); err == nil {
		t.Errorf("found %q from %q", root, outside)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, entry := range entries {
		found = append(found, entry.Name())
	}
	return found
}
