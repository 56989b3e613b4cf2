// Package segment is the agent's task that has a VXLAN segment be one L2 network
// over the hosts that have attachments in it: it keeps what plugins have made of a
// segment on this host, tells the registry who is in it here, and keeps the
// neighbours and FDB entries that lead to all endpoints, here and elsewhere.
//
//   - What is on this host is what the ledger says: a segment is this node's as
//     long as an attachment is on record that it has been made for.
//   - Nobody follows a segment but nodes that are in it, and each has one record
//     there, which outlives the agent. It is withdrawn with the last attachment,
//     and those of removed nodes are ignored, and removed by who sees them.
//   - No entry is written before a segment has been read in full once; while the
//     registry is away, what it said last holds. When the agent stops, all stays.
//   - An endpoint that is in two places is where it came to last.
//   - Without a registry a segment is kept in repair, and has no peers.
//
// Left out: making a segment for an attachment, and removing it with the last
// one, which are the plugin's; and which addresses endpoints have.
package segment

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

const (
	// readyAfter is when the agent counts as started without a registry: what
	// starts after it on the node must not wait for other nodes.
	readyAfter = 10 * time.Second
	// settle is how long to listen on: what changes in bursts is answered once.
	settle = 10 * time.Millisecond
	// every is when all is looked at again without being told.
	every = 30 * time.Second
	// again is when to try again what went wrong, later each time in a row until
	// it is seldom.
	again  = time.Second
	seldom = 5 * time.Second
	// idle is how much longer than it took a loop rests, up to maxGap.
	idle   = 3
	maxGap = 300 * time.Millisecond
	// patience is how long the registry's view, or a parent, may be busy.
	patience = 15 * time.Second
)

// Cluster is the node's part in the cluster.
type Cluster interface {
	// Look calls f with what the registry holds, and which node this is, or says
	// why it is not known. F keeps nothing of it.
	Look(ctx context.Context, f func(*registry.View, lease.Node)) error
	// Members has a value when Look may show other networks or nodes.
	Members() <-chan struct{}
	// Client is the registry, or says why there is no connection to it.
	Client() (registry.Registry, error)
}

// Ledger is the agent's.
type Ledger interface {
	// With runs a function on the ledger, or says why there is none.
	With(func(*ledger.Ledger) error) error
}

// Config of a Task. The fields up to Registry are required.
type Config struct {
	Ledger Ledger
	// Node is the node's name.
	Node string
	Log  *slog.Logger
	// Registry takes the metrics.
	Registry prometheus.Registerer

	// Cluster is nil for a node on its own.
	Cluster Cluster
	// RunDir has the locks of parents, which plugins wait for too. "" is for tests
	// without plugins.
	RunDir string
	// Changed is called when Guard may say something else. Optional. It must not
	// wait.
	Changed func()
	// Netns is the namespace to act in, which has to stay open; default: the
	// process's.
	Netns *netns.NS
	// Host is another one than the real one, to which Netns does not apply.
	Host Host
}

// Task is a task of the agent.
type Task struct {
	conf  Config
	log   *slog.Logger
	ready chan struct{}
	// heard of the host's links, and of the ledger.
	links, stirred bell
	leaving        leaving
	guarding       sync.Mutex

	mu    sync.Mutex
	host  Host
	parts map[int]*part // by VNI
	// standing is what the registry says of all segments.
	standing standing
	// lacks says why the ledger has not been read; nil if it has.
	lacks error
	// read: the ledger has been, once. What comes later is new on this host.
	read bool
	// ended are segments whose attachments have gone, and since when; freed, that
	// the agent itself has released some.
	ended map[int]ended
	freed bool
	guard guard
}

// ended is what was kept of a segment until its last attachment went.
type ended struct {
	want want
	at   time.Time
}

// New makes a Task.
func New(conf Config) (*Task, error) {
	if conf.Ledger == nil || conf.Log == nil || conf.Registry == nil {
		return nil, errors.New("segment: Ledger, Log and Registry are required")
	}
	if conf.Changed == nil {
		conf.Changed = func() {}
	}
	t := &Task{
		conf: conf, log: conf.Log, ready: make(chan struct{}), links: newBell(), stirred: newBell(), parts: make(map[int]*part), ended: make(map[int]ended),
		leaving: leaving{bell: newBell(), vnis: make(map[int]bool), busy: make(map[int]chan struct{})}, lacks: errors.New("the ledger has not been read yet"),
	}
	conf.Registry.MustRegister(newMetrics(t))
	return t, nil
}

func (t *Task) String() string { return "segments" }

