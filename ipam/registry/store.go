package registry

import (
	"context"
	"errors"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
)

var (
	// ErrCompacted is returned by Watch when the store has forgotten what came
	// after the revision asked for: list again.
	ErrCompacted = errors.New("the store has forgotten that revision")
	// ErrWentBack is returned by Watch when the store is at an earlier revision
	// than it was: it was restored from a backup.
	ErrWentBack = errors.New("the registry is at an earlier revision than before")
	// ErrTaken is returned by Bind while another session holds the key.
	ErrTaken = errors.New("another session holds it")
	// ErrUnreachable is returned by what connects to a store that does not answer
	// now: try again.
	ErrUnreachable = errors.New("the store does not answer")
	// ErrSessionLost is the cause for which a session's context ends when the
	// store, or whoever took the session over, ended it.
	ErrSessionLost = errors.New("the session is lost")
)

// Store is what the registry needs of a database: values by key, each with
// the revision of its last change. Revisions grow with every change in the
// store, and one read or event tells of one moment.
//
// Get and List are linearizable: they show every change that was applied
// before they were called.
type Store interface {
	// Get reads one key; Item.Rev is 0 where there is none.
	Get(ctx context.Context, key string) (Item, error)
	// List reads all keys that begin with prefix, ordered by key.
	List(ctx context.Context, prefix string) (List, error)
	// Swap writes a value if the key is still of revision rev; 0 means that
	// there must be no such key.
	Swap(ctx context.Context, key string, rev lease.Rev, value []byte) Answer
	// Delete removes a key if it is still of revision rev.
	Delete(ctx context.Context, key string, rev lease.Rev) Answer
	// Watch calls f with all changes below prefix that came after revision
	// after, in order and none left out, until ctx ends, f returns an error
	// or the watch breaks; it returns why. To go on, watch from the last
	// batch on, or after ErrCompacted from a new list.
	Watch(ctx context.Context, prefix string, after lease.Rev, f func(Batch) error) error
	// Bind opens a session: a key that lives as long as this process renews
	// it, and at most ttl longer. takeOver decides about a key that another
	// session holds: true has this session replace it at once, false returns
	// ErrTaken. A key that no session holds is nobody's, and is replaced.
	Bind(ctx context.Context, key string, value []byte, ttl time.Duration, takeOver func(value []byte) bool) (Session, error)
}

// Session keeps a key alive.
type Session interface {
	// Context ends when the session does, with the cause ErrSessionLost unless
	// Close was called.
	Context() context.Context
	// Swap is Store.Swap for a further key that vanishes with the session.
	Swap(ctx context.Context, key string, rev lease.Rev, value []byte) Answer
	// Close ends the session and removes its keys.
	Close(ctx context.Context) error
}

// Item is a value of a store.
type Item struct {
	Key   string
	Value []byte
	// Rev of the last change; 0 where there is no such key.
	Rev lease.Rev
	// Bound: it goes with a session.
	Bound bool
}

// List is what a prefix held at one moment.
type List struct {
	Items []Item
	// Rev of the store at that moment.
	Rev lease.Rev
}

// Batch are changes in order. An Item without Value was deleted.
type Batch struct {
	Items []Item
	// Rev that all changes up to have been told of.
	Rev lease.Rev
}

// Outcome of a change.
type Outcome uint8

const (
	// Unknown: the change was made, or it was not, or it is going to be yet.
	// It is the zero value, so that what nobody decided counts as unknown.
	Unknown Outcome = iota
	// Applied: it was made, at the revision of the answer.
	Applied
	// Refused: the key has moved on; this request changed nothing and never
	// will.
	Refused
)

func (o Outcome) String() string {
	return [...]string{"unknown", "applied", "refused"}[o]
}

// Answer to a change.
type Answer struct {
	Outcome Outcome
	// Rev of the key after the change; set when Applied.
	Rev lease.Rev
	// Err says why the outcome is Unknown.
	Err error
}
