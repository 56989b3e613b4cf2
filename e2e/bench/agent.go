package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
)

// Sections about the agent, and their variants.
const (
	sectionAgent     = "IPAM alone, without an agent and with one"
	sectionWithAgent = "macvlan, without an agent and with one"
	sectionPools     = "IPAM through the agent, a local pool and a cluster's"
	sectionClients   = "IPAM through the agent, 32 clients, addresses of a /16 held"

	alone     = "without"
	withAgent = "with"

	localPool   = "local pool"
	clusterPool = "cluster pool, free space on the node"

	clients       = 32
	heldFew       = "100 held"
	heldMany      = "60,000 held"
	clientsRounds = 20
)

// agent measures what the agent changes.
func (b *bench) agent(ctx context.Context) error {
	for _, section := range []string{sectionAgent, sectionWithAgent} {
		if err := b.compareAgent(ctx, section); err != nil {
			return err
		}
	}
	if err := b.comparePools(ctx); err != nil {
		return err
	}
	return b.shared(ctx)
}

// comparePools measures IPAM from a local pool and from a cluster pool of which
// the node leases enough, both through an agent.
func (b *bench) comparePools(ctx context.Context) (err error) {
	if err := loopbackUp(); err != nil {
		return err
	}
	s, _, err := b.serve(ctx, "pools", `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.10.0.0/16","gateway":"10.10.0.1"}]],"routes":[{"dst":"0.0.0.0/0"}],"blockPrefix":{"ipv4":24}}`)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	var variants []variant
	for _, name := range []string{localPool, clusterPool} {
		dir := filepath.Join(b.scratch, "agent", "pools", fmt.Sprint(len(variants)))
		place := object{"dataDir": filepath.Join(dir, "data"), "runDir": filepath.Join("/run", "agent", "pools", fmt.Sprint(len(variants)))}
		conf := object{"type": "underlay", "ipam": ipv4.ipam("underlay"), "dataDir": place["dataDir"], "runDir": place["runDir"]}
		if name == clusterPool {
			conf["ipam"] = object{"type": "underlay", "pool": "a"}
			place["registry"] = object{"etcd": object{"endpoints": []string{s.Endpoint}}}
		}
		place["nodeName"] = "n1"
		v, err := newVariant(name, b.bin, dir, conf)
		if err != nil {
			return err
		}
		cmd, err := b.launchAgent(ctx, place)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stopAgent(cmd)) }()
		variants = append(variants, v)
	}
	if err := b.await(ctx, variants[1]); err != nil {
		return err
	}
	return b.alternate(ctx, sectionPools, b.rounds, variants)
}

// await attaches to a network until that works, for half a minute at least: an
// agent listens before it has reached the registry and leased a block.
func (b *bench) await(ctx context.Context, v variant) error {
	a, err := b.stage.attachment(v)
	if err != nil {
		return err
	}
	for range 150 {
		if _, err = a.add(ctx); err == nil {
			_, err = a.del(ctx)
			return err
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	return err
}

// compareAgent measures a plugin with an agent and without, one at a time.
func (b *bench) compareAgent(ctx context.Context, section string) (err error) {
	var variants []variant
	for _, name := range []string{alone, withAgent} {
		dir := filepath.Join(b.scratch, "agent", section, name)
		conf := object{"type": "underlay", "ipam": ipv4.ipam("underlay"), "dataDir": filepath.Join(dir, "data"),
			"runDir": filepath.Join("/run", "agent", fmt.Sprintf("%.4s", section), name)}
		if section == sectionWithAgent {
			conf["type"], conf["master"], conf["mode"] = "macvlan", parent, "bridge"
		}
		v, err := newVariant(name, b.bin, dir, conf)
		if err != nil {
			return err
		}
		variants = append(variants, v)
		if name == withAgent {
			stop, err := b.startAgent(ctx, conf)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, stop()) }()
		}
	}
	return b.alternate(ctx, section, b.rounds, variants)
}

// startAgent starts an agent on a configuration's folders, ready.
func (b *bench) startAgent(ctx context.Context, conf object) (stop func() error, err error) {
	cmd, err := b.launchAgent(ctx, object{"dataDir": conf["dataDir"], "runDir": conf["runDir"]})
	return func() error { return stopAgent(cmd) }, err
}

