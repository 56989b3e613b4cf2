// Package repo holds the rules of the repository, as tests over the whole tree:
// who may import whom, what a plugin binary may carry, how big files and
// packages may grow, what every package and plugin must document, and that
// `make build` and `make install` do what they promise. Each rule checks that
// it has found something to judge.
package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/underlay-cni/underlay/e2e/binaries"
)

const module = "github.com/underlay-cni/underlay"

// pkg is a package of this module, as `go list` tells it.
type pkg struct {
	Name         string
	ImportPath   string
	Dir          string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string // of the package itself
	TestImports  []string
	XTestImports []string
	Deps         []string // all that is linked in
}

// room is the package's folder: "pkg/link", or "." for the root.
func (p pkg) room() string {
	if p.ImportPath == module {
		return "."
	}
	return strings.TrimPrefix(p.ImportPath, module+"/")
}

// under says whether a path is a folder or lies in it.
func under(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

var packages = sync.OnceValues(func() ([]pkg, error) {
	root, err := binaries.Root()
	if err != nil {
		return nil, err
	}
	list := exec.Command("go", "list", "-json", "./...")
	list.Dir = root
	list.Env = append(os.Environ(), "CGO_ENABLED=0") // as the binaries are built
	var complaint bytes.Buffer
	list.Stderr = &complaint
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, complaint.Bytes())
	}
	var found []pkg
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return nil, fmt.Errorf("read go list: %w", err)
		}
		found = append(found, p)
	}
})

// allPackages are the packages of this module.
func allPackages(t *testing.T) []pkg {
	t.Helper()
	found, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	atLeast(t, "packages", len(found), 15)
	return found
}

// atLeast fails a rule that has found too little to judge: one that looks in
// the wrong place would pass for ever.
func atLeast(t *testing.T, what string, found, want int) {
	t.Helper()
	if found < want {
		t.Errorf("found %d %s, want at least %d: does the rule look in the right place?", found, what, want)
	}
}

func rootDir(t *testing.T) string {
	t.Helper()
	root, err := binaries.Root()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// files calls visit for every file of the tree, with its path from the root.
func files(t *testing.T, visit func(path string, text []byte)) {
	t.Helper()
	tree := os.DirFS(rootDir(t))
	err := fs.WalkDir(tree, ".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (path == ".git" || path == "bin"):
			return fs.SkipDir
		case !entry.Type().IsRegular():
			return nil
		}
		text, err := fs.ReadFile(tree, path)
		if err != nil {
			return err
		}
		visit(path, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// built and builtARM are the folders of our programs, for this machine and for
// arm64, built once for all tests.
var (
	scratch string
	built   = sync.OnceValues(func() (string, error) {
		bin := filepath.Join(scratch, "bin")
		return bin, binaries.Ours(context.Background(), bin)
	})
	builtARM = sync.OnceValues(func() (string, error) {
		bin := filepath.Join(scratch, "arm64")
		return bin, binaries.Ours(context.Background(), bin, "GOARCH=arm64")
	})
)

func programs(t *testing.T) string {
	t.Helper()
	return must(t, built)
}

func armPrograms(t *testing.T) string {
	t.Helper()
	return must(t, builtARM)
}

func must(t *testing.T, build func() (string, error)) string {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "underlay-repo-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(scratch)
	os.Exit(code)
}
