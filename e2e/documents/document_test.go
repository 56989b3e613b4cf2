package documents

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// block is a fenced block of a document.
type block struct {
	section string // the heading of the second level above it
	kind    string // what stands behind the fence: sh, console, json, text
	text    string
	line    int
	// notRun is why no test can run it, from the comment above it.
	notRun string
}

var (
	heading = regexp.MustCompile(`^## (.+)$`)
	fence   = regexp.MustCompile("^```([a-z]*)$")
	notRun  = regexp.MustCompile(`^<!-- not run: (.+) -->$`)
)

// blocks are those of a document, by its path from the root of the repository.
func blocks(t *testing.T, path string) []block {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	var found []block
	var now *block
	section, reason := "", ""
	for i, line := range strings.Split(string(data), "\n") {
		switch {
		case now != nil && line == "```":
			found = append(found, *now)
			now = nil
		case now != nil:
			now.text += line + "\n"
		case heading.MatchString(line):
			section = heading.FindStringSubmatch(line)[1]
		case notRun.MatchString(line):
			reason = notRun.FindStringSubmatch(line)[1]
			continue
		case fence.MatchString(line):
			now = &block{section: section, kind: fence.FindStringSubmatch(line)[1], line: i + 1, notRun: reason}
		}
		reason = ""
	}
	if now != nil {
		t.Fatalf("%s:%d: a block without end", path, now.line)
	}
	return found
}

// step is a command of a console block, and the lines that it prints.
type step struct {
	command string
	prints  []string
}

// steps are those of a console block: commands stand behind the prompt of root.
func (b block) steps(t *testing.T) []step {
	t.Helper()
	var found []step
	for line := range strings.Lines(b.text) {
		line = strings.TrimSuffix(line, "\n")
		command, prompted := strings.CutPrefix(line, "# ")
		switch {
		case prompted:
			found = append(found, step{command: command})
		case len(found) == 0:
			t.Fatalf("line %d: the block does not begin with a command: %q", b.line, line)
		default:
			last := &found[len(found)-1]
			last.prints = append(last.prints, line)
		}
	}
	return found
}

// missing is the first of the lines that the output has not, in their order; ""
// if it has all. Three dots stand for anything, and blanks for any blanks, as
// columns are as wide as what is in them.
func missing(want []string, output string) string {
	have := strings.Split(output, "\n")
	for _, line := range want {
		parts := strings.Split(line, "...")
		for i, p := range parts {
			words := strings.Fields(p)
			for j, w := range words {
				words[j] = regexp.QuoteMeta(w)
			}
			parts[i] = strings.Join(words, `\s+`)
		}
		like := regexp.MustCompile(`^\s*` + strings.Join(parts, `.*`) + `\s*$`)
		found := false
		for !found && len(have) > 0 {
			found = like.MatchString(have[0])
			have = have[1:]
		}
		if !found {
			return line
		}
	}
	return ""
}

// TestMissing: what a document says is compared word by word.
func TestMissing(t *testing.T) {
	const printed = "NAME  STATE\nh1    alive\nh2    silent\n"
	for _, tt := range []struct {
		want []string
		miss string
	}{
		{[]string{"NAME STATE", "h2 silent"}, ""},
		{[]string{"h1 ...", "..."}, ""},
		{[]string{"h2 silent", "h1 alive"}, "h1 alive"},
		{[]string{"h2 alive"}, "h2 alive"},
		{[]string{"h2"}, "h2"},
	} {
		if got := missing(tt.want, printed); got != tt.miss {
			t.Errorf("missing(%q) = %q, want %q", tt.want, got, tt.miss)
		}
	}
}
