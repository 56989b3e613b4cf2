package chaos_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// journal is what was done, in order, and how often.
type journal struct {
	began time.Time

	mu     sync.Mutex
	lines  []string
	counts map[string]int
}

func newJournal() *journal { return &journal{began: time.Now(), counts: map[string]int{}} }

// note writes down what happened, and where.
func (j *journal) note(where, format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	what := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " ")
	j.lines = append(j.lines, fmt.Sprintf("%8.3f %-3s %s", time.Since(j.began).Seconds(), where, what))
}

func (j *journal) count(what string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.counts[what]++
}

// ending are the last lines.
func (j *journal) ending(lines int) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines[max(0, len(j.lines)-lines):], "\n")
}

// of are the last lines that have any of the words in them.
func (j *journal) of(lines int, words ...string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []string
	for _, l := range j.lines {
		if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(l, w) }) {
			out = append(out, l)
		}
	}
	return strings.Join(out[max(0, len(out)-lines):], "\n")
}

// summary has how often each thing was done.
func (j *journal) summary() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var all []string
	for _, what := range slices.Sorted(maps.Keys(j.counts)) {
		all = append(all, fmt.Sprintf("%s %d", what, j.counts[what]))
	}
	return strings.Join(all, ", ")
}

func (j *journal) write(dir string) error {
	return os.WriteFile(filepath.Join(dir, "journal"), []byte(j.ending(1<<31)+"\n"), 0o600)
}
