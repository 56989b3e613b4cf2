// Package memstore is a registry store in memory that behaves as etcd does and
// can be told to misbehave as a network does: it keeps all revisions, refuses
// what etcd refuses, and holds back, loses or fails requests on demand.
//
// It is for tests. Nothing is durable, except through Snapshot.
package memstore

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
)

// maxValue is what etcd takes in one request by default, less the rest of it.
const maxValue = 1 << 20

var (
	// ErrUnavailable is the error of a request that a Fault kept from the store,
	// and of watches that are broken off.
	ErrUnavailable = errors.New("the store is not available")
	// ErrTimeout is the error of a request whose answer a Fault kept back.
	ErrTimeout = errors.New("no answer in time")
)

// Store is a client's view of the database that all clients made by As share.
type Store struct {
	*database
	client string
}

var _ registry.Store = (*Store)(nil)

type database struct {
	mu       sync.Mutex
	rev      lease.Rev
	floor    lease.Rev // what came up to here is compacted
	items    map[string]value
	history  []registry.Item
	sessions map[*session]bool
	wake     chan struct{} // closed and replaced when watchers have to look
	broken   int           // counts the times that watches were broken off
	held     bool
	rig      func(Request) Fault
	late     []Request
}

type value struct {
	data    []byte
	rev     lease.Rev
	session *session
}

func (v value) item(key string) registry.Item {
	return registry.Item{Key: key, Value: slices.Clone(v.data), Rev: v.rev, Bound: v.session != nil}
}

// New returns an empty store. Its first change is of revision 2, as in etcd.
func New() *Store {
	s := Open(1)
	s.floor = 0 // nothing was forgotten
	return s
}

// Open returns a store of a revision, with values of revisions up to it.
func Open(rev lease.Rev, items ...registry.Item) *Store {
	d := &database{
		rev: rev, floor: rev,
		items:    make(map[string]value, len(items)),
		sessions: make(map[*session]bool),
		wake:     make(chan struct{}),
	}
	for _, i := range items {
		d.items[i.Key] = value{data: i.Value, rev: i.Rev}
	}
	return &Store{database: d}
}

// As returns the same database for another client, which Request names.
func (s *Store) As(client string) *Store { return &Store{s.database, client} }

