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
}

// begin has this node be withdrawn from a segment.
func (l *leaving) begin(vni int) {
	l.mu.Lock()
	l.vnis[vni] = true
	l.mu.Unlock()
	l.ring()
}

// stay says that it is in it again. A withdrawal that is under way is made up for
// by who follows the segment.
func (l *leaving) stay(vni int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.vnis, vni)
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
		if err := r.DeleteSegment(ctx, vni, me); err != nil {
			if ctx.Err() == nil {
				t.log.Warn("this node is in a segment no more, and is not withdrawn from it yet", "vni", vni, "err", err)
			}
			return err
		}
		t.leaving.stay(vni)
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
