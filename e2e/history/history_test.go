package history_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/cluster"
)

const defaultLoad = 2 * time.Minute

// storm is what workers and nemesis share.
type storm struct {
	t       *testing.T
	bed     *cluster.Cluster
	history *history
	seed    uint64
	until   time.Time
	// calm: no plugin is killed any more.
	calm   atomic.Bool
	paused [hosts]atomic.Bool // workers of a host

	mu     sync.Mutex
	counts map[string]int
}

func (s *storm) over() bool { return time.Now().After(s.until) }

func (s *storm) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

// idle waits while the worker's host pauses.
func (w *worker) idle() {
	for w.paused[w.home].Load() && !w.over() {
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *storm) String() string {
	var all []string
	for _, what := range slices.Sorted(maps.Keys(s.counts)) {
		all = append(all, fmt.Sprintf("%s %d", what, s.counts[what]))
	}
	return strings.Join(all, ", ")
}

// TestHistory: see the comment of the package.
func TestHistory(t *testing.T) {
	load, seed := defaultLoad, rand.Uint64()
	var err error
	if given := os.Getenv("HISTORY_FOR"); given != "" {
		if load, err = time.ParseDuration(given); err != nil {
			t.Fatal(err)
		}
	}
	if given := os.Getenv("HISTORY_SEED"); given != "" {
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	s := &storm{t: t, bed: newBed(t), seed: seed, counts: map[string]int{}, history: &history{}}
	crew := s.crew()
	t.Logf("seed %d, %s of load", seed, load)
	s.history.began, s.until = time.Now(), time.Now().Add(load)
	var nemeses, wg sync.WaitGroup
	s.harm(&nemeses)
	for _, w := range crew {
		wg.Go(w.run)
	}
	nemeses.Wait()
	s.calm.Store(true)
	for _, n := range s.bed.Nodes {
		n.Ahead(0)
	}
	wg.Wait()
	s.bed.Ready(time.Minute)
	defer s.keep()
	again, moved := loyal(s.history.calls)
	t.Logf("seed %d, %s: %s; owners had their address again %d times, and another one %d times", seed, time.Since(s.history.began).Round(time.Second), s, again, moved)

	if t.Failed() {
		t.Log("what comes after quiet is looked at all the same")
	}
	s.quiet()
	s.bed.Settle()
	s.bed.Agree()
	s.fill()
	s.said()
	for _, finding := range judge(s.history.calls, time.Minute) {
		t.Error(finding)
	}
	for _, finding := range strictly(s.history.calls, strictNet) {
		t.Error(finding)
	}
	for _, what := range []string{"ADD ok", "ADD failed", "ADD unknown", "DEL ok", "DEL unknown", "agent killed", "agent stopped", "agent frozen",
		"agent died at a fault point", "member killed", "partition", "clock set"} {
		if s.counts[what] == 0 {
			t.Errorf("too little for a storm: no %s", what)
		}
	}
}

// crew makes the workers, with a container each, or one on each host.
func (s *storm) crew() (crew []*worker) {
	s.t.Helper()
	for host, n := range s.bed.Nodes {
		for i := range workers {
			w := &worker{storm: s, name: fmt.Sprintf("w%d%s", i, n.Name), home: host, pool: "soft", netns: map[int]string{}}
			w.choose = rand.New(rand.NewPCG(s.seed, uint64(100+len(crew))))
			at := []int{host}
			if i < keepers+movers {
				w.owner, at = "owner-"+w.name, []int{0, 1, 2}
			}
			if i < keepers {
				w.pool = "strict"
			}
			for _, h := range at {
				c, err := s.bed.Nodes[h].AddContainer(s.t.Context(), w.name)
				if err != nil {
					s.t.Fatal(err)
				}
				w.netns[h] = c.Path
			}
			crew = append(crew, w)
		}
	}
	return crew
}

// keep writes the history down in HISTORY_LOGS for whoever looks into it.
func (s *storm) keep() {
	dir := os.Getenv("HISTORY_LOGS")
	if dir == "" {
		return
	}
	var b strings.Builder
	for _, c := range s.history.calls {
		fmt.Fprintln(&b, c)
	}
	if err := os.WriteFile(filepath.Join(dir, "history"), []byte(b.String()), 0o600); err != nil {
		s.t.Error(err)
	}
}
