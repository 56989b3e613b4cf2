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
	// rush is how many answers within a second are too many, or changes in one
	// answer. etcd tells each watcher of each change in a message of its own as
	// long as the watcher keeps up: when a thousand agents start, each makes some
	// changes, that is millions.
	rush = 20
	// calm is how few changes a second end a rush.
	calm = 8
	// each is for how long a watch is given up in a rush, on average, for each
	// change that comes in a second, from shortest to longest. What has come
	// meanwhile is told in one message. The more there is, the more is told at
	// once: what a message costs, all watchers together pay, and what they do
	// meanwhile is slower the later they hear.
	each     = 10 * time.Millisecond
	shortest = 200 * time.Millisecond
	longest  = time.Second
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
		w.began = time.Now()
		select {
		case <-time.After(w.rest/2 + rand.N(w.rest)):
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
	// answers since.
	since   time.Time
	answers int
	// rest is how long the next one is; 0 without a rush. The last began at began.
	rest  time.Duration
	began time.Time
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
			rushed := w.rushed(len(r.Events))
			if rushed {
				cancel() // or more comes one by one while this is told
			}
			if err := w.tell(r.Events); err != nil {
				return err
			}
			if rushed {
				return errRush
			}
		case <-w.check.C:
			l, err := w.List(ctx, w.prefix+"\x00") // no key is below this
			if err == nil && l.Rev < w.after {
				return registry.ErrWentBack
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
	return nil
}

// rushed reports, of an answer with some changes, whether it is time for a rest.
func (w *watcher) rushed(changes int) bool {
	now, rate := time.Now(), 0.0
	if w.rest > 0 {
		rate = float64(changes) / now.Sub(w.began).Seconds()
	} else if now.Sub(w.since) > time.Second {
		w.since, w.answers = now, 0
	}
	w.answers++
	if rate <= calm && w.answers <= rush && changes <= rush {
		w.rest = 0
		return false
	}
	w.answers = 0
	w.rest = min(max(time.Duration(rate*float64(each)), shortest), longest)
	return true
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
