package segment

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/pkg/flock"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// endedFor is how long what a segment was is remembered: its plugin removes it, or
// whoever has released its last attachment says so by then.
const endedFor = time.Minute

// rounds has the parts be those that the ledger says.
func (t *Task) rounds(ctx context.Context) {
	defer func() {
		var ending sync.WaitGroup
		for _, p := range t.all() {
			ending.Go(p.stop)
		}
		ending.Wait()
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.stirred:
			if !wait(ctx, settle) {
				return
			}
		case <-timer.C:
		}
		next := every
		if err := t.round(ctx); err != nil {
			next = again
		}
		timer.Reset(next)
	}
}

// round starts and ends what is kept of segments.
func (t *Task) round(ctx context.Context) error {
	var now map[int]want
	err := t.conf.Ledger.With(func(l *ledger.Ledger) (err error) {
		now, err = wants(l)
		return err
	})
	if err != nil {
		t.mu.Lock()
		t.lacks = err
		t.mu.Unlock()
		return err // the ledger's own task tells of that
	}
	for _, vni := range slices.Sorted(maps.Keys(now)) {
		w := now[vni]
		t.mu.Lock()
		p := t.parts[vni]
		t.mu.Unlock()
		anew := p == nil
		if p != nil {
			anew = p.set(w)
		} else {
			p = t.start(ctx, vni, w)
			t.mu.Lock()
			t.parts[vni] = p
			delete(t.ended, vni)
			t.mu.Unlock()
			t.leaving.stay(vni)
		}
		if anew {
			if err := p.build(ctx); err != nil {
				t.links.ring() // repairs have it tried again
			}
		}
	}
	for _, p := range t.all() {
		if _, still := now[p.vni]; !still {
			t.end(p)
		}
	}
	t.mu.Lock()
	t.lacks, t.read = nil, true
	t.mu.Unlock()
	t.reguard()
	return t.tidy(ctx)
}

// end stops keeping a segment that this node has no attachment in any more.
func (t *Task) end(p *part) {
	p.stop()
	t.mu.Lock()
	delete(t.parts, p.vni)
	t.ended[p.vni] = ended{p.want, time.Now()}
	t.mu.Unlock()
	if t.conf.Cluster != nil {
		t.leaving.begin(p.vni)
	}
	p.log.Info("this node is in a segment no more")
}

// tidy removes what is left of segments whose last attachment the agent has
// released itself. Those that a plugin has released it has removed.
func (t *Task) tidy(ctx context.Context) error {
	t.mu.Lock()
	maps.DeleteFunc(t.ended, func(_ int, e ended) bool { return time.Since(e.at) > endedFor })
	all := maps.Clone(t.ended)
	if !t.freed {
		all = nil
	}
	t.freed = t.freed && len(all) > 0
	t.mu.Unlock()
	var errs []error
	for _, vni := range slices.Sorted(maps.Keys(all)) {
		err := t.locked(ctx, all[vni].want, vni, func(used bool, err error) error {
			if used || err != nil {
				return err
			}
			return t.host.Remove(vni)
		})
		if err != nil {
			t.log.Warn("a segment that nobody uses is left", "vni", vni, "err", err)
			errs = append(errs, err)
			continue
		}
		t.mu.Lock()
		delete(t.ended, vni)
		t.mu.Unlock()
	}
	if len(errs) == 0 {
		t.mu.Lock()
		t.freed = false
		t.mu.Unlock()
	}
	return errors.Join(errs...)
}

// errUnused is why a segment is not made.
var errUnused = errors.New("no attachment uses the segment any more")

// locked runs f, with whether anybody uses the segment, or why that is not known,
// while no plugin makes or removes it.
func (t *Task) locked(ctx context.Context, w want, vni int, f func(used bool, err error) error) error {
	if t.conf.RunDir != "" {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		for _, name := range []string{w.lock, vxlan.LegName(vni)} { // in this order, as plugins do
			unlock, err := flock.Parent(ctx, t.conf.RunDir, name)
			if err != nil {
				return err
			}
			defer unlock()
		}
	}
	used := false
	err := t.conf.Ledger.With(func(l *ledger.Ledger) error {
		users, err := l.SegmentUsers(vni, 1)
		used = len(users) > 0
		return err
	})
	return f(used, err)
}

// repairs makes what is missing of the segments on this host, when its links or
// addresses may be others.
func (t *Task) repairs(ctx context.Context) {
	timer := time.NewTimer(every)
	defer timer.Stop()
	rest := settle
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.links:
		case <-timer.C:
		}
		if !wait(ctx, rest) {
			return
		}
		select {
		case <-t.links:
		default:
		}
		began, next := time.Now(), every
		for _, p := range t.all() {
			err := p.build(ctx)
			if errors.Is(err, errUnused) {
				t.Stir()
			} else if err != nil {
				next = again
			}
		}
		rest = max(settle, min(maxGap, idle*time.Since(began)))
		timer.Reset(next)
	}
}

// standing is what the registry says of all segments.
type standing struct {
	// me is this node; "" before it is known.
	me   lease.Node
	gone map[lease.Node]bool
	// networks, by VNI, which is no segment then.
	networks map[int]string
}

func (t *Task) stands() standing {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.standing
}

// stand looks what the registry says, when it may say something else.
func (t *Task) stand(ctx context.Context) {
	var was lease.Node // whose old segments have been left
	next := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.conf.Cluster.Members():
		case <-time.After(next):
		}
		next = every
		now, err := t.look(ctx)
		if err == nil {
			t.takeOver(now)
		}
		if err == nil && now.me != was {
			if err = t.leaveOld(ctx, now.me); err == nil {
				was = now.me
			}
		}
		if err != nil {
			next = again // who has the registry tells of that
		}
	}
}

// takeOver has the parts look at what is new in what the registry says.
func (t *Task) takeOver(now standing) {
	t.mu.Lock()
	same := now.me == t.standing.me && maps.Equal(now.gone, t.standing.gone)
	t.standing = now
	t.mu.Unlock()
	if same {
		return
	}
	for _, p := range t.all() {
		p.keep.ring()
		p.publish.ring()
	}
}

// look reads the registry's view.
func (t *Task) look(ctx context.Context) (now standing, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = t.conf.Cluster.Look(ctx, func(v *registry.View, me lease.Node) {
		now = standing{me: me, gone: make(map[lease.Node]bool, len(v.Gone)), networks: make(map[int]string)}
		for n := range v.Gone {
			now.gone[n] = true
		}
		for name, n := range v.Networks {
			if n.Value.VNI != 0 {
				now.networks[n.Value.VNI] = name
			}
		}
	})
	if err != nil {
		return now, fmt.Errorf("look at the registry: %w", err)
	}
	return now, nil
}
