package cluster

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/leases"
)

const (
	// patience is how long an ADD waits for other nodes.
	patience = 2 * time.Second
	// look is when it tries again when it hears nothing, later each time up to
	// seldomLook.
	look       = 50 * time.Millisecond
	seldomLook = 400 * time.Millisecond
	// lasting is how long a flag stays up after its ADD gave up: the ADD comes
	// again, as a runtime has it, and then finds its answer.
	lasting = 10 * time.Second
)

// Allocate answers an ADD from a cluster pool: with try, which is to allocate
// from the ledger, and where that has nothing with what can be leased, claimed
// or had from other nodes in two seconds.
func (c *Cluster) Allocate(ctx context.Context, l *ledger.Ledger, req ipam.AllocateRequest, try func() (ipam.Allocation, error)) (a ipam.Allocation, err error) {
	defer func() {
		if err == nil {
			c.Stir()
		}
	}()
	sticky, err := asksFirst(l, req)
	if err != nil {
		return ipam.Allocation{}, err
	}
	if sticky == ipam.NotSticky {
		if a, err := try(); !helps(err) {
			return a, err
		}
	}
	w := &wait{c: c, l: l, req: req, sticky: sticky, try: try, ask: sticky != ipam.NotSticky}
	a, err = w.run(ctx)
	result := "ok"
	if err != nil {
		result = "error"
	}
	c.metrics.waits.WithLabelValues(result).Inc()
	return a, err
}

// wait is an ADD that needs more than what the ledger has.
type wait struct {
	c      *Cluster
	l      *ledger.Ledger
	req    ipam.AllocateRequest
	sticky ipam.Sticky
	try    func() (ipam.Allocation, error)
	// ask the registry itself first: where an owner was a moment ago the watch
	// may not have told yet.
	ask bool
}

// run takes steps towards an address until there is one.
func (w *wait) run(ctx context.Context) (a ipam.Allocation, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	w.c.waits.begin(w.req.Cluster)
	defer func() { w.c.waits.end(w.req.Cluster, err != nil) }()
	for next := look; ; next = min(2*next, seldomLook) {
		news := w.c.news.Next()
		a, done, why := w.step(ctx)
		if done {
			return a, why
		}
		over := why != nil && !passes(why)
		if !over {
			select {
			case <-news:
			case <-time.After(next):
			case <-ctx.Done():
			}
			over = ctx.Err() != nil
		}
		switch {
		case !over:
		case errors.As(why, new(*leases.HolderError)), errors.As(why, new(*ipam.TakenError)), w.sticky == ipam.StickyStrict && alone(why):
			return ipam.Allocation{}, why
		default:
			a, err := w.try()
			if err == nil || !helps(err) {
				return a, err
			}
			return a, both(err, why, w.c.most(w.req.Cluster))
		}
	}
}

// step is one of run; done is set when there is nothing left to be tried, and
// else why says what is in the way, if anything is.
func (w *wait) step(ctx context.Context) (a ipam.Allocation, done bool, why error) {
	c := w.c
	if !c.mu.wait(ctx) {
		return a, false, &AwayError{Err: errors.New("its last answer takes long")}
	}
	unlock := sync.OnceFunc(c.mu.Unlock)
	defer unlock()
	got, why := w.need(ctx)
	away := alone(why)
	if away {
		// An owner gets what there is here, unless it must be no other than what
		// it may have elsewhere.
		got = w.sticky == ipam.StickySoft || w.sticky == ipam.StickyStrict && w.parkedHere()
	}
	if !got {
		return a, false, why
	}
	if w.sticky == ipam.NotSticky {
		unlock()
	} // else what is here for the owner must not be given away meanwhile
	a, err := w.try()
	if helps(err) {
		return a, false, why
	}
	if err == nil && w.sticky != ipam.NotSticky && !away {
		w.settle(ctx)
	}
	return a, true, err
}

