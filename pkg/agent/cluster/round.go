package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/agent/leases"
)

// rounds does one for each change, and from time to time without.
func (c *Cluster) rounds(ctx context.Context, started func()) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.dirty:
		case <-timer.C:
		}
		wait, err := c.round(ctx, started)
		if err != nil {
			return err
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// round does what there is to do; wait is when to come back at the latest. An
// error ends the node's stay in the cluster, and it joins anew.
func (c *Cluster) round(ctx context.Context, started func()) (wait time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view == nil {
		return every, nil
	}
	ctx, cancel := context.WithTimeout(ctx, roundTime)
	defer cancel()
	err = c.withTrader(func(t *leases.Trader) error {
		wait, err = t.Round(ctx, c.view)
		if err == nil && c.fresh {
			err = prune(t.Ledger, c.view)
			c.fresh = err != nil
		}
		return errors.Join(err, c.lowerLocked(ctx, t))
	})
	var standing *leases.StandingError
	switch {
	case err == nil:
		c.metrics.rounds.WithLabelValues("ok").Inc()
		started()
		c.turnLocked(connected, nil)
	case errors.As(err, &standing) && standing.Standing == lease.Removed:
		return 0, errors.Join(err, c.renew())
	default:
		c.metrics.rounds.WithLabelValues("error").Inc()
		wait = time.Second
	}
	if standing != nil && (standing.Standing == lease.Frozen || standing.Standing == lease.Freezing) {
		c.turnLocked(frozen, err)
	}
	c.tellLocked("a round is not done", err)
	err = errors.Join(c.enrollLocked(ctx), c.sweepLocked(ctx))
	if err != nil {
		c.log.Warn("registry", "err", err)
		wait = time.Second
	}
	if wait == 0 || wait > every {
		wait = every
	}
	c.news.Ring()
	return wait, nil
}

// open connects to the store, as soon as that answers.
func (c *Cluster) open(ctx context.Context) (store registry.Store, failed <-chan error, end func(), err error) {
	for {
		store, failed, end, err = c.conf.Open(ctx)
		if !errors.Is(err, registry.ErrUnreachable) {
			return store, failed, end, err
		}
		c.lose(err)
		select {
		case <-ctx.Done():
			return nil, nil, nil, context.Cause(ctx)
		case <-time.After(again):
		}
	}
}

// errOther is why a node joins anew.
var errOther = errors.New("the registry is not the one that was followed; was it restored?")

// audit looks whether the registry is still the one that is followed. A watch
// that goes on from a revision which a restored registry has not reached yet, or
// has gone past by other changes, says nothing. The record of the cluster changes
// when that is noticed by anybody, and when an operator goes on from there.
func (c *Cluster) audit(ctx context.Context, r registry.Registry) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(every/2 + rand.N(every/2)):
		}
		item, err := r.Store.Get(ctx, record.ClusterKey)
		if err != nil {
			continue // the watch hears of that
		}
		c.mu.Lock()
		v := c.view
		other := v != nil && item.Rev <= v.Rev && item.Rev != v.Cluster.Rev && v.Unread[record.ClusterKey] == nil
		c.mu.Unlock()
		if other {
			return errOther
		}
	}
}

// withTrader runs f with the trader of the ledger that is open now.
func (c *Cluster) withTrader(f func(*leases.Trader) error) error {
	return c.conf.Ledger.With(func(l *ledger.Ledger) error {
		if c.trader == nil || c.trader.Ledger != l {
			c.trader = &leases.Trader{Ledger: l, Registry: *c.store.Load(), Session: c.session, Now: c.conf.Now, Learned: c.tellLearned,
				Lost: func(p record.Pool, addrs []netip.Addr) { c.lostAddresses(l, p, addrs) }}
			if c.conf.Loan != nil {
				c.trader.Loan = c.conf.Loan()
			}
		}
		return f(c.trader)
	})
}

func (c *Cluster) lostAddresses(l *ledger.Ledger, p record.Pool, addrs []netip.Addr) {
	c.metrics.lost.Add(float64(len(addrs)))
	for _, a := range addrs {
		r, _, err := l.Record(a)
		if err != nil { // it is told all the same
			c.log.Warn("who has an address is not known", "addr", a, "err", err)
		}
		r.Pool, r.Address = p.Name, netip.PrefixFrom(a, a.BitLen())
		c.conf.Events.Add(lost(r, "an address is in use on this node, and another node's by the registry"))
	}
}

