// Package agent is underlayd, what runs on a node all the time: it has the
// ledger open and serves plugins (package service), gives back what containers
// hold that went without a DEL (package sweep), and answers people and programs
// (packages admin and api).
//
// Nothing on a node needs it: without it plugins open the ledger themselves,
// and what it has made stays as it is when it stops or dies. One agent at a
// time runs on a ledger, and in a run folder.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
	"github.com/underlay-cni/underlay/pkg/agent/admin"
	"github.com/underlay-cni/underlay/pkg/agent/ahead"
	"github.com/underlay-cni/underlay/pkg/agent/cluster"
	"github.com/underlay-cni/underlay/pkg/agent/containerd"
	"github.com/underlay-cni/underlay/pkg/agent/event"
	"github.com/underlay-cni/underlay/pkg/agent/leases"
	"github.com/underlay-cni/underlay/pkg/agent/network"
	"github.com/underlay-cni/underlay/pkg/agent/segment"
	"github.com/underlay-cni/underlay/pkg/agent/service"
	"github.com/underlay-cni/underlay/pkg/agent/sweep"
)

// ErrSecond is returned by Run when another agent has the ledger or the run
// folder.
var ErrSecond = errors.New("another underlayd is running")

// Task is one thing that the agent does.
type Task interface {
	// Run does it until ctx ends, and then returns nil. An error ends the agent.
	Run(ctx context.Context) error
	// Ready is closed once it has got going.
	Ready() <-chan struct{}
	// String names it.
	String() string
}

// Agent is the node agent.
type Agent struct {
	conf  Config
	log   *slog.Logger
	tasks []Task
	ready chan struct{}
}

// New makes an agent of a Config that LoadConfig has returned.
func New(conf Config, log *slog.Logger) (*Agent, error) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	log = log.With("node", conf.NodeName)
	events := event.New(event.Config{Slog: log, Registry: reg})
	var shelf shelf
	member, networks, err := conf.member(&shelf, events, log, reg)
	if err != nil {
		return nil, err
	}
	scout, err := ahead.New(ahead.Config{Ledger: &shelf, Log: log, Registry: reg, Events: events})
	if err != nil {
		return nil, err
	}
	segments, err := conf.segments(&shelf, member, networks, log, reg)
	if err != nil {
		return nil, err
	}
	shelf.segments = segments
	serving := service.Config{Ledger: conf.ledger(), Log: log, Registry: reg, Events: events, Ahead: scout.Used, Segments: segments}
	if member != nil {
		serving.Cluster, serving.Networks = member, networks
	}
	serve, err := service.New(serving)
	if err != nil {
		return nil, err
	}
	shelf.Service = serve
	a := &Agent{conf: conf, log: log, ready: make(chan struct{})}
	asked := admin.Config{
		Node: conf.NodeName, Version: version(), DataDir: conf.DataDir, Socket: filepath.Join(conf.RunDir, admin.SocketName), Group: conf.APIGroup,
		Ledger: serve, Pending: a.pending, Log: log, Registry: reg, Events: events, Segments: segments,
	}
	if member != nil {
		asked.Cluster, asked.Networks = member.Client, networks
	}
	api, err := admin.New(asked)
	if err != nil {
		return nil, err
	}
	swept := sweep.Config{Ledger: serve, Log: log, Registry: reg, Events: events, Freed: segments.Freed}
	if conf.Containerd != "" {
		swept.Containers = containerd.Client{Socket: conf.Containerd}
	}
	leaks, err := sweep.New(swept)
	if err != nil {
		return nil, err
	}
	a.tasks = []Task{serve, api, leaks, scout, segments}
	if member != nil {
		a.tasks = append(a.tasks, member, networks)
	}
	return a, nil
}

// shelf is where the tasks find those that are made after them: the ledger, which
// the service has, and the segments.
type shelf struct {
	*service.Service
	segments *segment.Task
}

