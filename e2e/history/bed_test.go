package history_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

const (
	hosts   = 3
	members = 3
	// soft has fewer addresses than all workers together want, so that nodes
	// ask each other.
	softPool = `{"version": 1, "name": "soft", "kind": "shared", "sticky": true, "blockPrefix": {"ipv4": 30}, "ranges": [
		[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.64", "rangeEnd": "192.0.2.107"}]]}`
	softSize = 44
	// strict keeps what it has for longer than any clock jumps.
	strictPool = `{"version": 1, "name": "strict", "kind": "shared", "sticky": "strict", "stickyFor": "100000h", "blockPrefix": {"ipv4": 30}, "ranges": [
		[{"subnet": "198.51.100.0/24", "rangeStart": "198.51.100.16", "rangeEnd": "198.51.100.31"}]]}`
	strictSize = 16
)

var strictNet = netip.MustParsePrefix("198.51.100.0/24")

// bed is a cluster: three members of etcd and three nodes on one switch.
type bed struct {
	t       *testing.T
	lab     *lab.Lab
	members []*process
	nodes   []*node
}

// process is a program on a host of its own, which is killed and started again.
type process struct {
	*lab.Host
	t    *testing.T
	argv []string
	env  []string
	log  *os.File

	mu   sync.Mutex
	cmd  *exec.Cmd // nil while it does not run
	over chan struct{}
	// doomed: it is to die at a fault point.
	doomed bool
}

// node is a host with an agent, and a clock.
type node struct {
	*process
	api   *api.Client
	clock string // file
	conf  func(pool string) string
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{t: t, lab: lab.Test(t)}
	etcd, err := exec.LookPath("etcd")
	if err != nil {
		t.Fatalf("%v; apt-get install etcd-server", err)
	}
	dir := t.TempDir()
	var endpoints, peers []string
	for i := range members {
		addr := fmt.Sprintf("http://192.0.2.%d", 11+i)
		endpoints, peers = append(endpoints, addr+":2379"), append(peers, fmt.Sprintf("e%d=%s:2380", i+1, addr))
	}
	for i := range members {
		p := b.process(dir, fmt.Sprintf("e%d", i+1), fmt.Sprintf("192.0.2.%d/24", 11+i))
		client, peer := endpoints[i], strings.SplitN(peers[i], "=", 2)[1]
		p.argv = []string{etcd, "--name=" + p.Name, "--data-dir=" + filepath.Join(dir, p.Name), "--initial-cluster=" + strings.Join(peers, ","),
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client, "--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer}
		b.members = append(b.members, p)
		p.start()
	}
	for i := range hosts {
		n := &node{process: b.process(dir, fmt.Sprintf("h%d", i+1), fmt.Sprintf("192.0.2.%d/24", 1+i))}
		n.api, n.clock = api.NewClient(n.RunDir), filepath.Join(dir, n.Name+".clock")
		t.Cleanup(n.api.Close)
		n.ahead(0)
		n.env = []string{"UNDERLAY_CLOCK=" + n.clock}
		conf := filepath.Join(dir, n.Name+".json")
		text, err := json.Marshal(map[string]any{"nodeName": n.Name, "dataDir": n.DataDir, "runDir": n.RunDir,
			"registry": map[string]any{"etcd": map[string]any{"endpoints": endpoints}}})
		if err == nil {
			err = os.WriteFile(conf, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		n.argv = []string{filepath.Join(bin, "underlayd"), "--config", conf}
		n.conf = func(pool string) string {
			return fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "lan", "type": "macvlan", "dataDir": %q, "runDir": %q, "ipam": {"type": "underlay", "pool": %q}}`,
				n.DataDir, n.RunDir, pool)
		}
		b.nodes = append(b.nodes, n)
		n.start()
	}
	b.ready(time.Minute)
	for _, pool := range []string{softPool, strictPool} {
		if _, err := b.nodes[0].api.CreatePool(t.Context(), []byte(pool)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// process makes a host with nothing on it yet.
func (b *bed) process(dir, name, addr string) *process {
	b.t.Helper()
	h, err := b.lab.AddHost(b.t.Context(), name, netip.MustParsePrefix(addr))
	if err != nil {
		b.t.Fatal(err)
	}
	p := &process{Host: h, t: b.t}
	if p.log, err = os.Create(filepath.Join(dir, name+".log")); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		p.end(syscall.SIGKILL)
		p.log.Close()
		if !b.t.Failed() {
			return
		}
		text, _ := os.ReadFile(p.log.Name())
		b.t.Logf("the end of what %s says:\n%s", p.Name, text[max(0, len(text)-6000):])
		if keep := os.Getenv("HISTORY_LOGS"); keep != "" {
			_ = os.WriteFile(filepath.Join(keep, p.Name+".log"), text, 0o600)
		}
	})
	return p
}

// start starts the program, unless it runs.
func (p *process) start(env ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return
	}
	cmd, over := exec.Command(p.argv[0], p.argv[1:]...), make(chan struct{})
	cmd.Env = append(append(os.Environ(), p.env...), env...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if err := p.Do(cmd.Start); err != nil {
		p.t.Errorf("start %s: %v", p.Name, err)
		return
	}
	p.cmd, p.over, p.doomed = cmd, over, len(env) > 0
	go func() {
		_ = cmd.Wait() // it was killed, most of the time
		close(over)
	}()
}

// signal sends a signal, if the program runs.
func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(s) // it may have died at a fault point
	}
}

// end sends a signal and waits for the end of the program, if it runs.
func (p *process) end(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	select {
	case <-p.over:
		if !p.doomed {
			p.t.Errorf("%s has ended by itself: %v", p.Name, p.cmd.ProcessState)
		}
	default:
		_ = p.cmd.Process.Signal(s)
	}
	select {
	case <-p.over:
	case <-time.After(time.Minute):
		p.t.Errorf("%s does not end after signal %q", p.Name, s)
		_ = p.cmd.Process.Kill()
		<-p.over
	}
	p.cmd = nil
}

// died reports whether the program has ended by itself within a time.
func (p *process) died(wait time.Duration) bool {
	p.mu.Lock()
	over := p.over
	p.mu.Unlock()
	select {
	case <-over:
		return true
	case <-time.After(wait):
		return false
	}
}

// cut takes a host off the switch, or puts it back.
func (b *bed) cut(p *process, off bool) {
	state := "up"
	if off {
		state = "down"
	}
	if _, err := b.lab.Switch.Exec(b.t.Context(), "ip", "link", "set", "dev", p.Name, state); err != nil {
		b.t.Error(err)
	}
}

// ahead sets a node's clock.
func (n *node) ahead(d time.Duration) {
	temp := n.clock + ".new"
	if err := errors.Join(os.WriteFile(temp, []byte(d.String()), 0o600), os.Rename(temp, n.clock)); err != nil {
		n.t.Error(err)
	}
}

// ready waits until all agents are.
func (b *bed) ready(patience time.Duration) {
	b.t.Helper()
	end := time.Now().Add(patience)
	for _, n := range b.nodes {
		for {
			r, err := n.api.Ready(b.t.Context())
			away, cerr := n.api.Cluster(b.t.Context())
			if err == nil && r.Ready && cerr == nil {
				break
			}
			if time.Now().After(end) {
				b.t.Fatalf("the agent of %s is not ready: %v, %+v; %v, %+v", n.Name, err, r, cerr, away)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}
