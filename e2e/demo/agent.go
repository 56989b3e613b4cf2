package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// registryAt is where the agent of the first host serves the registry.
const registryAt = "192.0.2.1:2379"

// poolObject is what the registry is told of the pool.
const poolObject = `{"version": 1, "name": "lan", "kind": "shared", "expectedNodes": 3, "ranges": [
	[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100", "rangeEnd": "192.0.2.199"}],
	[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::100", "rangeEnd": "2001:db8::1ff"}]]}`

// startAgent starts the underlayd of a host, in its namespace.
func (d *demo) startAgent(h *lab.Host) error {
	folder := filepath.Dir(h.DataDir)
	registry := map[string]any{"etcd": map[string]any{"endpoints": []string{"http://" + registryAt}}}
	if h == d.hosts[0] {
		registry = map[string]any{"embedded": map[string]any{"dataDir": filepath.Join(folder, "etcd"), "listen": registryAt}}
	}
	conf, err := json.Marshal(map[string]any{"nodeName": h.Name, "dataDir": h.DataDir, "runDir": h.RunDir, "registry": registry,
		"parents": map[string]any{"lan": map[string]any{"name": lab.Parent}}})
	if err != nil {
		return err
	}
	file := filepath.Join(folder, "underlayd.json")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(folder, "underlayd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(d.bin, "underlayd"), "--config", file)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // KEEP=1 leaves it running
	if err := h.Do(cmd.Start); err != nil {
		return err
	}
	d.agents[h] = cmd
	return nil
}

// killAgent has the host's agent die as if by accident.
func (d *demo) killAgent(h *lab.Host) error {
	cmd := d.agents[h]
	delete(d.agents, h)
	if cmd == nil {
		return nil
	}
	err := cmd.Process.Kill()
	_ = cmd.Wait() // says that it was killed
	return err
}

func (d *demo) startAgents(ctx context.Context) error {
	for _, h := range d.hosts {
		if d.agents[h] == nil {
			if err := d.startAgent(h); err != nil {
				return err
			}
		}
	}
	for _, h := range d.hosts {
		if err := ready(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

func ready(ctx context.Context, h *lab.Host) error {
	c := api.NewClient(h.RunDir)
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		r, err := c.Ready(ctx)
		if err == nil && r.Ready {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the agent of %s is not ready: %+v", h.Name, r), err)
		}
	}
}

func (d *demo) killAgents() (err error) {
	for h := range d.agents {
		err = errors.Join(err, d.killAgent(h))
	}
	return err
}

// createPool tells the registry of the pool, as an operator would.
func (d *demo) createPool(ctx context.Context) error {
	return d.create(ctx, "pool", poolObject)
}

// create makes an object of the registry.
func (d *demo) create(ctx context.Context, noun, object string) error {
	file := filepath.Join(filepath.Dir(d.hosts[0].DataDir), noun+".json")
	if err := os.WriteFile(file, []byte(object), 0o600); err != nil {
		return err
	}
	_, err := d.hosts[0].Exec(ctx, d.underlayctl(d.hosts[0], noun, "create", file)...)
	return err
}

// printLeases shows who leases which blocks of the pool.
func (d *demo) printLeases(ctx context.Context) error {
	d.title("Who leases what (underlayctl lease list --pool lan)")
	out, err := d.hosts[1].Exec(ctx, d.underlayctl(d.hosts[1], "lease", "list", "--pool", "lan")...)
	for line := range strings.Lines(out) {
		fmt.Fprint(d.out, "  ", line)
	}
	return err
}
