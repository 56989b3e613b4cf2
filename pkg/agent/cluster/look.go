package cluster

import (
	"context"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
)

// Stir has a round done soon. Whoever changes what is held of a cluster pool
// calls it.
func (c *Cluster) Stir() { ring(c.dirty) }

// Peers has a value when Look may show other networks, nodes or owners of blocks
// than before.
func (c *Cluster) Peers() <-chan struct{} { return c.peers }

// Members has a value when Look may show other networks or nodes than before. Who
// takes it leaves Peers' to others.
func (c *Cluster) Members() <-chan struct{} { return c.members }

// Look calls f with what the registry holds, and which node this is. F keeps
// nothing of it and changes nothing. While the registry is not followed, the
// error is that of Away.
func (c *Cluster) Look(ctx context.Context, f func(*registry.View, lease.Node)) error {
	if !c.mu.wait(ctx) {
		return context.Cause(ctx)
	}
	defer c.mu.Unlock()
	if c.view == nil {
		return c.Away()
	}
	f(c.view, c.node.Node)
	return nil
}

// spares reports whether this node may have something to give of one of some
// pools. Most nodes have not, and where many ask at once each flag would be a
// round for all.
func (c *Cluster) spares(pools map[string]bool) (some bool) {
	for pool := range pools {
		err := c.conf.Ledger.With(func(l *ledger.Ledger) error {
			spares, err := l.Spares(pool, 1)
			some = some || len(spares) > 0
			return err
		})
		some = some || err != nil // the round says what is wrong
	}
	return some
}

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}
