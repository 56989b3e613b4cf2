// Package crowd runs many node agents against one etcd, to see what a large
// cluster costs: each has the agent's task of package cluster, with a ledger and
// a connection of its own.
//
// They share one process and one machine, which has to do at once what is a
// thousand machines' work in truth; the ledgers are in memory, since one disk
// cannot stand for a thousand.
//
// Left out: the rest of an agent, plugins, containers.
package crowd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/etcd"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/cluster"
)

// again is when an ADD is repeated that was told to come later; a runtime is
// slower.
const again = 100 * time.Millisecond

// Crowd is agents that run.
type Crowd struct {
	nodes []*node
	stop  context.CancelFunc
	group *errgroup.Group
	pool  string
}

// node is one agent.
type node struct {
	*cluster.Cluster
	l *ledger.Ledger
}

// With implements cluster.Ledger.
func (n *node) With(f func(*ledger.Ledger) error) error { return f(n.l) }

// CreatePool makes a pool in the registry at endpoint, and opens the registry
// if it is new.
func CreatePool(ctx context.Context, endpoint, object string) (record.Pool, error) {
	p, err := record.LoadPool([]byte(object))
	if err != nil {
		return p, err
	}
	s, err := etcd.New(etcd.Config{Endpoints: []string{endpoint}})
	if err != nil {
		return p, err
	}
	defer s.Close()
	r := registry.Registry{Store: s}
	if _, err := r.Open(ctx); err != nil {
		return p, err
	}
	return r.CreatePool(ctx, p)
}

// New makes agents with empty ledgers below dir, which should be in memory. They
// do not run yet.
func New(ctx context.Context, endpoint, dir, pool string, agents int) (_ *Crowd, err error) {
	c := &Crowd{pool: pool}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.closeLedgers())
		}
	}()
	for i := range agents {
		n := new(node)
		name := fmt.Sprintf("n%04d", i)
		home := filepath.Join(dir, name)
		n.l, err = ledger.Open(ctx, ledger.Options{DataDir: home, RunDir: filepath.Join(home, "run"), BootID: "crowd", MachineID: name})
		if err != nil {
			return nil, err
		}
		c.nodes = append(c.nodes, n)
		if err := giveBack(filepath.Join(home, "ledger.db")); err != nil {
			return nil, err
		}
		n.Cluster, err = cluster.New(cluster.Config{
			Open: func(context.Context) (registry.Store, <-chan error, func(), error) {
				s, err := etcd.New(etcd.Config{Endpoints: []string{endpoint}})
				if err != nil {
					return nil, nil, nil, err
				}
				return s, nil, func() { s.Close() }, nil
			},
			Ledger: n, Node: name, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
		})
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// giveBack frees what a ledger's file keeps for later: a thousand times 8 MiB
// of memory.
func giveBack(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	const used = 1 << 18 // of a new one
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, used, info.Size()-used)
}

// Start runs all agents at the same moment, with an ADD waiting on each, and
// returns how long it took until each had its address, in order. When ctx ends,
// those are left out that have none yet.
func (c *Crowd) Start(ctx context.Context) (took []time.Duration, err error) {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	c.group, running = errgroup.WithContext(running)
	start := time.Now()
	for _, n := range c.nodes {
		c.group.Go(func() error { return n.Run(running) })
	}
	var mu sync.Mutex
	holder := map[netip.Addr]string{}
	var errs []error
	var all sync.WaitGroup
	for i, n := range c.nodes {
		all.Go(func() {
			a, err := n.add(ctx, c.pool)
			passed, name := time.Since(start), fmt.Sprint(i)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil && ctx.Err() == nil:
				errs = append(errs, fmt.Errorf("agent %d: %w", i, err))
			case err == nil && holder[a] != "":
				errs = append(errs, fmt.Errorf("agents %d and %s have %s", i, holder[a], a))
			case err == nil:
				holder[a] = name
				took = append(took, passed)
			}
		})
	}
	all.Wait()
	slices.Sort(took)
	return took, errors.Join(errs...)
}

// add is an ADD, and again, as a runtime does, where the answer is to try again
// later.
func (n *node) add(ctx context.Context, pool string) (a netip.Addr, err error) {
	req := ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "net", ContainerID: "first", IfName: "eth0"}, Cluster: pool}
	for ctx.Err() == nil {
		var got ipam.Allocation
		got, err = n.Allocate(ctx, n.l, req, func() (ipam.Allocation, error) { return n.l.Allocate(req, nil) })
		if err == nil {
			return got.Addresses[0].Prefix.Addr(), nil
		}
		var coded interface{ CNICode() uint }
		if !errors.As(err, &coded) || coded.CNICode() != ipam.CodeTryAgainLater {
			return a, err
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
		}
	}
	return a, errors.Join(ctx.Err(), err)
}

// Stop ends the agents.
func (c *Crowd) Stop() error {
	var err error
	if c.stop != nil {
		c.stop()
		err = c.group.Wait()
	}
	return errors.Join(err, c.closeLedgers())
}

func (c *Crowd) closeLedgers() error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.l.Close())
	}
	return errors.Join(errs...)
}
