package memstore

import (
	"slices"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
)

// Request is a request on its way to the store.
type Request struct {
	// Client is the name that As was given.
	Client string
	// Kind is get, list, watch, bind, swap or delete.
	Kind string
	Key  string
	// Rev that a change compares with, or that a watch begins after.
	Rev   lease.Rev
	Value []byte

	session *session
}

// Fault is what happens to a request.
type Fault uint8

const (
	// Deliver it.
	Deliver Fault = iota
	// Fail: it never arrives.
	Fail
	// Lose: it arrives, the answer does not. For reads the same as Fail.
	Lose
	// Delay: it stays on its way until Land; the sender gets no answer.
	// For reads the same as Fail.
	Delay
)

// Rig has f decide about each request from now on; nil delivers all.
func (s *Store) Rig(f func(Request) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rig = f
}

func (s *Store) fault(r Request) Fault {
	s.mu.Lock()
	rig := s.rig
	s.mu.Unlock()
	if rig == nil {
		return Deliver
	}
	r.Client = s.client
	return rig(r)
}

// Late lists the changes that are still on their way.
func (s *Store) Late() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.late)
}

// Land has the i-th late change arrive. Its sender does not hear of it.
func (s *Store) Land(i int) registry.Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.late[i]
	s.late = slices.Delete(s.late, i, i+1)
	return s.applyLocked(r).Outcome
}

// Hold keeps watches from hearing of anything new until it is called with
// false: they lag behind.
func (s *Store) Hold(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = on
	s.wakeLocked()
}

// Break breaks all watches off.
func (s *Store) Break() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken++
	s.wakeLocked()
}

// Compact forgets all changes up to rev.
func (s *Store) Compact(rev lease.Rev) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.floor = max(s.floor, min(rev, s.rev))
	s.history = slices.DeleteFunc(s.history, func(i registry.Item) bool { return i.Rev <= s.floor })
	s.wakeLocked()
}

// Expire ends the session that holds key, as if it had not been renewed in
// time.
func (s *Store) Expire(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.items[key].session; n != nil {
		n.expireLocked(registry.ErrSessionLost)
	}
}

// Put writes a value whatever is there, as an operator's own tool could.
func (s *Store) Put(key string, data []byte) lease.Rev {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applyLocked(Request{Kind: "swap", Key: key, Rev: s.items[key].rev, Value: slices.Clone(data)}).Rev
}
