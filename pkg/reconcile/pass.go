package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// rounds of a pass: read and write what differs; do so again where the outcome
	// is unknown; then remove what was to be replaced by what is refused; read and
	// be done. Nearly always the second finds nothing to write.
	rounds = 4
	// believed is how often one change is written that the kernel takes.
	believed = 2
)

// errNotKept is returned for what the kernel takes, and does not have.
var errNotKept = errors.New("the kernel takes it and does not keep it")

// passLocked compares what is wanted with the kernel and writes the difference,
// until there is none. Of what failed before, only what is due is tried, unless
// all is.
func (r *Reconciler[K, T]) passLocked(ctx context.Context, all bool) {
	if !r.given {
		return
	}
	start := time.Now()
	r.err = r.roundsLocked(ctx, all, start)
	r.end = time.Now()
	r.took = r.end.Sub(start)
	r.counts.Passes++
	r.tellLocked()
}

func (r *Reconciler[K, T]) roundsLocked(ctx context.Context, all bool, now time.Time) (unknown error) {
	writes := make(map[K]int)
	for round := 1; ; round++ {
		have, err := r.kernel.List(ctx)
		if err != nil {
			return err
		}
		changes := r.diffLocked(have, func(e *entry[T]) bool { return now.Before(e.Next) && (!all || round > 1) })
		changes = slices.DeleteFunc(changes, func(c Change[T]) bool {
			vain := c.Verb != Delete && writes[c.New.Key()] == believed
			if vain {
				r.failLocked(r.byKey[c.New.Key()], fmt.Errorf("%s: %w", c.New, errNotKept), now)
			}
			return vain
		})
		if len(changes) == 0 {
			return nil
		}
		if round == rounds {
			return unknown
		}
		var verdicts []error
		verdicts, unknown = r.kernel.Change(ctx, changes)
		for i, verdict := range verdicts {
			r.judgeLocked(changes[i], verdict, now)
			if c := changes[i]; verdict == nil && c.Verb != Delete {
				writes[c.New.Key()]++
			}
		}
		if unknown != nil {
			r.counts.Unknown++
			if ctx.Err() != nil {
				return unknown
			}
		}
	}
}

// diffLocked is what has to be done about what is there, additions first, and
// notes what is as it should be.
func (r *Reconciler[K, T]) diffLocked(have []T, rests func(*entry[T]) bool) (changes []Change[T]) {
	var unwanted []T
	olds := make(map[K]T) // one for each key that something else is wanted for
	stuck := make(map[T]*entry[T])
	for _, o := range have {
		key := o.Key()
		e := r.byKey[key]
		if e != nil && e.Object == o {
			e.seen = true
			continue
		}
		if e == nil && r.amends {
			continue
		}
		if s := r.stuck[o]; s != nil {
			stuck[o] = s
		}
		if _, another := olds[key]; e == nil || another {
			unwanted = append(unwanted, o)
		} else {
			olds[key] = o
		}
	}
	r.stuck = stuck
	for _, e := range r.wants {
		if e.hopeless {
			continue
		}
		old, replaces := olds[e.Object.Key()]
		switch {
		case e.seen:
			e.seen = false
			e.Err, e.Attempts, e.Next, e.delays = nil, 0, time.Time{}, 0
		case rests(e):
		case replaces:
			changes = append(changes, Change[T]{Verb: Replace, New: e.Object, Old: old})
			continue
		default:
			changes = append(changes, Change[T]{Verb: Add, New: e.Object})
			continue
		}
		// What is not wanted goes, even if what is wanted instead cannot come: it
		// would lead somewhere else.
		if replaces {
			unwanted = append(unwanted, old)
		}
	}
	for _, o := range unwanted {
		if s := r.stuck[o]; s == nil || !rests(s) {
			changes = append(changes, Change[T]{Verb: Delete, Old: o})
		}
	}
	return changes
}

// judgeLocked notes what became of a change. That all is well is not believed
// before it is read.
func (r *Reconciler[K, T]) judgeLocked(c Change[T], verdict error, now time.Time) {
	if verdict == nil {
		r.counts.Written++
		return
	}
	r.counts.Refused++
	if c.Verb != Delete {
		r.failLocked(r.byKey[c.New.Key()], verdict, now)
		return
	}
	e := r.stuck[c.Old]
	if e == nil {
		e = &entry[T]{Status: Status[T]{Want: Want[T]{Object: c.Old}}}
		r.stuck[c.Old] = e
	}
	r.failLocked(e, verdict, now)
}

// failLocked puts the next attempt off. One that was made before it was due, since
// something had changed, is no reason to wait longer.
func (r *Reconciler[K, T]) failLocked(e *entry[T], err error, now time.Time) {
	e.Err = err
	e.Attempts++
	if now.Before(e.Next) {
		return
	}
	wait := r.opts.Retry
	for i := 0; i < e.delays && wait < r.opts.MaxRetry; i++ {
		wait *= 2
	}
	e.Next = now.Add(min(wait, r.opts.MaxRetry))
	e.delays++
}

// tellLocked tells of those that have begun to fail, and have ceased to.
func (r *Reconciler[K, T]) tellLocked() {
	told := make(map[Want[T]]struct{})
	for s := range r.statusLocked() {
		_, before := r.told[s.Want]
		fails := s.Err != nil && s.Err != ErrPending
		if fails {
			told[s.Want] = struct{}{}
		}
		if fails != before && r.opts.Changed != nil {
			r.opts.Changed(s)
		}
	}
	r.told = told
}
