// Package network is the agent's task that has this host reach the containers of
// others, and they its own: it keeps the routes to the blocks of all nodes, the
// nftables table, and forwarding, as the registry's networks need them.
//
//   - Nothing is written before the registry has been read in full once; while it
//     is away, what it said last holds. When the agent stops, all stays.
//   - What is wanted is worked out anew for each change, of the registry, of this
//     host's network, or of what its attachments use, and compared with the
//     kernel: packages plan, route and nft. A peer that cannot be reached, and a
//     record that cannot be read, hold up nobody.
//   - Whether a peer answers matters where there is another way to it, VXLAN; else
//     it is only told.
//
// Left out: segments, and peers that a plugin has in its configuration.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/pkg/agent/bell"
	"github.com/underlay-cni/underlay/pkg/agent/network/overlay"
	"github.com/underlay-cni/underlay/pkg/agent/network/plan"
	"github.com/underlay-cni/underlay/pkg/hostnet"
	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/nft"
	"github.com/underlay-cni/underlay/pkg/route"
)

const (
	// readyAfter is when the agent counts as started without a registry: what
	// starts after it on the node must not wait for other nodes.
	readyAfter = 10 * time.Second
	// settle is how long to listen on: what changes in bursts is answered once.
	settle = 10 * time.Millisecond
	// every is when all is looked at again without being told.
	every = 30 * time.Second
	// again is when to try again what went wrong.
	again = time.Second
	// idle is how much longer than its last one the task waits before the next
	// round, up to maxGap.
	idle   = 3
	maxGap = 300 * time.Millisecond
)

// Cluster is the node's part in the cluster.
type Cluster interface {
	// Look calls f with what the registry holds, and which node this is, or says
	// why it is not known. F keeps nothing of it.
	Look(ctx context.Context, f func(*registry.View, lease.Node)) error
	// Peers has a value when Look may show other networks, nodes or owners.
	Peers() <-chan struct{}
	// Stir has the registry told that Addresses are others.
	Stir()
}

// Ledger is the agent's.
type Ledger interface {
	// With runs a function on the ledger, or says why there is none.
	With(func(*ledger.Ledger) error) error
}

// Host is the network of this host; see hostnet.Host.
type Host interface {
	Read(ctx context.Context, reach []netip.Addr) (hostnet.State, error)
	Watch(ctx context.Context, own []uint8, heard func()) error
	Ask(ctx context.Context, all []hostnet.Neighbour) error
	Answers(ctx context.Context, devs []string) (map[hostnet.Neighbour]hostnet.Answer, error)
	Forward(dev string, six bool) (changed []string, err error)
}

// Overlays keep VXLAN devices and their entries; see overlay.Keeper.
type Overlays interface {
	Apply(ctx context.Context, want []plan.Overlay) error
	Sweep(want []plan.Overlay) error
	Err(vni int) error
	Status(vni int) []neigh.Status
	Close()
}

var (
	_ Host     = (*hostnet.Host)(nil)
	_ Host     = (*hostnet.Fake)(nil)
	_ Overlays = (*overlay.Keeper)(nil)
	_ Overlays = (*overlay.Fake)(nil)
)

// Config of a Task. The fields up to Registry are required.
type Config struct {
	Cluster Cluster
	Ledger  Ledger
	Log     *slog.Logger
	// Registry takes the metrics.
	Registry prometheus.Registerer

	// Parents, by names for people, are the interfaces at which peers reach this
	// node, the preferred one first; default: those of the default routes.
	Parents map[string]Parent
	// Networks are those that are followed; nil means all.
	Networks []string
	// FixForwardDrop lets our packets pass others' policies that drop them.
	FixForwardDrop bool

	// Guard tells of UDP ports that take VXLAN from some addresses alone, beside
	// those of networks, and whether all such addresses are known; Stir says that
	// it may tell of others. Optional.
	Guard func() (ports []uint16, vteps []netip.Addr, known bool)

	// SubnetFile tells others on the node which block they give out addresses of;
	// nil where nobody does. It needs RunDir.
	SubnetFile *SubnetFile

	// RunDir is the agent's folder of what a reboot forgets; "" has the task forget
	// with its end which networks it has set routes for.
	RunDir string

	// Netns is the namespace to act in, which has to stay open; default: the
	// process's.
	Netns *netns.NS
	// Host, Overlays, Routes and Rules are others than the real ones, such as
	// fakes, to which Netns does not apply; and Drops finds policies.
	Host     Host
	Overlays Overlays
	Routes   route.Kernel
	Rules    nft.Kernel
	Drops    func(context.Context) ([]nft.Drop, error)
}

// Task is a task of the agent.
type Task struct {
	conf    Config
	log     *slog.Logger
	parents parents
	ready   chan struct{}
	// heard of the host's network, and of the ledger.
	host, stirred chan struct{}
	news          bell.Bell
	rules         rules
	probes        probes
	overlays      Overlays
	// firewall tells when Drops may find others than before.
	firewall func(ctx context.Context, heard func()) error

	mu     sync.Mutex
	kernel Host
	routes *route.Reconciler
	// now is what the last round came to, and earlier what RunDir says of it.
	now     round
	earlier earlier
	// unlent is why no block is lent for SubnetFile.
	unlent error
	// addrs are those that peers are told; lost is when some of them were first
	// missed, or zero.
	addrs []netip.Addr
	lost  time.Time
	told  bool // addrs have been read once
	// complaints are what was last logged of what an operator has to mend.
	complaints []string
	// armed are the networks that an attachment which is about to be made wants
	// masqueraded, and until when that counts without a record.
	armed map[string]time.Time
	drops []nft.Drop
	// unopposed: all policies have been looked at, and none drops.
	unopposed bool
}

