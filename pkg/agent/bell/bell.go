// Package bell wakes all who wait for the next of something. It carries nothing:
// who is woken looks for himself, and what happened before he asked for the next
// ring he has to have looked at after.
package bell

import "sync"

// Bell is ready as its zero value, and safe for concurrent use.
type Bell struct {
	mu sync.Mutex
	ch chan struct{}
}

// Next is closed by the next Ring.
func (b *Bell) Next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

// Ring wakes all who wait.
func (b *Bell) Ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
