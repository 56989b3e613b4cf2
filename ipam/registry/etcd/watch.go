package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
)

const (
	// rush is how many answers within a second are too many. etcd tells each
	// watcher of each change in a message of its own as long as the watcher keeps
	// up: when a thousand agents start, each makes some changes, that is millions.
	rush = 20
	// rest is for how long a watch is given up then, on average. What has come
	// meanwhile is told in one message.
	rest = 300 * time.Millisecond
)

// errRush ends a watch that is to go on after a rest.
var errRush = errors.New("too many answers")

// Watch implements registry.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after lease.Rev, f func(registry.Batch) error) error {
	w := watcher{Store: s, prefix: prefix, after: after, f: f, check: time.NewTicker(s.check)}
	defer w.check.Stop()
	for {
		if err := w.watch(ctx); !errors.Is(err, errRush) {
			return err
		}
		select {
		case <-time.After(rest/2 + rand.N(rest)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

type watcher struct {
	*Store
	prefix string
	after  lease.Rev // told up to here
	f      func(registry.Batch) error
	check  *time.Ticker
	rested bool // the next answer has what came during a rest
	// answers since.
	since   time.Time
	answers int
}

// watch is Watch until it is time for a rest.
func (w *watcher) watch(ctx context.Context) error {
	// A member that has lost its leader breaks the watch off, instead of
	// staying silent.
	watching, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	responses := w.client.Watch(watching, w.prefix, clientv3.WithPrefix(), clientv3.WithRev(int64(w.after)+1))
	for {
		select {
		case r, ok := <-responses:
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case !ok:
				return fmt.Errorf("etcd: watch %s: it was closed", w.prefix)
			case errors.Is(r.Err(), rpctypes.ErrCompacted):
				return registry.ErrCompacted
			case r.Err() != nil:
				return fmt.Errorf("etcd: watch %s: %w", w.prefix, r.Err())
			case len(r.Events) == 0:
				continue
			}
			if err := w.tell(r.Events); err != nil {
				return err
			}
		case <-w.check.C:
			l, err := w.List(ctx, w.prefix+"\x00") // no key is below this
			if err == nil && l.Rev < w.after {
				return ErrWentBack
			}
			// A cluster that does not answer ends the watch by itself.
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tell hands on what an answer has.
func (w *watcher) tell(events []*clientv3.Event) error {
	b := registry.Batch{}
	for _, e := range events {
		b.Items = append(b.Items, changed(e))
		b.Rev = lease.Rev(e.Kv.ModRevision)
	}
	if err := w.f(b); err != nil {
		return err
	}
	w.after = max(w.after, b.Rev)
	if now := time.Now(); now.Sub(w.since) > time.Second {
		w.since, w.answers = now, 0
	}
	w.answers++
	again := w.rested && len(events) > rush
	w.rested = again || w.answers > rush
	if w.rested {
		return errRush
	}
	return nil
}

func changed(e *clientv3.Event) registry.Item {
	i := item(e.Kv)
	if e.Type == mvccpb.DELETE {
		i.Value = nil
	} else if i.Value == nil {
		i.Value = []byte{}
	}
	return i
}