// need takes a step towards an address of each range set; got is true when it
// is worth while to allocate. The caller has the lock.
func (w *wait) need(ctx context.Context) (got bool, err error) {
	c := w.c
	if c.view == nil {
		return false, c.Away()
	}
	p, ok := c.view.Pools[w.req.Cluster]
	if !ok {
		return false, c.unknown(ctx, w.req.Cluster)
	}
	if w.ask {
		if err := c.store.Load().Refresh(ctx, c.view, p.Value.UUID); err != nil {
			return false, unanswered(err)
		}
		w.ask = false
	}
	err = c.withTrader(func(t *leases.Trader) error {
		if err := t.Ledger.Unconfirmed(); err != nil {
			if errors.Is(err, ledger.ErrUnconfirmed) {
				c.Stir()
				return nil
			}
			return err
		}
		// Of a pool that the ledger does not know yet it gives out nothing, however
		// much is leased. The round tells it.
		if known, found, err := poolOf(t.Ledger, w.req.Cluster); err != nil || !found || known.UUID != p.Value.UUID {
			c.Stir()
			return err
		}
		got = true
		for set := range p.Value.Sets {
			// One set after the other: a node has one flag for them.
			if got, err = w.needOf(ctx, t, p.Value, set); err != nil || !got {
				return err
			}
		}
		return nil
	})
	return got && err == nil, unanswered(err)
}

// needOf is need for one range set.
func (w *wait) needOf(ctx context.Context, t *leases.Trader, p record.Pool, set int) (got bool, err error) {
	for _, a := range w.req.Addresses {
		if _, usable := p.Sets[set].Find(a); usable {
			return t.Fetch(ctx, w.c.view, p, a, w.req.Owner)
		}
	}
	return t.Need(ctx, w.c.view, p, set, w.req.Owner)
}

// settle writes into the registry, for an owner that may move on at once, what
// it has. An ADD does not depend on it: the next round does the same.
func (w *wait) settle(ctx context.Context) {
	c := w.c
	if p, ok := c.view.Pools[w.req.Cluster]; ok {
		err := c.withTrader(func(t *leases.Trader) error { return t.Settle(ctx, c.view, p.Value) })
		if err != nil {
			c.log.Warn("an owner is not in the registry yet", "pool", w.req.Cluster, "err", err)
		}
	}
}

// alone reports whether the node has to do with what it leases: the registry is
// out of reach, or nobody may trade in it.
func alone(why error) bool {
	return errors.As(why, new(*AwayError)) || errors.As(why, new(*leases.StandingError))
}

// parkedHere reports whether an owner's address rests on this node.
func (w *wait) parkedHere() bool {
	p, known, err := poolOf(w.l, w.req.Cluster)
	if !known || err != nil {
		return false
	}
	spares, err := w.l.Spares(p.UUID, math.MaxInt)
	return err == nil && slices.ContainsFunc(spares, func(s ledger.Spare) bool { return s.Owner == w.req.Owner })
}

// both says what the ledger has, and then what is known of the cluster.
func both(err error, more ...error) error {
	for _, m := range more {
		if m != nil {
			err = &bothError{err, m}
		}
	}
	return err
}

// bothError is of the kind of the first, and says the second as well.
type bothError struct{ first, more error }

func (e *bothError) Error() string   { return e.first.Error() + "; " + e.more.Error() }
func (e *bothError) Unwrap() []error { return []error{e.first, e.more} }

// CNICode asks the runtime to try again later.
func (e *bothError) CNICode() uint { return ipam.CodeTryAgainLater }

// helps reports whether another node, or the registry, may have what an ADD
// did not get.
func helps(err error) bool {
	var full *ipam.ExhaustedError
	var field *ipam.FieldError
	var taken *ipam.TakenError
	switch {
	case errors.Is(err, ledger.ErrUnconfirmed):
		return true
	case errors.As(err, &taken):
		return taken.State == ipam.Elsewhere
	case errors.As(err, &full):
		return full.Cluster
	case errors.As(err, &field) && field.Place == "ipam.pool" && field.Code == ipam.CodeTryAgainLater:
		return true // made a moment ago, or not at all
	}
	return false
}

// passes reports whether it may be better in a moment.
func passes(err error) bool {
	var holder *leases.HolderError
	if errors.Is(err, registry.ErrDeleting) {
		return false
	}
	// A pool that is not open is being made or changed, which takes no time.
	return errors.As(err, &holder) || errors.As(err, new(*registry.QuotaError)) || errors.Is(err, registry.ErrClosed) || errors.Is(err, registry.ErrOld) || errors.Is(err, registry.ErrMoved)
}

