package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
)

// session is a lease of etcd's, which has nothing to do with leases of blocks.
type session struct {
	store *Store
	id    clientv3.LeaseID
	ctx   context.Context
	end   context.CancelCauseFunc
}

// Bind implements registry.Store. The end of ctx ends the renewals. ttl is in
// whole seconds, and etcd rounds it up to its shortest.
func (s *Store) Bind(ctx context.Context, key string, value []byte, ttl time.Duration, takeOver func([]byte) bool) (_ registry.Session, err error) {
	short, cancel := context.WithTimeout(ctx, patience*s.timeout)
	defer cancel()
	read, err := s.client.Get(short, key)
	if err != nil {
		return nil, fmt.Errorf("etcd: get %s: %w", key, err)
	}
	var rev lease.Rev
	var before clientv3.LeaseID
	if len(read.Kvs) > 0 {
		old := read.Kvs[0]
		if old.Lease != 0 && !takeOver(old.Value) {
			return nil, registry.ErrTaken
		}
		rev, before = lease.Rev(old.ModRevision), clientv3.LeaseID(old.Lease)
	}
	granted, err := s.client.Grant(short, int64((ttl+time.Second-1)/time.Second))
	if err != nil {
		return nil, fmt.Errorf("etcd: open a session: %w", err)
	}
	n := &session{store: s, id: granted.ID}
	defer func() {
		if err != nil {
			_ = n.revoke(context.WithoutCancel(ctx)) // or it runs out by itself
		}
	}()
	a := s.change(short, key, rev, clientv3.OpPut(key, string(value), clientv3.WithLease(n.id)))
	switch a.Outcome {
	case registry.Refused:
		return nil, registry.ErrTaken // by somebody who was faster
	case registry.Unknown:
		return nil, a.Err
	}
	if before != 0 {
		// What else the old session had goes with it. Its key is ours already.
		if _, err := s.client.Revoke(short, before); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return nil, fmt.Errorf("etcd: end the session before: %w", err)
		}
	}
	n.ctx, n.end = context.WithCancelCause(ctx)
	renewals, err := s.client.KeepAlive(n.ctx, n.id)
	if err != nil {
		n.end(registry.ErrSessionLost)
		return nil, fmt.Errorf("etcd: renew a session: %w", err)
	}
	go n.guard(key, a.Rev, renewals)
	return n, nil
}

// guard ends the session when it is no longer renewed, or when its key is
// another's. It ends with the session's context.
func (n *session) guard(key string, rev lease.Rev, renewals <-chan *clientv3.LeaseKeepAliveResponse) {
	changes := n.store.client.Watch(clientv3.WithRequireLeader(n.ctx), key, clientv3.WithRev(int64(rev)+1))
	for {
		select {
		case _, ok := <-renewals:
			if !ok {
				n.end(registry.ErrSessionLost)
				return
			}
		case r, ok := <-changes:
			switch {
			case ok && len(r.Events) == 0 && r.Err() == nil:
			case len(r.Events) > 0:
				n.end(registry.ErrSessionLost)
				return
			default:
				// The watch broke: if the session is still alive, the key is
				// there and of this revision.
				item, err := n.store.Get(n.ctx, key)
				if err == nil && item.Rev != rev {
					n.end(registry.ErrSessionLost)
					return
				}
				select {
				case <-time.After(time.Second):
				case <-n.ctx.Done():
				}
				changes = n.store.client.Watch(clientv3.WithRequireLeader(n.ctx), key, clientv3.WithRev(int64(rev)+1))
			}
		case <-n.ctx.Done():
			return
		}
	}
}

// Context implements registry.Session.
func (n *session) Context() context.Context { return n.ctx }

// Swap implements registry.Session.
func (n *session) Swap(ctx context.Context, key string, rev lease.Rev, value []byte) registry.Answer {
	if n.ctx.Err() != nil {
		return registry.Answer{Outcome: registry.Refused, Err: context.Cause(n.ctx)}
	}
	return n.store.change(ctx, key, rev, clientv3.OpPut(key, string(value), clientv3.WithLease(n.id)))
}

// Close implements registry.Session.
func (n *session) Close(ctx context.Context) error {
	n.end(context.Canceled)
	if err := n.revoke(ctx); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("etcd: close a session: %w", err)
	}
	return nil
}

func (n *session) revoke(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.store.timeout)
	defer cancel()
	_, err := n.store.client.Revoke(ctx, n.id)
	return err
}
