package attach

import (
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// inside is a thread in the container's namespace. It takes the steps of an
// ADD one after the other while the caller waits for something else: the link
// is made while the ledger waits for its disk. After a step that fails no
// other is taken.
type inside struct {
	steps chan func(*link.Handle) error
	ended chan error // has the thread's own error at its end
}

// enter starts the thread; leave it.
func enter(ns *netns.NS) *inside {
	// With room for all steps of an ADD, then never waits.
	in := &inside{steps: make(chan func(*link.Handle) error, 8), ended: make(chan error, 1)}
	go func() { in.ended <- ns.Do(in.run) }()
	return in
}

func (in *inside) run() error {
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	for step := range in.steps {
		if err := step(h); err != nil {
			return err
		}
	}
	return nil
}

// then has a step taken after those before.
func (in *inside) then(step func(*link.Handle) error) { in.steps <- step }

// wait waits for all steps so far and returns the error of the one that failed.
func (in *inside) wait() error {
	done := make(chan struct{})
	in.then(func(*link.Handle) error { close(done); return nil })
	select {
	case <-done:
		return nil
	case err := <-in.ended:
		in.ended <- err
		return err
	}
}

// leave ends the thread after the steps so far. It does not wait for that: what
// is left to do by then is to close a socket.
func (in *inside) leave() { close(in.steps) }
