package reconcile

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// settle is how long Run listens on when it hears something: what comes in
	// bursts is answered once.
	settle = 5 * time.Millisecond
	// idle is how much longer than its last pass Run waits before the next one,
	// up to maxGap, so that it never takes more than a part of a processor.
	idle   = 4
	maxGap = 300 * time.Millisecond
)

// Run keeps the objects as they are wanted until ctx ends: it compares them when
// the Kernel hears something, when one is due to be tried again, and from time
// to time. It ends with an error when the Kernel can no longer hear.
func (r *Reconciler[K, T]) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var ear ear
	ear.rings = make(chan struct{}, 1)
	deaf := make(chan error, 1)
	go func() { deaf <- r.kernel.Watch(ctx, ear.put) }()
	defer func() {
		if cancel(); deaf != nil {
			<-deaf
		}
	}()
	for {
		timer := time.NewTimer(time.Until(r.due()))
		select {
		case <-ctx.Done():
		case err := <-deaf:
			if deaf = nil; ctx.Err() == nil {
				return fmt.Errorf("keep up with the kernel: %w", err)
			}
		case <-r.soon:
		case <-timer.C:
			r.pass(ctx, false)
		case <-ear.rings:
			wait(ctx, max(settle, r.rest()))
			switch ear.take() {
			case Ours:
				r.pass(ctx, false)
			case Around:
				r.pass(ctx, true)
			case Foreign:
				if r.fails() {
					r.pass(ctx, true)
				}
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (r *Reconciler[K, T]) pass(ctx context.Context, all bool) {
	if ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.passLocked(ctx, all)
}

// due is when to look next if nothing is heard.
func (r *Reconciler[K, T]) due() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.given:
		return time.Now().Add(r.opts.Resync)
	case r.err != nil: // nothing was tried, whatever was due
		return r.end.Add(r.opts.Retry)
	}
	due := r.end.Add(r.opts.Resync)
	sooner := func(t time.Time) {
		if t.Before(due) {
			due = t
		}
	}
	for _, e := range r.wants {
		switch {
		case e.Err == nil || e.hopeless:
		case e.Next.IsZero():
			sooner(r.end.Add(r.opts.Retry))
		default:
			sooner(e.Next)
		}
	}
	for _, e := range r.stuck {
		sooner(e.Next)
	}
	if earliest := r.end.Add(settle); due.Before(earliest) {
		due = earliest
	}
	return due
}

// rest is how long to leave the processor to others.
func (r *Reconciler[K, T]) rest() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return min(maxGap, r.took*idle) - time.Since(r.end)
}

// fails reports whether something is not there that may yet be.
func (r *Reconciler[K, T]) fails() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.wants {
		if e.Err != nil && !e.hopeless {
			return true
		}
	}
	return len(r.stuck) > 0
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// ear keeps the weightiest of the news that nobody has taken.
type ear struct {
	rings chan struct{}

	mu   sync.Mutex
	news News
}

func (e *ear) put(n News) {
	e.mu.Lock()
	e.news = max(e.news, n)
	e.mu.Unlock()
	select {
	case e.rings <- struct{}{}:
	default:
	}
}

func (e *ear) take() News {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.news
	e.news = 0
	return n
}