// member makes the tasks of a node in a cluster; nil without one. Of the two, one
// knows what peers there are, and the other at which addresses they reach this
// node.
func (c *Config) member(s *shelf, events *event.Log, log *slog.Logger, reg *prometheus.Registry) (*cluster.Cluster, *network.Task, error) {
	if c.Registry == nil {
		return nil, nil, nil
	}
	if text := c.Registry.exposed(); text != "" {
		log.Warn(text)
	}
	var networks *network.Task
	member, err := cluster.New(cluster.Config{
		Open: c.Registry.open, Ledger: s, Node: c.NodeName, Log: log, Registry: reg, Events: events,
		Addresses: func() []netip.Addr { return networks.Addresses() },
		Loan:      func() *leases.Loan { return networks.Loan() },
	})
	if err != nil {
		return nil, nil, err
	}
	networks, err = network.New(network.Config{
		Cluster: member, Ledger: s, Log: log, Registry: reg, RunDir: c.RunDir,
		Parents: c.Parents, Networks: c.Networks, FixForwardDrop: c.FixForwardDrop, SubnetFile: c.SubnetFile,
		Guard: func() ([]uint16, []netip.Addr, bool) { return s.segments.Guard() },
	})
	return member, networks, err
}

// segments makes the task of the VXLAN segments that plugins make on this node,
// which has peers in them as a member of a cluster.
func (c *Config) segments(s *shelf, member *cluster.Cluster, networks *network.Task, log *slog.Logger, reg *prometheus.Registry) (*segment.Task, error) {
	conf := segment.Config{Ledger: s, Node: c.NodeName, Log: log, Registry: reg, RunDir: c.RunDir}
	if member != nil {
		conf.Cluster, conf.Changed = member, networks.Stir
	}
	return segment.New(conf)
}

func (c *Config) ledger() ledger.Options { return client.New(c.DataDir, c.RunDir).Options() }

// Run runs the tasks until ctx ends, which is no error, or one of them fails.
func (a *Agent) Run(ctx context.Context) error {
	unlock, err := alone(a.conf.DataDir, a.conf.RunDir, 0o700)
	if err != nil {
		return err
	}
	defer unlock()
	if a.conf.RunDir != a.conf.DataDir {
		unlock, err := alone(a.conf.RunDir, a.conf.RunDir, 0o755)
		if err != nil {
			return err
		}
		defer unlock()
	}
	a.compact(ctx)
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range a.tasks {
		group.Go(func() error {
			if err := t.Run(ctx); err != nil {
				return fmt.Errorf("%s: %w", t, err)
			}
			return nil
		})
	}
	group.Go(func() error {
		a.await(ctx)
		<-ctx.Done()
		a.tell("STOPPING=1")
		return nil
	})
	return group.Wait()
}

// Ready is closed when all tasks have got going.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// await tells systemd when all tasks are ready.
func (a *Agent) await(ctx context.Context) {
	for _, t := range a.tasks {
		select {
		case <-t.Ready():
		case <-ctx.Done():
			return
		}
	}
	close(a.ready)
	a.log.Info("ready")
	a.tell("READY=1")
}

// pending lists the tasks that are not ready.
func (a *Agent) pending() (names []string) {
	for _, t := range a.tasks {
		select {
		case <-t.Ready():
		default:
			names = append(names, t.String())
		}
	}
	return names
}

func (a *Agent) tell(state string) {
	if err := notify(state); err != nil {
		a.log.Warn("systemd was not told", "err", err)
	}
}

// compact makes the ledger's file shorter where that is worth it, before
// anybody is served. The agent does not depend on it.
func (a *Agent) compact(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	switch saved, err := ledger.Compact(ctx, a.conf.ledger()); {
	case err != nil:
		a.log.Warn("the ledger was not compacted", "err", err)
	case saved > 0:
		a.log.Info("compacted the ledger", "saved", saved)
	}
}

// alone keeps other agents out of a folder until unlock, or the end of the
// process, and says there where this one listens.
func alone(dir, runDir string, mode os.FileMode) (unlock func(), err error) {
	// As the ledger makes it, should it be the first to need it.
	if err := boltfile.MakeDir(dir, mode); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, client.AgentLock)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: it has the lock %q", ErrSecond, path)
		}
		return nil, errors.Join(err, f.Close())
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteString(runDir + "\n")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}
