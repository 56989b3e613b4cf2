// Package cluster puts a cluster on a lab: members of etcd and nodes with an
// agent, each a process on a host of its own, which tests kill, freeze, cut off
// and start again. A node has a clock and a boot of its own, for programs that
// are built with fault points.
package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// Members of etcd: one may be missing.
const Members = 3

// Config of a Cluster.
type Config struct {
	// Bin is the folder of the programs; required.
	Bin string
	// Nodes is how many; required.
	Nodes int
	// IPv6: nodes have addresses of both families.
	IPv6 bool
	// Agent has more of underlayd.json.
	Agent map[string]any
	// Apart: an agent sees namespaces as on a machine of its own, where it is
	// init. It cannot die at a fault point then, since init is not killed from
	// within.
	Apart bool
	// Prepare, unless nil, is run for each node before its agent is started.
	Prepare func(*Node) error
	// Logs, unless "", is a folder that keeps what a failed test's programs said.
	Logs string
}

// Cluster is three members of etcd and some nodes on one switch.
type Cluster struct {
	Lab     *lab.Lab
	Members []*Process
	Nodes   []*Node

	t   testing.TB
	dir string
	Config
}

// Node is a host with an agent, a clock and a boot.
type Node struct {
	*Process
	API *api.Client

	clock, boot string // files
}

// Addr is the address of the n-th node, counted from 0, of each family.
func Addr(n int) [2]netip.Addr {
	return [2]netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", 1+n)), netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", 1+n))}
}

// New makes a cluster that goes with the test, and waits until it is ready. The
// nodes h1, h2 ... have the addresses of Addr, the members .11, .12, .13.
func New(t testing.TB, conf Config) *Cluster {
	t.Helper()
	c := &Cluster{t: t, Lab: lab.Test(t), Config: conf, dir: t.TempDir()}
	etcd, err := exec.LookPath("etcd")
	if err != nil {
		t.Fatalf("%v; apt-get install etcd-server", err)
	}
	var endpoints, peers []string
	for i := range Members {
		addr := fmt.Sprintf("http://192.0.2.%d", 11+i)
		endpoints, peers = append(endpoints, addr+":2379"), append(peers, fmt.Sprintf("e%d=%s:2380", i+1, addr))
	}
	for i := range Members {
		p := c.process(fmt.Sprintf("e%d", i+1), netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", 11+i)))
		client, peer := endpoints[i], strings.SplitN(peers[i], "=", 2)[1]
		p.argv = []string{etcd, "--name=" + p.Name, "--data-dir=" + filepath.Join(c.dir, p.Name), "--initial-cluster=" + strings.Join(peers, ","),
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client, "--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer}
		c.Members = append(c.Members, p)
		p.Start()
	}
	for i := range conf.Nodes {
		n, err := c.node(i, endpoints)
		if err == nil && conf.Prepare != nil {
			err = conf.Prepare(n)
		}
		if err != nil {
			t.Fatal(err)
		}
		c.Nodes = append(c.Nodes, n)
		n.Start()
	}
	c.Ready(time.Minute)
	return c
}

func (c *Cluster) node(i int, endpoints []string) (*Node, error) {
	addrs := []netip.Prefix{netip.PrefixFrom(Addr(i)[0], 24)}
	if c.IPv6 {
		addrs = append(addrs, netip.PrefixFrom(Addr(i)[1], 64))
	}
	n := &Node{Process: c.process(fmt.Sprintf("h%d", i+1), addrs...)}
	n.API, n.clock, n.boot = api.NewClient(n.RunDir), filepath.Join(c.dir, n.Name+".clock"), filepath.Join(c.dir, n.Name+".boot")
	c.t.Cleanup(n.API.Close)
	n.Ahead(0)
	n.Boot(1)
	n.Env = []string{"UNDERLAY_CLOCK=" + n.clock, "UNDERLAY_BOOT=" + n.boot}
	conf := map[string]any{"nodeName": n.Name, "dataDir": n.DataDir, "runDir": n.RunDir,
		"registry": map[string]any{"etcd": map[string]any{"endpoints": endpoints}}}
	maps.Copy(conf, c.Agent)
	text, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(c.dir, n.Name+".json")
	n.argv = []string{filepath.Join(c.Bin, "underlayd"), "--config", file}
	if c.Apart {
		n.argv = append([]string{"sh", "-c", `mount --make-rslave / && mount -t proc proc /proc && exec "$@"`, "sh"}, n.argv...)
		n.attr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	}
	return n, os.WriteFile(file, text, 0o600)
}

// process makes a host with nothing on it yet.
func (c *Cluster) process(name string, addrs ...netip.Prefix) *Process {
	c.t.Helper()
	h, err := c.Lab.AddHost(c.t.Context(), name, addrs...)
	if err != nil {
		c.t.Fatal(err)
	}
	p := &Process{Host: h, t: c.t}
	if p.log, err = os.Create(filepath.Join(c.dir, name+".log")); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		p.Signal(syscall.SIGCONT)
		p.End(syscall.SIGKILL)
		p.log.Close()
		if !c.t.Failed() {
			return
		}
		text, _ := os.ReadFile(p.log.Name())
		c.t.Logf("the end of what %s says:\n%s", p.Name, text[max(0, len(text)-6000):])
		if c.Logs != "" {
			_ = os.WriteFile(filepath.Join(c.Logs, p.Name+".log"), text, 0o600)
		}
	})
	return p
}

// Ahead sets the node's clock.
func (n *Node) Ahead(d time.Duration) { n.set(n.clock, d.String()) }

// Boot numbers the node's boot.
func (n *Node) Boot(number int) { n.set(n.boot, fmt.Sprintf("boot-%d-of-%s", number, n.ID)) }

func (n *Node) bootID() (string, error) {
	text, err := os.ReadFile(n.boot)
	return string(text), err
}

func (n *Node) set(file, text string) {
	fresh := file + ".new"
	if err := errors.Join(os.WriteFile(fresh, []byte(text), 0o600), os.Rename(fresh, file)); err != nil {
		n.t.Error(err)
	}
}

// Ready waits until all agents are.
func (c *Cluster) Ready(patience time.Duration) {
	c.t.Helper()
	end := time.Now().Add(patience)
	for _, n := range c.Nodes {
		for {
			r, err := n.API.Ready(c.t.Context())
			away, cerr := n.API.Cluster(c.t.Context())
			if err == nil && r.Ready && cerr == nil {
				break
			}
			if time.Now().After(end) {
				c.t.Fatalf("the agent of %s is not ready: %v, %+v; %v, %+v", n.Name, err, r, cerr, away)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}
