package segment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// part is this node's part in one segment.
type part struct {
	t    *Task
	vni  int
	log  *slog.Logger
	stop func() // and wait
	// fresh: it was not there when the agent started.
	fresh bool

	// There may be more to keep, to publish, and to clean up.
	keep, publish, clean bell

	building sync.Mutex // held while the segment is made

	mu      sync.Mutex
	want    want
	built   vxlan.Segment // how it was made last; the zero value is never
	entries Entries
	members *registry.Members // nil before the first list
	plan    *plan             // that has been applied
	// Why not all is as it should be: of the devices, the registry's list, and
	// this node's own record.
	buildErr, listErr, putErr error
	published                 bool
	told                      map[string]string // what is wrong, which is logged once
}

// start has a segment be kept.
func (t *Task) start(ctx context.Context, vni int, w want) *part {
	p := &part{
		t: t, vni: vni, log: t.log.With("vni", vni), want: w, keep: newBell(), publish: newBell(), clean: newBell(),
		told: make(map[string]string), buildErr: errPending, listErr: errPending, putErr: errPending,
	}
	t.mu.Lock()
	p.fresh = t.read
	t.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	loops := []func(context.Context){}
	if t.conf.Cluster != nil {
		// Without a registry nobody has said what entries there are to be.
		loops = append(loops, p.keeps, p.follows, p.publishes, p.cleans)
	}
	for _, loop := range loops {
		running.Go(func() { loop(ctx) })
	}
	p.stop = func() {
		cancel()
		running.Wait()
	}
	p.log.Info("this node is in a segment", "parent", w.parent, "port", w.port)
	return p
}

var errPending = errors.New("not done yet")

// settled reports whether the entries have been set once, or nobody will.
func (p *part) settled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.plan != nil || p.t.conf.Cluster == nil && p.buildErr != errPending
}

// set takes over what the ledger says.
func (p *part) set(w want) (anew bool) {
	p.mu.Lock()
	before := p.want
	p.want = w
	p.mu.Unlock()
	if !w.equal(before) {
		p.keep.ring()
		p.publish.ring()
	}
	return w.parent != before.parent || w.port != before.port
}

// build has the devices be there, if the segment is still this node's. Plugins that
// make or remove it are kept out.
func (p *part) build(ctx context.Context) error {
	p.building.Lock()
	defer p.building.Unlock()
	p.mu.Lock()
	w, before := p.want, p.built
	p.mu.Unlock()
	var built vxlan.Segment
	err := p.t.locked(ctx, w, p.vni, func(used bool, unknown error) (err error) {
		// While nobody can tell, it is kept.
		if !used && unknown == nil {
			return errUnused
		}
		built, err = p.t.host.Build(p.vni, w.port, w.parent)
		return err
	})
	p.mu.Lock()
	p.buildErr = err
	if err == nil {
		p.built = built
	}
	p.mu.Unlock()
	switch {
	case err != nil && ctx.Err() == nil && !errors.Is(err, errUnused):
		p.tell("a segment is not as it has to be on this host", err)
	case err == nil:
		p.tell("a segment is not as it has to be on this host", nil)
		if !reflect.DeepEqual(before, built) {
			p.keep.ring()
			p.publish.ring()
		}
	}
	return err
}

// tell logs what is wrong, once, and that it is not any more.
func (p *part) tell(what string, err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	p.mu.Lock()
	before := p.told[what]
	p.told[what] = now
	p.mu.Unlock()
	switch {
	case now == before:
	case err != nil:
		p.log.Warn(what, "err", err)
	default:
		p.log.Info("no more: " + what)
	}
}

// own is this node's record, as it is to be; ok is false while nobody knows.
func (p *part) own() (s record.Segment, ok bool) {
	stands := p.t.stands()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.built.VNI == 0 || stands.me == "" {
		return s, false
	}
	return record.Segment{
		Version: record.Version, VNI: p.vni, Node: stands.me, Name: p.t.conf.Node, VTEP: p.built.Local, Port: p.built.Port, Endpoints: p.want.endpoints,
	}, true
}

// keeps has the entries be as they follow from what is known.
func (p *part) keeps(ctx context.Context) {
	entries, err := p.t.host.Entries(p.vni)
	for ; err != nil; entries, err = p.t.host.Entries(p.vni) {
		p.tell("the entries of a segment cannot be kept", err)
		if !wait(ctx, again) {
			return
		}
	}
	p.tell("the entries of a segment cannot be kept", nil)
	p.mu.Lock()
	p.entries = entries
	p.mu.Unlock()
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			err := entries.Run(ctx)
			if ctx.Err() == nil {
				p.tell("the entries of a segment are not watched", err)
				wait(ctx, again)
			}
		}
	})
	defer func() {
		running.Wait()
		_ = entries.Close()
	}()
	rest := settle
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.keep:
		}
		if !wait(ctx, rest) {
			return
		}
		// What is rung for from here on is looked at once more.
		select {
		case <-p.keep:
		default:
		}
		began := time.Now()
		p.keepOnce(ctx, entries)
		rest = max(settle, min(maxGap, idle*time.Since(began)))
	}
}

