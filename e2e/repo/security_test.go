package repo

import (
	"regexp"
	"strings"
	"testing"
)

// TestSecurity: whatever SECURITY.md says of somebody hostile names tests, and these
// are there; the README leads to it.
func TestSecurity(t *testing.T) {
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	there := make(map[string]bool)
	var document, readme string
	files(t, func(name string, text []byte) {
		switch {
		case name == "SECURITY.md":
			document = string(text)
		case name == "README.md":
			readme = string(text)
		case strings.HasSuffix(name, "_test.go"):
			folder := name[:strings.LastIndex(name, "/")]
			for _, f := range function.FindAllSubmatch(text, -1) {
				there[folder+"."+string(f[1])] = true
			}
		}
	})
	if !strings.Contains(readme, "(SECURITY.md)") {
		t.Error("README.md does not lead to SECURITY.md")
	}
	named := regexp.MustCompile("`([a-z0-9/]+\\.(?:Test|Fuzz)\\w+)`")
	for _, name := range named.FindAllStringSubmatch(document, -1) {
		if !there[name[1]] {
			t.Errorf("SECURITY.md names %s, and there is no such test", name[1])
		}
	}
	tables, lines := 0, 0
	for _, table := range regexp.MustCompile(`(?m)^\| what (?:it|he) tries \|.*\n\|[-|]+\|\n((?:\|.*\n)+)`).FindAllStringSubmatch(document, -1) {
		tables++
		for _, line := range strings.Split(strings.TrimSpace(table[1]), "\n") {
			lines++
			cells := strings.Split(strings.Trim(line, "|"), " | ")
			if len(cells) != 3 || !named.MatchString(cells[2]) {
				t.Errorf("SECURITY.md: no test shows this: %s", line)
			}
		}
	}
	atLeast(t, "tables of who is hostile", tables, 4)
	atLeast(t, "lines in them", lines, 20)
}
