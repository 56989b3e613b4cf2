package cluster

import (
	"context"
	"sync"
)

// lock is a mutex that one may wait for with a context.
type lock chan struct{}

var _ sync.Locker = lock(nil)

func newLock() lock { return make(lock, 1) }

// Lock implements sync.Locker.
func (l lock) Lock() { l <- struct{}{} }

// Unlock implements sync.Locker.
func (l lock) Unlock() { <-l }

// wait is Lock until ctx ends; it reports whether it has the lock.
func (l lock) wait(ctx context.Context) bool {
	select {
	case l <- struct{}{}:
		return true
	default:
	}
	select {
	case l <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// news wakes all who wait for something new.
type news struct {
	mu sync.Mutex
	ch chan struct{}
}

// next is closed with the next tell.
func (n *news) next() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch == nil {
		n.ch = make(chan struct{})
	}
	return n.ch
}

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch != nil {
		close(n.ch)
		n.ch = nil
	}
}