// New makes a Task.
func New(conf Config) (*Task, error) {
	if conf.Cluster == nil || conf.Ledger == nil || conf.Log == nil || conf.Registry == nil {
		return nil, errors.New("network: Cluster, Ledger, Log and Registry are required")
	}
	parents, err := newParents(conf.Parents)
	if err != nil {
		return nil, err
	}
	firewall := func(context.Context, func()) error { return nil }
	if conf.Drops == nil {
		firewall = func(ctx context.Context, heard func()) error { return nft.WatchDrops(ctx, conf.Netns, heard) }
		conf.Drops = func(ctx context.Context) ([]nft.Drop, error) { return nft.Drops(ctx, conf.Netns) }
	}
	if conf.Guard == nil {
		conf.Guard = func() ([]uint16, []netip.Addr, bool) { return nil, nil, true }
	}
	before, err := readEarlier(conf.RunDir)
	if err != nil {
		// It is made anew as soon as the registry is read.
		conf.Log.Warn("not known which networks had routes before", "err", err)
	}
	t := &Task{
		earlier: before,
		conf:    conf, log: conf.Log, parents: parents, ready: make(chan struct{}), host: make(chan struct{}, 1), stirred: make(chan struct{}, 1),
		armed: make(map[string]time.Time), firewall: firewall,
	}
	t.rules = rules{log: conf.Log, open: func() (*nft.Reconciler, error) {
		return nft.New(nft.Config{Netns: conf.Netns, Kernel: conf.Rules})
	}}
	t.probes = newProbes()
	if t.overlays = conf.Overlays; t.overlays == nil {
		t.overlays = overlay.New(conf.Netns, func() { ring(t.host) })
	}
	conf.Registry.MustRegister(newMetrics(t))
	return t, nil
}

func (t *Task) String() string { return "networks" }

// Ready is closed when routes and rules have been set once, or when the registry
// has not been reached for a while.
func (t *Task) Ready() <-chan struct{} { return t.ready }

// Stir says that an attachment has come or gone that reaches a network's peers, or
// that the rules may have to be others.
func (t *Task) Stir() { ring(t.stirred) }

// Run keeps routes and rules until ctx ends.
func (t *Task) Run(ctx context.Context) (err error) {
	started := sync.OnceFunc(func() { close(t.ready) })
	late := time.AfterFunc(readyAfter, started)
	defer late.Stop()
	host, end, err := t.openHost()
	if err != nil {
		return err
	}
	defer end()
	routes, err := route.New(route.Config{Netns: t.conf.Netns, Kernel: t.conf.Routes})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, routes.Close()) }()
	t.mu.Lock()
	t.kernel, t.routes = host, routes
	t.mu.Unlock()
	defer t.overlays.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return routes.Run(ctx) })
	group.Go(func() error {
		err := host.Watch(ctx, []uint8{route.Protocol}, func() { ring(t.host) })
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("keep up with the host's network: %w", err)
	})
	group.Go(func() error { t.rules.run(ctx); return nil })
	group.Go(func() error { t.probes.run(ctx, host); return nil })
	group.Go(func() error { t.look(ctx); return nil })
	group.Go(func() error { t.rounds(ctx, started); return nil })
	return group.Wait()
}

// openHost opens the real one, unless there is another.
func (t *Task) openHost() (h Host, end func(), err error) {
	if t.conf.Host != nil {
		return t.conf.Host, func() {}, nil
	}
	real, err := hostnet.Open(t.conf.Netns)
	if err != nil {
		return nil, nil, err
	}
	return real, func() { _ = real.Close() }, nil
}

// Addresses are those at which peers reach this node, the preferred one first.
// Before the first round it reads them, so that the registry is told at once.
func (t *Task) Addresses() []netip.Addr {
	t.mu.Lock()
	addrs, told, host := t.addrs, t.told, t.kernel
	t.mu.Unlock()
	if told {
		return addrs
	}
	end := func() {}
	if host == nil {
		var err error
		if host, end, err = t.openHost(); err != nil {
			t.log.Warn("this node's addresses are not known", "err", err)
			return nil
		}
	}
	defer end()
	s, err := host.Read(context.Background(), t.parents.reach)
	if err != nil {
		t.log.Warn("this node's addresses are not known", "err", err)
		return nil
	}
	return t.addresses(s)
}

func (t *Task) addresses(s hostnet.State) (out []netip.Addr) {
	for _, a := range plan.Addresses(s, t.parents.devs(s)) {
		out = append(out, a.Addr)
	}
	return out
}

// round is what a look at everything has come to.
type round struct {
	snapshot   *plan.Snapshot // nil before the first
	state      hostnet.State
	read       bool // state has been, once
	plan       *plan.Plan
	masquerade map[string]bool // by network
	// synced are the networks whose routes and rules have been set.
	synced map[string]bool
	// away says why the registry is not known; err what else went wrong, and
	// untold what keeps the subnet file from being right.
	away, err, untold error
	deaf              []string // why the host does not forward
}

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}
