package hostnet

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"sync"
)

// Fake is a host's network without a host, for tests. Neighbours answer as long
// as they are on the subnet of a link that is up, and not mute. It is safe for
// concurrent use; the zero value has nothing.
type Fake struct {
	mu        sync.Mutex
	state     State
	mute      map[netip.Addr]bool
	answers   map[Neighbour]Answer
	forwarded map[string]bool
	heard     map[int]func()
	next      int
}

// Set changes the State.
func (f *Fake) Set(s State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = s
	for _, heard := range f.heard {
		heard()
	}
}

// Mute keeps an address from answering.
func (f *Fake) Mute(a netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mute == nil {
		f.mute = make(map[netip.Addr]bool)
	}
	f.mute[a] = true
}

// Forwards reports whether what comes in by an interface is passed on, and
// whether IPv6 is.
func (f *Fake) Forwards(dev string) (four, six bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	six, four = f.forwarded[dev]
	return four, six
}

// Read does what Host's does.
func (f *Fake) Read(ctx context.Context, reach []netip.Addr) (State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.state
	s.Reach = make(map[netip.Addr]string)
	for _, a := range reach {
		if dev, ok := f.state.Reach[a]; ok {
			s.Reach[a] = dev
		}
	}
	return s, ctx.Err()
}

// Watch does what Host's does.
func (f *Fake) Watch(ctx context.Context, _ []uint8, heard func()) error {
	f.mu.Lock()
	id := f.next
	f.next++
	if f.heard == nil {
		f.heard = make(map[int]func())
	}
	f.heard[id] = heard
	f.mu.Unlock()
	heard()
	<-ctx.Done()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.heard, id)
	return ctx.Err()
}

// Ask does what Host's does; the answers are there at once.
func (f *Fake) Ask(ctx context.Context, all []Neighbour) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answers == nil {
		f.answers = make(map[Neighbour]Answer)
	}
	for _, n := range all {
		l, known := f.state.Link(n.Dev)
		if !known || !l.Up {
			continue
		}
		f.answers[n] = Silent
		for _, a := range l.Addrs {
			if a.Masked().Contains(n.Addr) && !f.mute[n.Addr] {
				f.answers[n] = Found
			}
		}
	}
	return ctx.Err()
}

// Answers does what Host's does.
func (f *Fake) Answers(ctx context.Context, devs []string) (map[Neighbour]Answer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := maps.Clone(f.answers)
	maps.DeleteFunc(out, func(n Neighbour, _ Answer) bool {
		for _, dev := range devs {
			if dev == n.Dev {
				return false
			}
		}
		return true
	})
	return out, ctx.Err()
}

// Forward does what Host's does.
func (f *Fake) Forward(dev string, six bool) (changed []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, there := f.state.Link(dev); !there {
		return nil, fmt.Errorf("forward from %q: the interface is gone", dev)
	}
	if f.forwarded == nil {
		f.forwarded = make(map[string]bool)
	}
	if _, did := f.forwarded[dev]; !did {
		changed = append(changed, dev)
	}
	f.forwarded[dev] = f.forwarded[dev] || six
	return changed, nil
}
