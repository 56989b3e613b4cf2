package service

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// BenchmarkAllocate measures durable allocations through the agent, from one
// pool: how many a second, and how long one takes.
func BenchmarkAllocate(b *testing.B) {
	for _, clients := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) { benchmark(b, clients, 0) })
	}
	b.Run("clients=32/held=60000", func(b *testing.B) { benchmark(b, 32, 60_000) })
}

func benchmark(b *testing.B, clients, held int) {
	p := newPlace(b)
	s, _ := p.start()
	if held > 0 {
		var wg sync.WaitGroup
		next := make(chan int)
		for range 128 {
			wg.Go(func() {
				for i := range next {
					err := s.With(func(l *ledger.Ledger) error {
						_, err := l.Allocate(p.request(fmt.Sprintf("filler-%d", i)), nil)
						return err
					})
					if err != nil {
						b.Error(err)
					}
				}
			})
		}
		for i := range held {
			next <- i
		}
		close(next)
		wg.Wait()
	}
	times := make([]time.Duration, b.N)
	next := make(chan int)
	var wg sync.WaitGroup
	b.ResetTimer()
	for range clients {
		c := client.New(p.options.DataDir, p.options.RunDir)
		wg.Go(func() {
			for i := range next {
				began := time.Now()
				if _, err := c.Allocate(b.Context(), p.request(fmt.Sprint(i)), nil); err != nil {
					b.Error(err)
				}
				times[i] = time.Since(began)
			}
		})
	}
	for i := range b.N {
		next <- i
	}
	close(next)
	wg.Wait()
	b.StopTimer()
	slices.Sort(times)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "allocations/s")
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, "p99-ms")
}
