package cluster

import (
	"context"

	"github.com/underlay-cni/underlay/ipam/lease"
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

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}
