package suite

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	module   = "github.com/underlay-cni/underlay"
	linktest = module + "/pkg/link/linktest"
	programs = module + "/e2e/binaries"
)

// inGuest is set for tests in the guest: linktest's Guest, without linktest.
const inGuest = "UNDERLAY_GUEST=1"

// Package is a folder with tests for the guest.
type Package struct {
	// Dir is its path from the root, with slashes.
	Dir string
	// Tests are the names of the tests for the guest, sorted.
	Tests []string
	// Programs is set if its tests run programs that e2e/binaries gives.
	Programs bool
}

// Find returns the packages below root that have tests for the guest, sorted.
func Find(root string) ([]Package, error) {
	var found []Package
	err := filepath.WalkDir(root, func(dir string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		if name := entry.Name(); dir != root && (name == "testdata" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
			return fs.SkipDir
		}
		p, err := FindIn(root, dir)
		if err == nil && len(p.Tests) > 0 {
			found = append(found, p)
		}
		return err
	})
	return found, err
}

// FindIn is Find for one folder. A test is for the guest if it calls
// linktest.Need or names something in its folder that does: a function, a
// method of whatever type, a variable. Names are all that is looked at, so a
// test may be found that never comes to the call; it then runs on both kernels.
// A call that no test would be found for is an error.
func FindIn(root, dir string) (Package, error) {
	place, err := filepath.Rel(root, dir)
	if err != nil {
		return Package{}, err
	}
	p := Package{Dir: filepath.ToSlash(place)}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Package{}, err
	}
	names := &names{named: make(map[string]*node)}
	for _, entry := range entries {
		if entry.IsDir() || path.Ext(entry.Name()) != ".go" {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, entry.Name()), nil, parser.SkipObjectResolution)
		if err != nil {
			return Package{}, err
		}
		isTest := strings.HasSuffix(entry.Name(), "_test.go")
		as, err := imported(file, linktest)
		switch {
		case err != nil:
			return Package{}, fmt.Errorf("%s/%s: %w", p.Dir, entry.Name(), err)
		case as != "" && !isTest:
			return Package{}, fmt.Errorf("%s/%s imports %s: only tests may, since only they are looked through", p.Dir, entry.Name(), linktest)
		case !isTest:
			continue
		}
		if as, err := imported(file, programs); err != nil || as != "" {
			p.Programs = true
		}
		for _, decl := range file.Decls {
			names.add(decl, as)
		}
	}
	p.Tests, err = names.tests()
	if err != nil {
		return Package{}, fmt.Errorf("%s: %w", p.Dir, err)
	}
	return p, nil
}

// imported is the name by which a file knows a package, or "".
func imported(file *ast.File, importPath string) (string, error) {
	for _, spec := range file.Imports {
		if unquoted, err := strconv.Unquote(spec.Path.Value); err != nil || unquoted != importPath {
			continue
		}
		switch {
		case spec.Name == nil:
			return path.Base(importPath), nil
		case spec.Name.Name == "." || spec.Name.Name == "_":
			return "", fmt.Errorf("%s is imported as %q: its calls cannot be found", importPath, spec.Name.Name)
		}
		return spec.Name.Name, nil
	}
	return "", nil
}
