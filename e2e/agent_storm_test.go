package e2e_test

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// TestAgentStorm is TestCrashStorm with an agent that comes, goes and dies all
// the time: plugins are handed from the ledger's file to the agent and back,
// with requests under way, while they die themselves.
func TestAgentStorm(t *testing.T) {
	rounds := 300
	if testing.Short() {
		rounds /= 10
	}
	s := newStorm(t)
	began := time.Now()
	var over atomic.Bool
	var stopped, killed int
	var agents sync.WaitGroup
	agents.Go(func() {
		choose := rand.New(rand.NewPCG(s.seed, 0))
		for !over.Load() && !t.Failed() {
			a := launch(t, s.h, ours)
			time.Sleep(time.Duration(choose.IntN(500)) * time.Millisecond)
			if stopped <= killed { // by chance all might end the same way
				a.stop()
				stopped++
			} else {
				_ = a.end(syscall.SIGKILL)
				killed++
			}
			a.told.Close()
			time.Sleep(time.Duration(choose.IntN(300)) * time.Millisecond)
		}
	})
	next := make(chan int)
	var wg sync.WaitGroup
	for w := range stormWorkers {
		wg.Go(func() {
			for round := range next {
				c := s.containers[2*w+round%2]
				if t.Failed() {
					continue
				}
				if err := s.round(c, round); err != nil {
					t.Errorf("round %d in %s: %v", round, c.ID, err)
				}
			}
		})
	}
	for round := range rounds {
		next <- round
	}
	close(next)
	wg.Wait()
	over.Store(true)
	agents.Wait()
	t.Logf("seed %d, %v: %d ADDs succeeded, plugins died in %d of %d rounds; %d agents were stopped, %d killed",
		s.seed, time.Since(began).Round(time.Second), s.added.Load(), s.died.Load(), rounds, stopped, killed)
	if t.Failed() {
		return
	}
	var all []*lab.Namespace
	for _, c := range s.containers {
		wantOK(t, "what is left to do in "+c.ID, c.settle())
		all = append(all, c.Namespace)
	}
	wantNothing(t, s.h, s.before, all...)
	if stopped == 0 || killed == 0 {
		t.Error("no agent was stopped, or none killed")
	}
}
