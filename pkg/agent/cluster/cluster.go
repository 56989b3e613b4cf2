// Package cluster is the agent's task that makes the node one of a cluster: it
// joins the registry, follows it, and has package leases do what is to be done,
// for each change and in between.
//
//   - The node says who it is before anything else, and trades only as long as
//     its session is the only one on its ledger.
//   - While the registry cannot be reached, what the node leases stays its own;
//     only what would change that waits.
//   - One goroutine at a time reads or changes the view and trades: an ADD that
//     needs an address, or the round.
//
// Left out: what is traded, and when (package leases).
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/bell"
	"github.com/underlay-cni/underlay/pkg/agent/event"
	"github.com/underlay-cni/underlay/pkg/agent/leases"
	"github.com/underlay-cni/underlay/pkg/fault"
)

const (
	// sessionTTL is how long a session lasts without a sign of life. Nothing is
	// taken from a node whose session ended.
	sessionTTL = 15 * time.Second
	// readyAfter is when the agent counts as started without a registry: what
	// starts after it on the node must not wait for other nodes.
	readyAfter = 10 * time.Second
	// every is the longest time between two rounds, apart from nothing.
	every = 10 * time.Second
	// pause is the shortest: changes that come close together are one round.
	pause = 20 * time.Millisecond
	// roundTime is how long a round may keep an ADD from the registry.
	roundTime = 10 * time.Second
	// sweepAgain is when to free again what was left of a removed node.
	sweepAgain = time.Minute
	// again is when to join anew after the registry was lost, later each time in
	// a row until it is seldom: whoever joins reads all of it, and after an outage
	// the whole cluster comes at once.
	again  = time.Second
	seldom = 5 * time.Second
)

// Cluster is a task of the agent.
type Cluster struct {
	conf           Config
	log            *slog.Logger
	metrics        *metrics
	ready          chan struct{}
	store          atomic.Pointer[registry.Registry] // nil before Open
	dirty          chan struct{}                     // a round is due
	peers, members chan struct{}                     // how nodes reach each other may have changed, for two tasks
	highest        atomic.Int64                      // revision that was heard of
	news           bell.Bell
	waits          waits
	// apart says since when there is no view, and why; nil while there is one.
	apart atomic.Pointer[apart]

	mu lock // what is below, and the trader's steps
	// view is nil while the registry is not followed.
	view   *registry.View
	fresh  bool // the view is of a list that no round has seen
	trader *leases.Trader
	// session, and node and epoch that this node was last enrolled with.
	session registry.Session
	node    record.Node
	epoch   lease.Epoch // of highest
	gone    map[lease.Node]time.Time
	told    string // the last trouble, which is logged once
	state   state  // as the last event has it
	quiet   string // the trouble that it came with
	pools   map[string]registry.Kept[record.Pool]
}

// New makes a Cluster.
func New(conf Config) (*Cluster, error) {
	if conf.Open == nil || conf.Ledger == nil || conf.Log == nil || conf.Registry == nil {
		return nil, errors.New("cluster: Open, Ledger, Log and Registry are required")
	}
	if conf.Now == nil {
		conf.Now = fault.Now
	}
	if conf.Events == nil {
		conf.Events = event.New(event.Config{Slog: conf.Log, Now: conf.Now})
	}
	if conf.Addresses == nil {
		conf.Addresses = func() []netip.Addr { return nil }
	}
	c := &Cluster{
		conf: conf, log: conf.Log, metrics: newMetrics(conf.Registry), ready: make(chan struct{}), dirty: make(chan struct{}, 1), peers: make(chan struct{}, 1), members: make(chan struct{}, 1), mu: newLock(),
		gone: map[lease.Node]time.Time{},
	}
	c.apart.Store(&apart{conf.Now(), errors.New("it was not reached yet")})
	return c, nil
}

func (c *Cluster) String() string { return "registry" }

// Ready is closed after the first round, or when the registry has not been
// reached for a while.
func (c *Cluster) Ready() <-chan struct{} { return c.ready }

// ErrAway is returned while there is no connection to the registry.
var ErrAway = errors.New("the registry is not connected yet")

// Client is the registry, for what operators do.
func (c *Cluster) Client() (registry.Registry, error) {
	if r := c.store.Load(); r != nil {
		return *r, nil
	}
	return registry.Registry{}, ErrAway
}

// apart is a time without a view of the registry.
type apart struct {
	since time.Time
	why   error
}

// Away says why the registry is not followed, or nil.
func (c *Cluster) Away() error {
	a := c.apart.Load()
	if a == nil {
		return nil
	}
	return &AwayError{For: c.conf.Now().Sub(a.since).Round(time.Second), Err: a.why}
}

// AwayError is returned for what needs the registry while it is not followed.
type AwayError struct {
	// For is how long it has not been; 0 where it has just not answered.
	For time.Duration
	Err error
}

func (e *AwayError) Error() string {
	if e.For == 0 {
		return fmt.Sprintf("the registry does not answer: %v", e.Err)
	}
	return fmt.Sprintf("the registry has been out of reach for %s: %v", e.For, e.Err)
}
func (e *AwayError) Unwrap() error { return e.Err }

// CNICode asks the runtime to try again later.
func (e *AwayError) CNICode() uint { return ipam.CodeTryAgainLater }

