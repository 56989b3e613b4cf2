// Package reconcile keeps objects of one kind in the kernel as they are wanted:
// routes, neighbours, FDB entries. What is wanted is given as a whole, and what
// is there is read from the kernel each time, so nothing depends on what was
// done before, by this process or an earlier one: what is there and not wanted
// goes, what is wanted and not there comes, and the rest is left alone.
//
// One that the kernel refuses is tried again later and later, and sooner when
// something changes that may be the reason; it holds up no other. Before the
// first wanted state nothing is written.
//
// The objects themselves, and how the kernel is told of them, are the business
// of the packages that use this one.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"
)

// Object is one of the things that are kept. Two of them are the same if they
// are equal.
type Object[K comparable, T any] interface {
	comparable
	fmt.Stringer
	// Key is what the kernel tells objects apart by: of those that are wanted,
	// no two have the same.
	Key() K
	// Canonical is the object as it is read back from the kernel, or an error
	// that says why there can be no such object.
	Canonical() (T, error)
}

// Want is an object, and whom it is for.
type Want[T any] struct {
	// Peer is for people: the name of a node.
	Peer   string
	Object T
}

// Kernel is where the objects are.
type Kernel[T any] interface {
	// List reads the objects that are there and ours, all of them or none.
	List(ctx context.Context) ([]T, error)
	// Change carries changes out, in their order, and returns what became of
	// each. The error is about something else; then of those without a verdict
	// nobody knows. That an object to delete is not there is success.
	Change(ctx context.Context, changes []Change[T]) ([]error, error)
	// Watch calls heard once at the start and whenever something has changed,
	// until ctx ends. It may leave out what Change has done.
	Watch(ctx context.Context, heard func(News)) error
	// Close ends the connection to the kernel.
	Close() error
}

// Verb is what to do.
type Verb int

const (
	// Add makes New; nothing of ours has its key.
	Add Verb = iota + 1
	// Replace makes New in the place of Old, which has the same key.
	Replace
	// Delete removes Old, and nothing else that has its key.
	Delete
)

// Change is one step towards what is wanted.
type Change[T any] struct {
	Verb     Verb
	New, Old T
}

// News is what a Kernel hears.
type News int

const (
	// Foreign: what belongs to others has changed, which only matters to what is
	// not there yet.
	Foreign News = iota + 1
	// Ours: objects of ours have changed.
	Ours
	// Around: what the objects depend on has changed, such as a link. They may be
	// gone, and what was refused may work.
	Around
)

// Options say how patient a Reconciler is.
type Options[T any] struct {
	// Retry is the time until the second attempt at an object that is refused;
	// default 1 s. It doubles with each one, up to MaxRetry, default 1 min.
	Retry, MaxRetry time.Duration
	// Resync is how often all is read again without being told; default 30 s.
	Resync time.Duration
	// Changed is called when an object is no longer, or not yet, as wanted, and
	// when it is again. Optional. It must not call the Reconciler.
	Changed func(Status[T])
}

// Status is what has become of a Want.
type Status[T any] struct {
	Want[T]
	// Err says why the object is not there; nil if it is.
	Err error
	// Attempts that have failed, and when the next one is due; zero where the
	// object is there, or can never be.
	Attempts int
	Next     time.Time
}

// ByPeer joins what has become of each peer's objects: nil if all are there.
func ByPeer[T any](all []Status[T]) map[string]error {
	peers := make(map[string]error)
	for _, s := range all {
		peers[s.Peer] = errors.Join(peers[s.Peer], s.Err)
	}
	return peers
}

// Counts are since the start.
type Counts struct {
	// Passes compared what is wanted with the kernel; Written and Refused are
	// changes; Unknown are passes that had to read again since something kept
	// the kernel's answer from them.
	Passes, Written, Refused, Unknown uint64
}

// ErrPending is in the Status of what has been wanted, but not tried.
var ErrPending = errors.New("not tried yet")

