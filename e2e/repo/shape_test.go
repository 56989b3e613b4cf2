package repo

import (
	"bytes"
	"go/parser"
	"go/token"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestPackageComments(t *testing.T) {
	for _, p := range allPackages(t) {
		sources := p.GoFiles
		if len(sources) == 0 { // a package of tests
			sources = slices.Concat(p.TestGoFiles, p.XTestGoFiles)
		}
		var opening string
		commented := false
		for _, name := range sources {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			opening = "Package " + file.Name.Name + " "
			if p.Name == "main" {
				opening = "Command " + path.Base(p.ImportPath) + " "
			}
			commented = commented || strings.HasPrefix(file.Doc.Text(), opening)
		}
		if !commented {
			t.Errorf("%s has no package comment that starts with %q", p.room(), opening)
		}
	}
}

func TestSizes(t *testing.T) {
	const lines, sources = 400, 10
	perPackage := make(map[string]int)
	judged := 0
	files(t, func(name string, text []byte) {
		if path.Ext(name) != ".go" {
			return
		}
		judged++
		if n := bytes.Count(text, []byte("\n")); n > lines {
			t.Errorf("%s has %d lines, want at most %d", name, n, lines)
		}
		if !strings.HasSuffix(name, "_test.go") {
			perPackage[path.Dir(name)]++
		}
	})
	for folder, n := range perPackage {
		if n > sources {
			t.Errorf("%s has %d files, want at most %d: it needs a floor of its own", folder, n, sources)
		}
	}
	atLeast(t, "Go files", judged, 40)
}

// A main is the thinnest file of a program: it calls the library.
func TestMains(t *testing.T) {
	const lines = 40
	judged := 0
	files(t, func(name string, text []byte) {
		if path.Base(name) != "main.go" || under(name, "e2e") {
			return
		}
		judged++
		if n := bytes.Count(text, []byte("\n")); n > lines {
			t.Errorf("%s has %d lines, want at most %d", name, n, lines)
		}
	})
	atLeast(t, "main.go files", judged, 3)
}

func TestPluginReadmes(t *testing.T) {
	want := []string{"Description", "Config", "Example", "Errors", "Kernel needs"}
	folders := make(map[string]bool)
	readmes := make(map[string]string)
	files(t, func(name string, text []byte) {
		parts := strings.Split(name, "/")
		if parts[0] != "plugins" || len(parts) < 3 {
			return
		}
		folders[parts[1]] = true
		if len(parts) == 3 && parts[2] == "README.md" {
			readmes[parts[1]] = string(text)
		}
	})
	for plugin := range folders {
		var sections []string
		for _, heading := range regexp.MustCompile(`(?m)^## (.+)$`).FindAllStringSubmatch(readmes[plugin], -1) {
			sections = append(sections, heading[1])
		}
		if !slices.Equal(sections, want) {
			t.Errorf("plugins/%s/README.md has the sections %q, want %q", plugin, sections, want)
		}
	}
	atLeast(t, "plugins", len(folders), 2)
}

// What is left to do belongs into an issue; a mark in the source names it, as in
// MARK(#12): why it has to wait.
func TestMarks(t *testing.T) {
	mark := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX)\b(\(#\d+\): \w)?`)
	judged := 0
	files(t, func(name string, text []byte) {
		if ext := path.Ext(name); ext != ".go" && ext != ".md" && ext != ".sh" && path.Base(name) != "Makefile" {
			return
		}
		judged++
		for _, found := range mark.FindAllSubmatch(text, -1) {
			if len(found[2]) == 0 {
				t.Errorf("%s: %q names no issue and no reason", name, found[1])
			}
		}
	})
	atLeast(t, "files", judged, 40)
}

// The integration runs what the README tells a person to run.
func TestIntegrationRunsTheReadmesCommand(t *testing.T) {
	texts := make(map[string]string)
	files(t, func(name string, text []byte) { texts[name] = strings.TrimSpace(string(text)) })
	script := texts[".ci/run"]
	command := script[strings.LastIndex(script, "\n")+1:]
	if command == "" || !strings.Contains(texts["README.md"], command) {
		t.Errorf("README.md does not name %q, which .ci/run runs", command)
	}
}
