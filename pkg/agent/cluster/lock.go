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