// Reconciler keeps the objects of a Kernel. It is safe for concurrent use.
type Reconciler[K comparable, T Object[K, T]] struct {
	kernel Kernel[T]
	opts   Options[T]
	soon   chan struct{} // something may be due earlier than Run knows

	mu     sync.Mutex
	given  bool // what is wanted
	amends bool // that may not be all
	wants  []*entry[T]
	byKey  map[K]*entry[T]      // of those that can be
	stuck  map[T]*entry[T]      // what should be gone, and cannot be deleted
	told   map[Want[T]]struct{} // of what fails
	counts Counts
	err    error     // of the last pass
	end    time.Time // of the last pass
	took   time.Duration
}

// entry is an object on its way.
type entry[T any] struct {
	Status[T]
	hopeless bool // nothing in the kernel can change that
	delays   int  // of the next attempt
	seen     bool // in the list that is being compared
}

// New keeps what is in kernel, which it closes in the end.
func New[K comparable, T Object[K, T]](kernel Kernel[T], opts Options[T]) *Reconciler[K, T] {
	def := func(d *time.Duration, to time.Duration) {
		if *d <= 0 {
			*d = to
		}
	}
	def(&opts.Retry, time.Second)
	def(&opts.MaxRetry, time.Minute)
	def(&opts.Resync, 30*time.Second)
	return &Reconciler[K, T]{kernel: kernel, opts: opts, soon: make(chan struct{}, 1), stuck: make(map[T]*entry[T])}
}

// Apply makes what is wanted so, as far as the kernel lets it, and keeps it so
// from now on, if Run runs. The error joins why one or the other object is not
// there, also of those that are not due to be tried again.
func (r *Reconciler[K, T]) Apply(ctx context.Context, want []Want[T]) error {
	return r.apply(ctx, want, false)
}

// Amend is Apply of what may not be all that is wanted: what is there and has
// none of its keys stays.
func (r *Reconciler[K, T]) Amend(ctx context.Context, want []Want[T]) error {
	return r.apply(ctx, want, true)
}

func (r *Reconciler[K, T]) apply(ctx context.Context, want []Want[T], amends bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.amends = amends
	r.takeLocked(want)
	r.passLocked(ctx, false)
	select {
	case r.soon <- struct{}{}:
	default:
	}
	if r.err != nil {
		return r.err
	}
	var all []error
	for s := range r.statusLocked() {
		switch {
		case s.Err == nil:
		case s.Peer == "":
			all = append(all, s.Err)
		default:
			all = append(all, fmt.Errorf("peer %s: %w", s.Peer, s.Err))
		}
	}
	return errors.Join(all...)
}

// takeLocked takes over what is wanted, and what is known of it already.
func (r *Reconciler[K, T]) takeLocked(want []Want[T]) {
	wants, byKey := make([]*entry[T], 0, len(want)), make(map[K]*entry[T], len(want))
	for _, w := range want {
		e := &entry[T]{Status: Status[T]{Want: w, Err: ErrPending}}
		wants = append(wants, e)
		object, err := w.Object.Canonical()
		if err != nil {
			e.Err, e.hopeless = fmt.Errorf("%s: %w", w.Object, err), true
			continue
		}
		e.Object = object
		if first, taken := byKey[object.Key()]; taken {
			e.Err, e.hopeless = fmt.Errorf("%s: peer %s wants %s", object, first.Peer, first.Object), true
			continue
		}
		byKey[object.Key()] = e
		if old := r.byKey[object.Key()]; old != nil && old.Object == object {
			e.Err, e.Attempts, e.Next, e.delays = old.Err, old.Attempts, old.Next, old.delays
		}
	}
	r.given, r.wants, r.byKey = true, wants, byKey
}

// Status tells what has become of each Want, in the order they were given, and
// then what should be gone and is not, which is for no peer.
func (r *Reconciler[K, T]) Status() []Status[T] {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(r.statusLocked())
}

func (r *Reconciler[K, T]) statusLocked() iter.Seq[Status[T]] {
	return func(yield func(Status[T]) bool) {
		for _, e := range r.wants {
			if !yield(e.Status) {
				return
			}
		}
		for _, e := range r.stuck {
			if !yield(e.Status) {
				return
			}
		}
	}
}

// Err is why the last comparison with the kernel came to nothing; nil if it did
// not. What Status tells is older then.
func (r *Reconciler[K, T]) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Counts tells how much there was to do.
func (r *Reconciler[K, T]) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

// Close ends the connection to the kernel. The objects stay.
func (r *Reconciler[K, T]) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kernel.Close()
}