// Ready is closed when the entries of all segments have been set once, or when the
// registry has not been reached for a while.
func (t *Task) Ready() <-chan struct{} { return t.ready }

// Stir says that an attachment has come or gone that is in a segment.
func (t *Task) Stir() { t.stirred.ring() }

// Freed says that the agent has released attachments whose plugin was not asked:
// what they leave of a segment is the agent's to remove.
func (t *Task) Freed() {
	t.mu.Lock()
	t.freed = true
	t.mu.Unlock()
	t.Stir()
}

// Run keeps the segments until ctx ends.
func (t *Task) Run(ctx context.Context) (err error) {
	started := sync.OnceFunc(func() { close(t.ready) })
	late := time.AfterFunc(readyAfter, started)
	defer late.Stop()
	host := t.conf.Host
	if host == nil {
		real, err := openHost(t.conf.Netns)
		if err != nil {
			return err
		}
		defer real.close()
		host = real
	}
	t.mu.Lock()
	t.host = host
	t.mu.Unlock()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := host.Watch(ctx, t.links.ring)
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
	group.Go(func() error { t.rounds(ctx); return nil })
	group.Go(func() error { t.repairs(ctx); return nil })
	group.Go(func() error { t.awaitAll(ctx, started); return nil })
	if t.conf.Cluster != nil {
		group.Go(func() error { t.stand(ctx); return nil })
		group.Go(func() error { t.leave(ctx); return nil })
	}
	return group.Wait()
}

// awaitAll calls started when the segments that there are at the start are kept.
func (t *Task) awaitAll(ctx context.Context, started func()) {
	for !t.settled() {
		if !wait(ctx, settle) {
			return
		}
	}
	started()
}

func (t *Task) settled() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.parts {
		if !p.settled() {
			return false
		}
	}
	return t.lacks == nil
}

// all are the parts, by VNI.
func (t *Task) all() []*part {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*part, 0, len(t.parts))
	for _, p := range t.parts {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *part) int { return a.vni - b.vni })
	return out
}

// guard is what Guard says.
type guard struct {
	ports []uint16
	vteps []netip.Addr
	known bool
}

// Guard are the UDP ports of segments, and the addresses of all nodes in them: from
// nobody else is anything to be taken at these ports. An agent that starts does not
// cut off those that it finds: a port is left out as long as one of them has not
// been read that uses it, and known is false as long as that goes for any.
func (t *Task) Guard() (ports []uint16, vteps []netip.Addr, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.guard.ports), slices.Clone(t.guard.vteps), t.guard.known
}

// reguard works out anew what Guard says. It does so for one after the other, or
// what is older might come last.
func (t *Task) reguard() {
	t.guarding.Lock()
	defer t.guarding.Unlock()
	var g guard
	unknown := make(map[int]bool)
	for _, p := range t.all() {
		port, plan := p.guarded()
		if plan == nil {
			// To one that is new nothing has led, so nothing is cut off.
			if !p.fresh {
				unknown[port] = true
			}
			continue
		}
		g.ports = append(g.ports, uint16(port))
		g.vteps = append(g.vteps, plan.From...)
	}
	g.ports = slices.DeleteFunc(g.ports, func(port uint16) bool { return unknown[int(port)] })
	slices.Sort(g.ports)
	slices.SortFunc(g.vteps, netip.Addr.Compare)
	g.ports, g.vteps = slices.Compact(g.ports), slices.Compact(g.vteps)
	t.mu.Lock()
	g.known = t.read && len(unknown) == 0
	changed := g.known != t.guard.known || !slices.Equal(g.ports, t.guard.ports) || !slices.Equal(g.vteps, t.guard.vteps)
	t.guard = g
	t.mu.Unlock()
	if changed {
		t.conf.Changed()
	}
}

// bell rings at whoever waits, once, however often it is rung.
type bell chan struct{}

func newBell() bell { return make(bell, 1) }

func (b bell) ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}

// wait reports whether ctx lasts that long.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// some is a time that is another one on each node, from half of d on.
func some(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }

// backoff is when to try again what has failed so many times in a row.
func backoff(failures int) time.Duration {
	return some(min(seldom, time.Duration(failures)*again/2))
}

var _ Host = (*realHost)(nil)

// Host is what a segment is made of.
type Host interface {
	// Watch calls heard at the start, and when links or addresses may be others.
	Watch(ctx context.Context, heard func()) error
	// Build makes a segment on this host as it is wanted, and says how it is.
	Build(vni, port int, parent string) (vxlan.Segment, error)
	// Remove removes it.
	Remove(vni int) error
	// Entries keep its neighbours and FDB entries.
	Entries(vni int) (Entries, error)
}