// Get implements registry.Store.
func (s *Store) Get(ctx context.Context, key string) (registry.Item, error) {
	if err := s.read(ctx, Request{Kind: "get", Key: key}); err != nil {
		return registry.Item{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.items[key]
	return v.item(key), nil
}

// List implements registry.Store.
func (s *Store) List(ctx context.Context, prefix string) (registry.List, error) {
	if err := s.read(ctx, Request{Kind: "list", Key: prefix}); err != nil {
		return registry.List{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := registry.List{Rev: s.rev}
	for key, v := range s.items {
		if strings.HasPrefix(key, prefix) {
			l.Items = append(l.Items, v.item(key))
		}
	}
	slices.SortFunc(l.Items, func(a, b registry.Item) int { return cmp.Compare(a.Key, b.Key) })
	return l, nil
}

// Swap implements registry.Store.
func (s *Store) Swap(ctx context.Context, key string, rev lease.Rev, data []byte) registry.Answer {
	return s.change(ctx, Request{Kind: "swap", Key: key, Rev: rev, Value: slices.Clone(data)})
}

// Delete implements registry.Store.
func (s *Store) Delete(ctx context.Context, key string, rev lease.Rev) registry.Answer {
	return s.change(ctx, Request{Kind: "delete", Key: key, Rev: rev})
}

// Watch implements registry.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after lease.Rev, f func(registry.Batch) error) error {
	if err := s.read(ctx, Request{Kind: "watch", Key: prefix, Rev: after}); err != nil {
		return err
	}
	s.mu.Lock()
	broken := s.broken
	for {
		switch {
		case ctx.Err() != nil:
			s.mu.Unlock()
			return context.Cause(ctx)
		case s.broken != broken:
			s.mu.Unlock()
			return ErrUnavailable
		case after < s.floor:
			s.mu.Unlock()
			return registry.ErrCompacted
		}
		b := registry.Batch{Rev: max(after, s.rev)}
		for _, item := range s.history {
			if item.Rev > after && strings.HasPrefix(item.Key, prefix) {
				b.Items = append(b.Items, item)
			}
		}
		wake := s.wake
		held := s.held
		s.mu.Unlock()
		if len(b.Items) > 0 && !held {
			if err := f(b); err != nil {
				return err
			}
			after = b.Rev
		} else {
			select {
			case <-wake:
			case <-ctx.Done():
			}
		}
		s.mu.Lock()
	}
}

// read is what all reads have in common.
func (s *Store) read(ctx context.Context, r Request) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if s.fault(r) != Deliver {
		return ErrUnavailable
	}
	return nil
}

// change is what all changes have in common.
func (s *Store) change(ctx context.Context, r Request) registry.Answer {
	r.Client = s.client
	switch {
	case ctx.Err() != nil:
		return registry.Answer{Err: context.Cause(ctx)}
	case r.Key == "":
		return registry.Answer{Err: errors.New("the key is empty")}
	case len(r.Value) > maxValue:
		return registry.Answer{Err: errors.New("the request is too large")}
	}
	fault := s.fault(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch fault {
	case Fail:
		return registry.Answer{Err: ErrUnavailable}
	case Delay:
		s.late = append(s.late, r)
		return registry.Answer{Err: ErrTimeout}
	case Lose:
		s.applyLocked(r)
		return registry.Answer{Err: ErrTimeout}
	}
	return s.applyLocked(r)
}

func (d *database) applyLocked(r Request) registry.Answer {
	old, there := d.items[r.Key]
	if old.rev != r.Rev || r.session != nil && !d.sessions[r.session] {
		return registry.Answer{Outcome: registry.Refused}
	}
	if r.Kind == "delete" {
		if !there {
			return registry.Answer{Outcome: registry.Refused}
		}
		d.removeLocked(r.Key)
		return registry.Answer{Outcome: registry.Applied, Rev: d.rev}
	}
	d.rev++
	d.items[r.Key] = value{r.Value, d.rev, r.session}
	d.tellLocked(registry.Item{Key: r.Key, Value: r.Value, Rev: d.rev, Bound: r.session != nil})
	return registry.Answer{Outcome: registry.Applied, Rev: d.rev}
}

func (d *database) removeLocked(key string) {
	d.rev++
	delete(d.items, key)
	d.tellLocked(registry.Item{Key: key, Rev: d.rev})
}

func (d *database) tellLocked(item registry.Item) {
	d.history = append(d.history, item)
	d.wakeLocked()
}

func (d *database) wakeLocked() {
	close(d.wake)
	d.wake = make(chan struct{})
}

// Snapshot is all that a backup keeps.
type Snapshot struct {
	Rev   lease.Rev
	items map[string]value
}

// Snapshot takes a backup.
func (s *Store) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Snapshot{s.rev, maps.Clone(s.items)}
}

// Restore goes back to a backup: revisions begin again where it was taken,
// watches break off, sessions are lost.
func (s *Store) Restore(snap Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for open := range s.sessions {
		open.endLocked(registry.ErrSessionLost)
	}
	s.rev, s.floor, s.history = snap.Rev, snap.Rev, nil
	s.items = maps.Clone(snap.items)
	maps.DeleteFunc(s.items, func(_ string, v value) bool { return v.session != nil })
	s.late = nil
	s.broken++
	s.wakeLocked()
}

// session implements registry.Session.
type session struct {
	store  *Store
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// Bind implements registry.Store. The end of ctx is to the session what the
// death of the process is: it stops renewing.
func (s *Store) Bind(ctx context.Context, key string, data []byte, ttl time.Duration, takeOver func([]byte) bool) (registry.Session, error) {
	if err := s.read(ctx, Request{Kind: "bind", Key: key, Value: data}); err != nil {
		return nil, err
	}
	n := &session{store: s}
	n.ctx, n.cancel = context.WithCancelCause(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	old, there := s.items[key]
	if there && old.session != nil && !takeOver(slices.Clone(old.data)) {
		n.cancel(nil)
		return nil, registry.ErrTaken
	}
	s.sessions[n] = true
	s.applyLocked(Request{Kind: "swap", Key: key, Rev: old.rev, Value: slices.Clone(data), session: n})
	if old.session != nil {
		old.session.expireLocked(registry.ErrSessionLost)
	}
	context.AfterFunc(ctx, func() {
		time.AfterFunc(ttl, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			n.expireLocked(registry.ErrSessionLost)
		})
	})
	return n, nil
}

func (n *session) Context() context.Context { return n.ctx }

func (n *session) Swap(ctx context.Context, key string, rev lease.Rev, data []byte) registry.Answer {
	return n.store.change(ctx, Request{Kind: "swap", Key: key, Rev: rev, Value: slices.Clone(data), session: n})
}

func (n *session) Close(context.Context) error {
	n.store.mu.Lock()
	defer n.store.mu.Unlock()
	n.expireLocked(context.Canceled)
	return nil
}

// endLocked ends the session for its user.
func (n *session) endLocked(why error) {
	delete(n.store.sessions, n)
	n.cancel(why)
}

func (n *session) expireLocked(why error) {
	n.endLocked(why)
	for _, key := range slices.Sorted(maps.Keys(n.store.items)) {
		if n.store.items[key].session == n {
			n.store.removeLocked(key)
		}
	}
}