// launchAgent starts an agent of a configuration, and waits until it listens.
func (b *bench) launchAgent(ctx context.Context, conf object) (*exec.Cmd, error) {
	text, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(filepath.Dir(conf["dataDir"].(string)), "underlayd.json")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, text, 0o600)); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "underlayd"), "--config", file)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	socket := filepath.Join(conf["runDir"].(string), "cni.sock")
	for range 1000 {
		if _, err = os.Stat(socket); err == nil {
			return cmd, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, errors.Join(err, stopAgent(cmd))
}

func stopAgent(cmd *exec.Cmd) error {
	return errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
}

// shared has many clients at once allocate and release addresses of one pool,
// in turn with few and with many held. The clients are in this process: a
// process for each would be measured more than the agent.
func (b *bench) shared(ctx context.Context) (err error) {
	b.report.declare(sectionClients, heldFew, heldMany)
	text, err := json.Marshal(ipv4.ipam("underlay"))
	if err != nil {
		return err
	}
	cfg, err := ipam.Load(text, network, nil)
	if err != nil {
		return err
	}
	places := []struct {
		name  string
		level int
		c     *client.Client
	}{{heldFew, 100, nil}, {heldMany, 60_000, nil}}
	for i, p := range places {
		dir := filepath.Join(b.scratch, "agent", "clients", fmt.Sprint(p.level))
		conf := object{"dataDir": filepath.Join(dir, "data"), "runDir": filepath.Join("/run", "agent", "clients", fmt.Sprint(p.level))}
		if err := fillLedger(ctx, conf, p.level); err != nil {
			return err
		}
		stop, err := b.startAgent(ctx, conf)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
		places[i].c = client.New(conf["dataDir"].(string), conf["runDir"].(string))
	}
	size := max(clients, b.rounds)
	for round := range clientsRounds {
		att := func(i int) ipam.Attachment {
			return ipam.Attachment{Network: network, ContainerID: fmt.Sprintf("client-%d-%d", round, i), IfName: "eth0"}
		}
		for _, n := range rand.Perm(len(places)) {
			p := places[n]
			err := b.atOnce(p.name, "ADD", size, func(i int) error {
				got, err := p.c.Allocate(ctx, ipam.AllocateRequest{Attachment: att(i), Pool: cfg.Pool}, nil)
				if err == nil && len(got.Addresses) != 1 {
					err = fmt.Errorf("answer %+v", got)
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			err = b.atOnce(p.name, "DEL", size, func(i int) error {
				_, err := p.c.Release(ctx, ipam.ReleaseRequest{Attachment: att(i)}, nil)
				return err
			})
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	return nil
}

// atOnce makes n calls with all clients.
func (b *bench) atOnce(name, verb string, n int, call func(i int) error) error {
	took := make([]time.Duration, n)
	errs := make([]error, n)
	next := make(chan int)
	var all sync.WaitGroup
	start := time.Now()
	for range clients {
		all.Go(func() {
			for i := range next {
				began := time.Now()
				errs[i] = call(i)
				took[i] = time.Since(began)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
	b.report.recordWhole(sectionClients, name, verb, time.Since(start))
	b.report.record(sectionClients, name, verb, took...)
	return errors.Join(errs...)
}

// judgeAgent compares what was measured with the agent's budgets.
func (r *Report) judgeAgent(judge func(what string, limit float64, atLeast bool, measured float64)) {
	if without, with := r.find(sectionAgent, alone, "ADD"), r.find(sectionAgent, withAgent, "ADD"); without != nil && with != nil {
		judge("IPAM alone, ADD without an agent: x with one", 1.3, false, without.MedianMS/with.MedianMS)
	}
	few, many := r.find(sectionClients, heldFew, "ADD"), r.find(sectionClients, heldMany, "ADD")
	if few != nil && many != nil {
		judge("IPAM through the agent, 32 clients: allocations a second", 1000, true, few.PerSecond)
		judge("IPAM through the agent, 32 clients: p99 ms", 50, false, milliseconds(quantile(few.times, 0.99)))
		judge("IPAM through the agent, 32 clients: p50 at 60,000 held x 100 held", 1.2, false, many.MedianMS/few.MedianMS)
	}
}
