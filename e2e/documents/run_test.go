// Package documents runs what the documents say. Of every Markdown file, blocks
// of commands (sh) are run as they stand, from the first to the last, and have
// to succeed; blocks with a prompt (console) have to print what stands below the
// command. A block that no test can run carries its reason. They run on machines
// of a lab; what a reader has on his desk at that point, a test makes first.
//
// It leaves out the JSON examples of plugins, which TestReadmeExamples of e2e
// runs, and the files under conf, for which there is TestSamples.
package documents

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/binaries"
)

var (
	root      string // of the repository
	ours      string // folder of our programs, and of cnitool
	reference string // folder of the reference plugins
)

func TestMain(m *testing.M) {
	code, err := build(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func build(run func() int) (code int, err error) {
	if root, err = binaries.Root(); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "underlay-documents-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	ours, reference = filepath.Join(dir, "ours"), filepath.Join(dir, "reference")
	ctx := context.Background()
	err = errors.Join(
		binaries.Ours(ctx, ours),
		binaries.Reference(ctx, reference, "./plugins/main/macvlan", "./plugins/ipam/host-local"),
	)
	if err != nil {
		return 0, err
	}
	// Of the module of the CNI library, in the version that go.mod pins.
	cnitool := exec.Command("go", "build", "-buildvcs=false", "-o", ours, "github.com/containernetworking/cni/cnitool")
	cnitool.Dir = root
	if out, err := cnitool.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build cnitool: %w\n%s", err, out)
	}
	return run(), nil
}

// TestEveryBlockIsRun: a document that is not below has no commands, and what is
// not run says why.
func TestEveryBlockIsRun(t *testing.T) {
	t.Parallel()
	var seen int
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".md" {
			return err
		}
		name, _ := filepath.Rel(root, path)
		for _, b := range blocks(t, name) {
			seen++
			switch b.kind {
			case "sh", "console":
				if _, ok := documents[name]; !ok && b.notRun == "" {
					t.Errorf("%s:%d: no test runs the commands of this document; see e2e/documents", name, b.line)
				}
			case "json", "text":
			default:
				t.Errorf("%s:%d: a block is of kind %q, want sh, console, json or text", name, b.line, b.kind)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 20 {
		t.Errorf("found %d blocks, want at least 20: does the test look in the right place?", seen)
	}
}

// TestDocuments runs each document from its first command to its last, on the
// first of two machines.
func TestDocuments(t *testing.T) {
	for name, doc := range documents {
		if doc.elsewhere != "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bedOf(t, !doc.bare)
			if doc.prepare != nil {
				doc.prepare(b)
			}
			reached := make(map[string]bool)
			for _, block := range blocks(t, name) {
				first, _, _ := strings.Cut(block.text, "\n")
				if before := doc.before[first]; before != nil {
					reached[first] = true
					before(b)
				}
				b.follow(name, block)
			}
			for first := range doc.before {
				if !reached[first] {
					t.Errorf("%s has no block that begins with %q", name, first)
				}
			}
			if doc.after != nil {
				doc.after(b)
			}
		})
	}
}

// TestTroubleshooting: where the cause of a symptom is made, the commands print
// what the document says, and the remedy helps. Each begins on new machines.
func TestTroubleshooting(t *testing.T) {
	const name = "conf/TROUBLESHOOTING.md"
	sections := make(map[string][]block)
	for _, b := range blocks(t, name) {
		if b.notRun == "" {
			sections[b.section] = append(sections[b.section], b)
		}
	}
	for section := range causes {
		if len(sections[section]) == 0 {
			t.Errorf("%s has no commands in a section %q", name, section)
		}
	}
	for section, blocks := range sections {
		t.Run(section, func(t *testing.T) {
			t.Parallel()
			cause, ok := causes[section]
			if !ok {
				t.Fatalf("nobody knows how to make its cause: add one to causes")
			}
			b := newBed(t)
			remedied := cause(b)
			for _, block := range blocks {
				b.follow(name, block)
			}
			if remedied != nil {
				remedied()
			}
		})
	}
}

// reads are commands that change nothing: what they print may come a little
// later.
var reads = regexp.MustCompile(`^(underlayctl .*(list|show|status|check|trace)\b|ping |ip |nft list|curl |cnitool status|cnitool check)`)

// follow does what a block says.
func (b *bed) follow(document string, block block) {
	b.t.Helper()
	where := fmt.Sprintf("%s:%d", document, block.line)
	switch {
	case block.notRun != "":
	case block.kind == "sh":
		if out, err := b.h1.run(block.text); err != nil {
			b.t.Fatalf("%s: %v\n%s\nprinted:\n%s", where, err, block.text, out)
		}
	case block.kind == "console":
		for _, s := range block.steps(b.t) {
			end := time.Now().Add(time.Minute)
			for {
				out, _ := b.h1.run(s.command)
				line := missing(s.prints, out)
				if line == "" {
					break
				}
				if !reads.MatchString(s.command) || time.Now().After(end) {
					b.t.Fatalf("%s: %s\ndoes not print %q, but:\n%s", where, s.command, line, out)
				}
				time.Sleep(time.Second)
			}
		}
	}
}

// files are the Markdown files that a text links to, beside itself.
var link = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)

// TestLinks: what documents link to within the repository is there, down to the
// heading.
func TestLinks(t *testing.T) {
	t.Parallel()
	var seen int
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".md" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, l := range link.FindAllStringSubmatch(string(data), -1) {
			if strings.Contains(l[1], "://") {
				continue
			}
			seen++
			to := filepath.Join(filepath.Dir(path), l[1])
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s links to %s, which is not there", path, l[1])
				continue
			}
			if l[2] != "" && !slices.Contains(anchors(t, to), l[2]) {
				t.Errorf("%s links to %s, which has no heading %s", path, l[1], l[2])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 20 {
		t.Errorf("found %d links, want at least 20: does the test look in the right place?", seen)
	}
}

// anchors are the names by which headings of a document are linked to.
func anchors(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, h := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(string(data), -1) {
		plain := regexp.MustCompile(`[^\w -]`).ReplaceAllString(strings.ToLower(h[1]), "")
		found = append(found, "#"+strings.ReplaceAll(plain, " ", "-"))
	}
	return found
}