// prune forgets, after a list, blocks of which nothing is left.
func prune(l *ledger.Ledger, v *registry.View) error {
	for _, p := range v.Pools {
		if err := l.Prune(p.Value.UUID, v.Rev); err != nil {
			return err
		}
	}
	return nil
}

// lowerLocked takes down flags for which no ADD waits any more, and what stands in
// their place and is nobody's.
func (c *Cluster) lowerLocked(ctx context.Context, t *leases.Trader) error {
	for key, why := range c.view.Unread {
		if !errors.Is(why, registry.ErrUnbound) {
			continue
		}
		if err := t.Registry.Drop(ctx, key); err != nil {
			return err
		}
	}
	for pool, wants := range c.view.Wants {
		if _, up := wants[c.node.Node]; !up {
			continue
		}
		// The flag outlives its pool.
		if p, known := c.view.Pool(pool); known && c.waits.any(p.Value.Name) {
			continue
		}
		if err := t.LetGo(ctx, c.view, pool); err != nil {
			return err
		}
	}
	return nil
}

// enrollLocked says that this node has other addresses than before, and that it
// has asserted what it has in the present epoch, once its ledger knows that
// epoch.
func (c *Cluster) enrollLocked(ctx context.Context) error {
	var past lease.Past
	err := c.conf.Ledger.With(func(l *ledger.Ledger) (err error) {
		past, err = l.Past()
		return err
	})
	known := c.view.Cluster.Value
	if err != nil {
		return err
	}
	n := c.node
	if past.Cluster == known.ID && past.Epoch == known.Epoch {
		n.Asserted = max(n.Asserted, past.Epoch.Number)
	}
	// One that has none for a moment is still reached best at those it had.
	if addrs := c.conf.Addresses(); len(addrs) > 0 {
		n.Addresses = addrs
	}
	if n.Asserted == c.node.Asserted && slices.Equal(n.Addresses, c.node.Addresses) {
		return nil
	}
	if err := c.store.Load().Enroll(ctx, n); err != nil {
		return err
	}
	c.node = n
	return nil
}

// sweepLocked frees what removed nodes had, when it has rested. All nodes do
// so, one after the other, until one has.
func (c *Cluster) sweepLocked(ctx context.Context) error {
	if len(c.view.Gone) == 0 {
		return nil
	}
	named := named(c.view)
	for n, g := range c.view.Gone {
		if !named[n] {
			delete(c.gone, n)
			continue
		}
		first, known := c.gone[n]
		if !known {
			first = c.conf.Now()
			c.gone[n] = first
		}
		if c.conf.Now().Sub(first) < g.Value.Rest+c.turn() {
			continue
		}
		left, err := c.store.Load().Sweep(ctx, n)
		if err != nil && !errors.Is(err, registry.ErrMoved) {
			return err
		}
		c.conf.Events.Add(api.Event{Kind: api.NodeSwept, Node: who(g.Value.Name, n), Text: fmt.Sprintf("freed what a removed node had; of %d blocks something is left", left)})
		if left > 0 {
			// A record that cannot be read stays until somebody mends it.
			c.gone[n] = c.conf.Now().Add(sweepAgain - g.Value.Rest)
		}
	}
	return nil
}

// turn is how long this node leaves it to others to free something.
func (c *Cluster) turn() time.Duration {
	before := 0
	for n := range c.view.Nodes {
		if _, gone := c.view.Gone[n]; !gone && n < c.node.Node {
			before++
		}
	}
	return min(time.Duration(before)*2*time.Second, time.Minute)
}

// named are the nodes that anything names. Tombstones stay for ever, so that
// there may be many to look for.
func named(v *registry.View) map[lease.Node]bool {
	named := map[lease.Node]bool{}
	for n := range v.Nodes {
		named[n] = true
	}
	for _, blocks := range v.Blocks {
		for _, s := range blocks {
			named[s.Block.Owner] = true
			for _, e := range s.Block.Given {
				named[e.Node] = true
			}
		}
	}
	return named
}

// some is a time that is another one on each node, from half of d on.
func some(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }
