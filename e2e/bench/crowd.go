package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/underlay-cni/underlay/e2e/crowd"
)

// Sections about a large cluster.
const (
	sectionCrowd    = "agents that start at once on one etcd, a /16"
	sectionScarce   = "agents that start at once on one etcd, a pool with little more than one address for each"
	sectionResident = "memory of one underlayd, idle"

	whatAll      = "seconds until all hold an address"
	whatIdle     = "MB in a cluster of 1,000 nodes with 5,000 blocks"
	whatPeers    = "MB in a cluster of 5,000 nodes with 5,000 blocks"
	settle       = 15 * time.Second // until nothing is left of a start
	steady       = 20 * time.Second // measured then
	crowdMinutes = 3 * time.Minute  // for all to start
)

// crowd measures what a large cluster costs its etcd and its agents.
func (b *bench) crowd(ctx context.Context) error {
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := b.resident(ctx); err != nil {
		return err
	}
	plenty := fmt.Sprintf(`{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/16"}]],"expectedNodes":%d}`, max(b.agents, 64))
	if err := b.start(ctx, sectionCrowd, plenty, b.agents); err != nil {
		return err
	}
	// Blocks of 8 for many more nodes than there are blocks.
	bits := 32
	for 1<<(32-bits)-2 < b.agents {
		bits--
	}
	scarce := fmt.Sprintf(`{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/%d"}]],"blockPrefix":{"ipv4":29}}`, bits)
	return b.start(ctx, sectionScarce, scarce, b.agents)
}

// loopbackUp makes 127.0.0.1 of this network namespace one that answers.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// serve starts an etcd with a pool in it.
func (b *bench) serve(ctx context.Context, name, pool string) (s *crowd.Server, fill func(nodes, blocks int) error, err error) {
	dir := filepath.Join(b.scratch, "crowd", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	if s, err = crowd.Serve(ctx, dir); err != nil {
		return nil, nil, err
	}
	p, err := crowd.CreatePool(ctx, s.Endpoint, pool)
	if err != nil {
		return nil, nil, errors.Join(err, s.Stop())
	}
	return s, func(nodes, blocks int) error { return crowd.Fill(ctx, s.Endpoint, p, nodes, blocks) }, nil
}

// start has agents start at once, and watches etcd then, and when nothing
// happens.
func (b *bench) start(ctx context.Context, section, pool string, agents int) (err error) {
	s, _, err := b.serve(ctx, section, pool)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	dir := filepath.Join("/run", "crowd") // in memory
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	heap := heapInUse()
	// Alone an agent's heap of little more than 1 MB is collected when it has come
	// to 4 MB, Go's least; those of all together would be at twice what lives.
	defer debug.SetGCPercent(debug.SetGCPercent(230))
	c, err := crowd.New(ctx, s.Endpoint, dir, "a", agents)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	before, err := s.Load()
	if err != nil {
		return err
	}
	spent, err := crowd.CPU(os.Getpid())
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, crowdMinutes)
	defer cancel()
	took, err := c.Start(limited)
	if err != nil {
		return err
	}
	after, err := s.Load()
	if err != nil {
		return err
	}
	used, err := crowd.CPU(os.Getpid())
	if err != nil {
		return err
	}
	say := func(what string, value float64) { b.figure(section, what, value) }
	say("agents", float64(agents))
	say("of them with an address", float64(len(took)))
	last := crowdMinutes
	if len(took) == agents {
		last = took[agents-1]
	}
	if len(took) > 0 {
		say("seconds until half of them hold one", quantile(took, 0.5).Seconds())
	}
	say(whatAll, last.Seconds())
	say("processor seconds of all agents meanwhile", (used - spent).Seconds())
	say("processor seconds of etcd meanwhile", (after.CPU - before.CPU).Seconds())
	say("requests for each agent meanwhile", (after.All()-before.All())/float64(agents))

	if err := sleep(ctx, settle); err != nil {
		return err
	}
	if before, err = s.Load(); err != nil {
		return err
	}
	if spent, err = crowd.CPU(os.Getpid()); err != nil {
		return err
	}
	if err := sleep(ctx, steady); err != nil {
		return err
	}
	if after, err = s.Load(); err != nil {
		return err
	}
	if used, err = crowd.CPU(os.Getpid()); err != nil {
		return err
	}
	each := after.Since(before)
	say("steady: requests to etcd a second", each.All())
	for _, method := range slices.Sorted(maps.Keys(each.Requests)) {
		say("steady: of them "+method, each.Requests[method])
	}
	say("steady: answers on watches a second", each.Events)
	say("steady: kB to etcd a second", each.In/1e3)
	say("steady: kB from etcd a second", each.Out/1e3)
	say("steady: share of a processor, etcd", each.CPU.Seconds())
	say("steady: share of a processor, all agents", (used-spent).Seconds()/steady.Seconds())
	say("heap of each agent: kB", (heapInUse()-heap)/1e3/float64(agents))
	return nil
}

// figure keeps what has been measured and shows it at once: a section takes
// minutes, and what is measured last may never end.
func (b *bench) figure(section, what string, value float64) {
	b.report.Figures = append(b.report.Figures, Figure{section, what, value})
	fmt.Fprintf(os.Stderr, "%s: %s: %.4g\n", section, what, value)
}

func heapInUse() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapInuse + m.StackInuse)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// resident measures the memory of a real agent in clusters that others have
// filled.
func (b *bench) resident(ctx context.Context) error {
	const pool = `{"version":1,"name":"a","kind":"routed","ranges":[[{"subnet":"10.0.0.0/12"}]],"blockPrefix":{"ipv4":26},"expectedNodes":1000}`
	for _, size := range []struct {
		what          string
		nodes, blocks int
	}{{"MB without a registry", 0, 0}, {whatIdle, 1000, 5000}, {whatPeers, 5000, 5000}} {
		resident, err := b.weighAgent(ctx, fmt.Sprint("resident-", size.nodes), pool, size.nodes, size.blocks)
		if err != nil {
			return fmt.Errorf("%s: %w", size.what, err)
		}
		b.figure(sectionResident, size.what, float64(resident)/1e6)
	}
	return nil
}

func (b *bench) weighAgent(ctx context.Context, name, pool string, nodes, blocks int) (resident int64, err error) {
	dir := filepath.Join(b.scratch, "crowd", name)
	conf := object{"nodeName": "measured", "dataDir": filepath.Join(dir, "data"), "runDir": filepath.Join("/run", name)}
	if nodes > 0 {
		s, fill, err := b.serve(ctx, name, pool)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, s.Stop()) }()
		if err := fill(nodes, blocks); err != nil {
			return 0, err
		}
		conf["registry"] = object{"etcd": object{"endpoints": []string{s.Endpoint}}}
	}
	cmd, err := b.launchAgent(ctx, conf)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stopAgent(cmd)) }()
	// Some rounds, so that it has what it keeps and no more.
	if err := sleep(ctx, steady); err != nil {
		return 0, err
	}
	return crowd.Resident(cmd.Process.Pid)
}

// judgeCrowd compares what was measured with the budgets of a large cluster.
func (r *Report) judgeCrowd(judge func(what string, limit float64, atLeast bool, measured float64)) {
	for _, b := range []struct {
		section, what string
		limit         float64
	}{{sectionCrowd, whatAll, 30}, {sectionResident, whatIdle, 40}, {sectionResident, whatPeers, 100}} {
		i := slices.IndexFunc(r.Figures, func(f Figure) bool { return f.Section == b.section && f.What == b.what })
		if i >= 0 {
			judge(b.section+": "+b.what, b.limit, false, r.Figures[i].Value)
		}
	}
}