// Run keeps the node in the cluster until ctx ends.
func (c *Cluster) Run(ctx context.Context) error {
	started := sync.OnceFunc(func() { close(c.ready) })
	late := time.AfterFunc(readyAfter, started)
	defer late.Stop()
	store, failed, end, err := c.open(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer end()
	c.store.Store(&registry.Registry{Store: store, Now: c.conf.Now})
	c.awaitLedger(ctx)
	for wait := again; ; wait = min(2*wait, seldom) {
		began := time.Now()
		err := c.live(ctx, failed, started)
		if ctx.Err() != nil {
			return nil
		}
		if errors.As(err, new(*brokenError)) {
			return err
		}
		if c.apart.Load() == nil {
			wait = again
		}
		c.lose(err)
		if errors.Is(err, registry.ErrSessionLost) && time.Since(began) > 2*sessionTTL {
			// A process that was stopped for long goes on with what it leased, and
			// may have been removed, or its session be a copy's, if that is faster.
			// One that loses its session again and again waits as all others do.
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(some(wait)):
		}
	}
}

// awaitLedger gives the ledger time to be opened.
func (c *Cluster) awaitLedger(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, readyAfter)
	defer cancel()
	for c.conf.Ledger.With(func(*ledger.Ledger) error { return nil }) != nil && ctx.Err() == nil {
		time.Sleep(pause)
	}
}

// brokenError is why the store in this process cannot go on.
type brokenError struct{ error }

// lose notes that the registry is not followed any more.
func (c *Cluster) lose(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := &apart{c.conf.Now(), err}
	if before := c.apart.Load(); before != nil {
		a.since = before.since
	}
	c.view = nil
	c.apart.Store(a)
	c.metrics.connected.Set(0)
	c.turnLocked(away, err)
	c.tellLocked("not in the cluster", err)
	c.news.Ring()
}

// live joins the cluster and follows the registry until something ends that.
func (c *Cluster) live(ctx context.Context, failed <-chan error, started func()) error {
	r := *c.store.Load()
	session, view, err := c.join(ctx, r)
	if err != nil {
		return err
	}
	defer func() {
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = session.Close(short) // or it ends by itself
	}()
	group, ctx := errgroup.WithContext(session.Context())
	group.Go(func() error {
		return registry.Follow(ctx, r.Store, view, c.mu, c.linger, c.seen)
	})
	group.Go(func() error { return c.rounds(ctx, started) })
	group.Go(func() error { return c.audit(ctx, r) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-failed:
			return &brokenError{err}
		}
	})
	return group.Wait()
}

// linger waits before the registry is listed again.
func (c *Cluster) linger(ctx context.Context, err error, failures int) error {
	if errors.Is(err, registry.ErrWentBack) {
		return err // to join anew, which compares before it writes
	}
	if failures > 1 || !errors.Is(err, registry.ErrCompacted) {
		c.lose(err)
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(some(min(seldom, time.Duration(failures)*again/10))):
		return nil
	}
}

// join enrolls the node and opens its session. view is what the registry held
// before, from which on it can be followed; nil where that is not so.
func (c *Cluster) join(ctx context.Context, r registry.Registry) (s registry.Session, view *registry.View, err error) {
	var past lease.Past
	var live record.Live
	var folder string
	err = c.conf.Ledger.With(func(l *ledger.Ledger) (err error) {
		if past, err = l.Past(); err != nil {
			return err
		}
		i, err := l.Identity()
		if err != nil {
			return err
		}
		live = record.Live{Machine: i.Machine, Boot: i.Boot, Device: i.Device, Inode: i.Inode}
		folder = i.Folder
		live.Node, err = l.Node()
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	known, err := r.Open(ctx)
	if err != nil {
		return nil, nil, err
	}
	if view, err = r.View(ctx); err != nil {
		return nil, nil, err
	}
	back, err := c.wentBack(r, view)
	if err != nil {
		return nil, nil, err
	}
	// A node that has never met a registry has nothing to say again.
	if past.Cluster == "" {
		past.Epoch = known.Epoch
	}
	n := record.Node{Node: live.Node, Name: c.conf.Node, Machine: live.Machine, Boot: live.Boot, Folder: folder, Addresses: c.conf.Addresses(), Asserted: past.Epoch.Number}
	err = r.Enroll(ctx, n)
	if errors.Is(err, registry.ErrRemoved) {
		return nil, nil, errors.Join(err, c.renew())
	}
	if err != nil {
		return nil, nil, err
	}
	if back != nil {
		if err := r.Freeze(ctx, *back); err != nil {
			return nil, nil, err
		}
		view = nil // in it all is well
	}
	session, err := r.Bind(ctx, live, sessionTTL)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.node, c.session, c.trader = n, session, nil
	return session, view, nil
}

// wentBack looks, before anything is written, whether the registry was further.
func (c *Cluster) wentBack(r registry.Registry, v *registry.View) (back *record.Frozen, err error) {
	return back, c.conf.Ledger.With(func(l *ledger.Ledger) (err error) {
		back, err = (&leases.Trader{Ledger: l, Registry: r}).Return(v, lease.Rev(c.highest.Load()))
		return err
	})
}

// seen takes over the view of the registry. It is called with c.mu held.
func (c *Cluster) seen(v *registry.View, news registry.News) error {
	c.fresh = c.fresh || c.view != v
	c.view = v
	if epoch := v.Cluster.Value.Epoch; epoch != c.epoch {
		c.epoch = epoch
		c.highest.Store(0)
	}
	c.highest.Store(max(c.highest.Load(), int64(v.Rev)))
	c.apart.Store(nil)
	c.metrics.connected.Set(1)
	c.metrics.unread.Set(float64(len(v.Unread)))
	c.followedLocked()
	if news.All {
		c.tellPoolsLocked()
	}
	if news.Peers {
		ring(c.peers)
		ring(c.members)
	}
	if news.For(c.node.Node) {
		c.Stir()
		c.news.Ring()
	} else if c.spares(news.Wants) {
		c.Stir()
	}
	return nil
}
