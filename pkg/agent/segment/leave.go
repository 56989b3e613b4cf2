package segment

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
)

// leaving are segments that this node is withdrawn from, as soon as the registry
// takes it.
type leaving struct {
	bell
	mu   sync.Mutex
	vnis map[int]bool
	// busy are withdrawals under way, which are closed when they are done.
	busy map[int]chan struct{}
}

// begin has this node be withdrawn from a segment.
func (l *leaving) begin(vni int) {
	l.mu.Lock()
	l.vnis[vni] = true
	l.mu.Unlock()
	l.ring()
}

// stay says that it is in it again. Who publishes waits for a withdrawal that is
// under way: of what they write one could else be left without the other, and who
// looks for what is left finds nothing. It reports whether one was to come, or is
// under way.
func (l *leaving) stay(vni int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := l.vnis[vni] || l.busy[vni] != nil
	delete(l.vnis, vni)
	return left
}

// claim begins a withdrawal, unless it is in it again. What comes of it is to be
// told with done.
func (l *leaving) claim(vni int) (done func(error), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.vnis[vni] {
		return nil, false
	}
	under := make(chan struct{})
	l.busy[vni] = under
	return func(err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		close(under)
		delete(l.busy, vni)
		if err == nil {
			delete(l.vnis, vni)
		}
	}, true
}

// idle waits until no withdrawal is under way, or says that ctx has ended.
func (l *leaving) idle(ctx context.Context, vni int) error {
	l.mu.Lock()
	under := l.busy[vni]
	l.mu.Unlock()
	if under == nil {
		return nil
	}
	select {
	case <-under:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *leaving) all() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.vnis))
}

// leave withdraws this node from what it is in no more.
func (t *Task) leave(ctx context.Context) {
	failures := 0
	for {
		var retry <-chan time.Time
		if failures > 0 {
			retry = time.After(backoff(failures))
		}
		select {
		case <-ctx.Done():
			return
		case <-t.leaving.bell:
		case <-retry:
		}
		failures++
		if t.leaveOnce(ctx) == nil {
			failures = 0
		}
	}
}

func (t *Task) leaveOnce(ctx context.Context) error {
	vnis := t.leaving.all()
	if len(vnis) == 0 {
		return nil
	}
	me := t.stands().me
	if me == "" {
		return errPending // what is known by then begins with this node's records
	}
	r, err := t.conf.Cluster.Client()
	if err != nil {
		return err
	}
	for _, vni := range vnis {
		done, still := t.leaving.claim(vni)
		if !still {
			continue
		}
		err := r.DeleteSegment(ctx, vni, me)
		done(err)
		if err != nil {
			if ctx.Err() == nil {
				t.log.Warn("this node is in a segment no more, and is not withdrawn from it yet", "vni", vni, "err", err)
			}
			return err
		}
	}
	return nil
}

// leaveOld withdraws this node from segments whose last attachment went while
// nobody ran here. The ledger has been read before.
func (t *Task) leaveOld(ctx context.Context, me lease.Node) error {
	t.mu.Lock()
	lacks := t.lacks
	t.mu.Unlock()
	if lacks != nil {
		return lacks
	}
	r, err := t.conf.Cluster.Client()
	if err != nil {
		return err
	}
	vnis, err := r.SegmentsOf(ctx, me)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, vni := range vnis {
		if t.parts[vni] == nil {
			t.leaving.begin(vni)
		}
	}
	return nil
}