// asksFirst returns how sticky the pool is if the owner may have an address in
// it that is not on this node, so that the registry is asked before the ledger.
func asksFirst(l *ledger.Ledger, req ipam.AllocateRequest) (ipam.Sticky, error) {
	if req.Owner == "" || len(req.Addresses) > 0 {
		return ipam.NotSticky, nil
	}
	_, _, known, err := l.Attachment(req.Attachment)
	if err != nil || known {
		return ipam.NotSticky, err
	}
	p, _, err := poolOf(l, req.Cluster)
	return p.Sticky, err
}

func poolOf(l *ledger.Ledger, name string) (ipam.Pool, bool, error) {
	pools, err := l.Pools()
	i := slices.IndexFunc(pools, func(p ipam.Pool) bool { return p.UUID != "" && p.Name == name })
	if i < 0 || err != nil {
		return ipam.Pool{}, false, err
	}
	return pools[i], true, nil
}

// waits counts the ADDs that wait for an address, by pool.
type waits struct {
	mu sync.Mutex
	n  map[string]int
	// left is when the last ADD gave up.
	left map[string]time.Time
}

func (w *waits) begin(pool string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n == nil {
		w.n, w.left = map[string]int{}, map[string]time.Time{}
	}
	w.n[pool]++
}

func (w *waits) end(pool string, gaveUp bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n[pool]--; w.n[pool] == 0 {
		delete(w.n, pool)
	}
	delete(w.left, pool)
	if gaveUp {
		w.left[pool] = time.Now()
	}
}

// any reports whether an ADD waits, or did so a moment ago and got nothing.
func (w *waits) any(pool string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	left, gaveUp := w.left[pool]
	return w.n[pool] > 0 || gaveUp && time.Since(left) < lasting
}

// unanswered makes what is none of the errors for people one of a registry that
// does not answer.
func unanswered(err error) error {
	var coded interface{ CNICode() uint }
	if err == nil || errors.As(err, &coded) || passes(err) || errors.Is(err, registry.ErrDeleting) {
		return err
	}
	return &AwayError{Err: err}
}

// unknown looks in the registry itself for a pool that the view does not have. It
// reads no more than that: such an ADD comes again and again.
func (c *Cluster) unknown(ctx context.Context, name string) error {
	item, err := c.store.Load().Store.Get(ctx, record.PoolFolder+name)
	if err != nil {
		return &AwayError{Err: err}
	}
	if item.Rev == 0 {
		return &ipam.FieldError{Place: "ipam.pool", Code: ipam.CodeTryAgainLater,
			Msg: fmt.Sprintf("the registry knows no pool %q; see: underlayctl pool list", name)}
	}
	if _, why := record.DecodePool(item.Value); why != nil {
		return &ipam.FieldError{Place: "ipam.pool", Code: ipam.CodeTryAgainLater,
			Msg: fmt.Sprintf("this version cannot read what the registry says of pool %q: %v; see: underlayctl registry status", name, why)}
	}
	return nil // the watch is about to tell of it
}

// most says who leases most of a pool that is used up; nil where nobody knows.
func (c *Cluster) most(pool string) error {
	ctx, cancel := context.WithTimeout(context.Background(), look)
	defer cancel()
	if !c.mu.wait(ctx) {
		return nil
	}
	defer c.mu.Unlock()
	if c.view == nil {
		return nil
	}
	p, ok := c.view.Pools[pool]
	if !ok {
		return nil
	}
	counts, total := map[string]int{}, 0
	for _, s := range c.view.Blocks[p.Value.UUID] {
		for n, count := range p.Value.Nodes(s.Block) {
			name := c.view.Nodes[n].Value.Name
			if name == "" {
				name = string(n)
			}
			counts[name] += count
			total += count
		}
	}
	name, best := "", 0
	for n, count := range counts {
		if count > best || count == best && n < name {
			name, best = n, count
		}
	}
	if best == 0 {
		return nil
	}
	return fmt.Errorf("in the cluster %d nodes lease %d addresses of it, most of them node %q with %d", len(counts), total, name, best)
}
