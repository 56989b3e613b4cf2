// Package ahead asks the wire about the addresses that a pool gives out next,
// before an ADD needs them: one that somebody else answers for goes into
// quarantine, and the ADD is spared the detour. The ADD itself asks all the same,
// but has half a millisecond to listen, and here there is time for those who
// answer late.
//
//   - Questions leave from the parents that plugins have named with their
//     requests of late; a pool of which nothing was asked for a minute is left
//     alone.
//   - Only an answer counts. Who asks for an address at the same time may be
//     another agent that does the same.
//   - Who answers for all that is asked is no user of the addresses, but a proxy:
//     then nothing is done, or the pool would be gone in a moment.
//
// Left out: addresses that rest after a release, which were this node's a moment
// ago; what children of a parent use, whom a question from it does not reach, and
// whom the ledger knows.
package ahead

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/agent/event"
	"github.com/underlay-cni/underlay/pkg/arp"
)

const (
	// few addresses of each range set are asked for.
	few = 4
	// idle is when a pool that nobody asked for is left alone.
	idle = time.Minute
	// fresh is how long an answer counts; with what a round takes no answer is
	// older than 30 s.
	fresh = 25 * time.Second
	// pause is the shortest time between two rounds.
	pause = time.Second
	// tries bounds how often a pool is asked in one round: where some of its next
	// addresses are in use, others come next.
	tries = 4
	// many addresses that one other has at once, and none that it has not, look
	// like a proxy.
	many = 3
)

// Ledger is the agent's.
type Ledger interface {
	// With runs a function on the ledger, or says why there is none.
	With(func(*ledger.Ledger) error) error
}

// Config of an Ahead. All but Events and Ask are required.
type Config struct {
	Ledger Ledger
	Log    *slog.Logger
	// Registry takes the metrics.
	Registry prometheus.Registerer
	// Events hear of conflicts; default: the Log alone.
	Events *event.Log
	// Ask asks for addresses from an interface and returns who answers, one for
	// each address; default: this package's.
	Ask func(ctx context.Context, wire string, addrs []netip.Addr) ([]arp.Conflict, error)
}

// Ahead is a task of the agent.
type Ahead struct {
	conf    Config
	metrics *metrics
	ready   chan struct{}
	wake    chan struct{}

	mu   sync.Mutex
	used map[place]time.Time // when a pool was last drawn on by way of a wire

	// What is below is of Run alone.
	asked map[place]answer
	told  map[string]string // by wire, what was in the way, which is logged once
}

// place is a pool and a wire that it is used on.
type place struct {
	name string // of the pool
	id   string // of a local one; "" of a cluster pool
	wire string
}

// answer is when which addresses were asked for.
type answer struct {
	at    time.Time
	addrs []netip.Addr
}

// New makes an Ahead.
func New(conf Config) (*Ahead, error) {
	if conf.Ledger == nil || conf.Log == nil || conf.Registry == nil {
		return nil, errors.New("ahead: Ledger, Log and Registry are required")
	}
	if conf.Events == nil {
		conf.Events = event.New(event.Config{Slog: conf.Log})
	}
	if conf.Ask == nil {
		conf.Ask = ask
	}
	return &Ahead{
		conf: conf, metrics: newMetrics(conf.Registry), ready: make(chan struct{}), wake: make(chan struct{}, 1),
		used: map[place]time.Time{}, asked: map[place]answer{}, told: map[string]string{},
	}, nil
}

func (a *Ahead) String() string { return "ahead" }

// Ready is closed as soon as it runs.
func (a *Ahead) Ready() <-chan struct{} { return a.ready }

// Used says that a request has been answered. It does not wait.
func (a *Ahead) Used(req ipam.AllocateRequest) {
	p := place{name: req.Cluster, wire: req.Wire}
	if p.name == "" {
		p.name, p.id = req.Pool.Name, req.Pool.ID()
	}
	if req.Wire == "" || req.Cluster == "" && len(req.Pool.Sets) == 0 {
		return
	}
	a.mu.Lock()
	a.used[p] = time.Now()
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Run asks until ctx ends.
func (a *Ahead) Run(ctx context.Context) error {
	close(a.ready)
	timer := time.NewTimer(fresh)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		case <-timer.C:
		}
		for _, p := range a.places() {
			a.visit(ctx, p)
		}
		timer.Reset(fresh)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// places lists what is in use, and forgets what is not.
func (a *Ahead) places() []place {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.used, func(_ place, last time.Time) bool { return time.Since(last) >= idle })
	maps.DeleteFunc(a.asked, func(p place, _ answer) bool { return a.used[p].IsZero() })
	return slices.Collect(maps.Keys(a.used))
}

// visit asks for the next addresses of a pool, until it knows them.
func (a *Ahead) visit(ctx context.Context, p place) {
	var err error
	for more, try := true, 0; more && err == nil && try < tries; try++ {
		more, err = a.round(ctx, p)
	}
	text := ""
	if err != nil && ctx.Err() == nil {
		if text = err.Error(); text != a.told[p.wire] {
			a.conf.Log.Warn("the next addresses are not asked for", "pool", p.name, "err", err)
		}
	}
	a.told[p.wire] = text
}

// round asks once, if there is anything to ask; more is true when others come
// next now.
func (a *Ahead) round(ctx context.Context, p place) (more bool, err error) {
	id, addrs, err := a.candidates(p)
	before := a.asked[p]
	known := func(x netip.Addr) bool { return slices.Contains(before.addrs, x) }
	old := time.Since(before.at) >= fresh
	if err != nil || len(addrs) == 0 || !old && !slices.ContainsFunc(addrs, func(x netip.Addr) bool { return !known(x) }) {
		return false, err
	}
	a.asked[p] = answer{time.Now(), addrs}
	a.metrics.asked.Add(float64(len(addrs)))
	found, err := a.conf.Ask(ctx, p.wire, addrs)
	if err != nil {
		return false, err
	}
	if len(found) >= many && len(found) == len(addrs) && alike(found) {
		return false, fmt.Errorf("interface %q: %s answers for all of them, which is a proxy's doing", p.wire, found[0].MAC)
	}
	for _, c := range found {
		done, err := a.quarantine(id, c)
		if err != nil {
			return false, err
		}
		if !done {
			continue // an ADD was faster, and meets with it
		}
		more = true
		a.metrics.conflicts.Inc()
		a.conf.Events.Add(api.Event{Kind: api.AddressConflict, Pool: p.name, Addr: c.Addr,
			Text: fmt.Sprintf("an address is in use by somebody else, and goes into quarantine before it is given out: %s answers for it on %q", c.MAC, p.wire)})
	}
	return more, nil
}

// alike reports whether one has all of them.
func alike(found []arp.Conflict) bool {
	return !slices.ContainsFunc(found, func(c arp.Conflict) bool { return !bytes.Equal(c.MAC, found[0].MAC) })
}

func (a *Ahead) candidates(p place) (id string, addrs []netip.Addr, err error) {
	err = a.conf.Ledger.With(func(l *ledger.Ledger) error {
		id = p.id
		if id == "" {
			pool, err := l.Cluster(p.name)
			if err != nil {
				return err
			}
			id = pool.ID()
		}
		addrs, err = l.Candidates(id, few)
		return err
	})
	return id, addrs, err
}

func (a *Ahead) quarantine(id string, c arp.Conflict) (done bool, err error) {
	err = a.conf.Ledger.With(func(l *ledger.Ledger) (err error) {
		done, err = l.Quarantine(id, c.Addr, fmt.Sprintf("%s answers for it", c.MAC))
		return err
	})
	return done, err
}
