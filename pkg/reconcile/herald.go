package reconcile

import (
	"context"
	"sync"
)

// Herald tells news to those who watch. It is the ears of a Kernel that is none,
// and knows itself when it changes. The zero value is ready.
type Herald struct {
	mu     sync.Mutex
	heard  map[int]func(News)
	nextID int
}

// Watch implements Kernel.
func (h *Herald) Watch(ctx context.Context, heard func(News)) error {
	h.mu.Lock()
	id := h.nextID
	h.nextID++
	if h.heard == nil {
		h.heard = make(map[int]func(News))
	}
	h.heard[id] = heard
	h.mu.Unlock()
	heard(Around)
	<-ctx.Done()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.heard, id)
	return ctx.Err()
}

// Tell tells all who watch.
func (h *Herald) Tell(n News) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, heard := range h.heard {
		heard(n)
	}
}