func (p *part) keepOnce(ctx context.Context, entries Entries) {
	own, ok := p.own()
	gone := p.t.stands().gone
	p.mu.Lock()
	members := p.members
	p.mu.Unlock()
	if !ok || members == nil {
		return
	}
	plan := makePlan(own, members, gone)
	if len(plan.Gone) > 0 {
		p.clean.ring()
	}
	_ = entries.Apply(ctx, plan.wants(p.vni)) // what became of each is in the status
	p.mu.Lock()
	first := p.plan == nil
	p.plan = plan
	p.mu.Unlock()
	p.t.reguard()
	if err := entries.Err(); ctx.Err() == nil {
		p.tell("the entries of a segment are not known", err)
	}
	if first {
		p.log.Info("the endpoints of a segment are known", "nodes", len(plan.Nodes), "endpoints", len(plan.Endpoints))
	}
}

// guarded says whom anything is taken from at the UDP port of the segment.
func (p *part) guarded() (port int, known *plan) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.want.port, p.plan
}

// follows has the members be what the registry says.
func (p *part) follows(ctx context.Context) {
	for failures := 1; ; failures++ {
		r, err := p.t.conf.Cluster.Client()
		if err == nil {
			_ = r.FollowSegment(ctx, p.vni, p.linger, func(m *registry.Members) error { p.seen(m); return nil })
		} else {
			p.away(err)
		}
		if !wait(ctx, backoff(failures)) {
			return
		}
	}
}

// linger waits before the segment is listed again.
func (p *part) linger(ctx context.Context, err error, failures int) error {
	if failures > 1 || !errors.Is(err, registry.ErrCompacted) {
		p.away(err)
	}
	if !wait(ctx, backoff(failures)) {
		return context.Cause(ctx)
	}
	return nil
}

func (p *part) away(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listErr = err
}

func (p *part) seen(m *registry.Members) {
	p.mu.Lock()
	p.members, p.listErr = m, nil
	p.mu.Unlock()
	p.keep.ring()
	p.publish.ring()
	var odd error
	for _, key := range slices.Sorted(maps.Keys(m.Unread)) {
		odd = errors.Join(odd, fmt.Errorf("%s: %w", key, m.Unread[key]))
	}
	p.tell("records of a segment are skipped; what they said before holds", odd)
}

// publishes has this node's record be as it has to be.
func (p *part) publishes(ctx context.Context) {
	failures := 0
	for {
		var retry <-chan time.Time
		if failures > 0 {
			retry = time.After(backoff(failures))
		}
		select {
		case <-ctx.Done():
			return
		case <-p.publish:
		case <-retry:
		}
		began := time.Now()
		if err := p.publishOnce(ctx); err != nil {
			failures++
		} else {
			failures = 0
		}
		if !wait(ctx, min(maxGap, idle*time.Since(began))) {
			return
		}
	}
}

func (p *part) publishOnce(ctx context.Context) error {
	own, ok := p.own()
	if !ok || p.t.stands().gone[own.Node] {
		return nil
	}
	p.mu.Lock()
	members := p.members
	p.mu.Unlock()
	told := false
	if members != nil {
		there, known := members.Nodes[own.Node]
		_, unread := members.Unread[record.SegmentKey(p.vni, own.Node)]
		told = known && !unread && bytes.Equal(record.EncodeSegment(there.Segment), record.EncodeSegment(own))
	}
	var err error
	if !told {
		var r registry.Registry
		if err = p.t.leaving.idle(ctx, p.vni); err == nil {
			r, err = p.t.conf.Cluster.Client()
		}
		if err == nil {
			err = r.PutSegment(ctx, own)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	p.mu.Lock()
	p.putErr, p.published = err, p.published || err == nil
	p.mu.Unlock()
	p.tell("this node's endpoints are not published", err)
	return err
}

// cleans removes the records of nodes that were removed. All nodes do so, each
// after another time.
func (p *part) cleans(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.clean:
		}
		if !wait(ctx, some(2*seldom)) {
			return
		}
		p.mu.Lock()
		var left []lease.Node
		if p.plan != nil && p.members != nil {
			for _, n := range p.plan.Gone {
				if _, there := p.members.Nodes[n]; there {
					left = append(left, n)
				}
			}
		}
		p.mu.Unlock()
		r, err := p.t.conf.Cluster.Client()
		for i := 0; i < len(left) && err == nil; i++ {
			err = r.DeleteSegment(ctx, p.vni, left[i])
		}
		if err != nil {
			p.clean.ring() // after another while
		}
	}
}
