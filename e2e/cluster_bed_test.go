package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
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

// cluster is hosts on one switch with an agent each; the first one's agent
// embeds the registry.
type cluster struct {
	t     *testing.T
	hosts []*member
}

// member is a host with its agent, which runs in the host's namespace and so
// reaches the registry over the switch.
type member struct {
	*lab.Host
	t    *testing.T
	lab  *lab.Lab
	conf string // file of the agent's configuration
	api  *api.Client
	uuid string // of its ledger

	mu  sync.Mutex
	cmd *exec.Cmd // nil while it does not run
	log *os.File
}

// newCluster makes hosts h1, h2 ... with addresses 192.0.2.1, .2 ..., prepares
// them, and starts their agents.
func newCluster(t *testing.T, hosts int, prepare ...func(*member)) *cluster {
	t.Helper()
	l := lab.Test(t)
	c := &cluster{t: t}
	for i := range hosts {
		n := i + 1
		addr := netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n))
		h, err := l.AddHost(t.Context(), fmt.Sprint("h", n), netip.PrefixFrom(addr, 24), netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", n)))
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		m := &member{Host: h, t: t, lab: l, conf: filepath.Join(dir, "underlayd.json"), api: api.NewClient(h.RunDir)}
		if m.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
			t.Fatal(err)
		}
		registry := keys{"etcd": keys{"endpoints": []string{"http://192.0.2.1:2379"}}}
		if i == 0 {
			registry = keys{"embedded": keys{"dataDir": m.etcd(), "listen": "192.0.2.1:2379"}}
		}
		text, err := json.Marshal(keys{"nodeName": h.Name, "dataDir": h.DataDir, "runDir": h.RunDir, "registry": registry})
		if err == nil {
			err = os.WriteFile(m.conf, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		c.hosts = append(c.hosts, m)
		t.Cleanup(func() {
			m.end(syscall.SIGKILL)
			m.api.Close()
			if t.Failed() {
				b, _ := os.ReadFile(m.log.Name())
				t.Logf("agent of %s:\n%s", m.Name, lastLines(b, 30))
			}
			m.log.Close()
		})
	}
	for _, m := range c.hosts {
		for _, f := range prepare {
			f(m)
		}
	}
	c.start()
	return c
}

// start starts the agents that do not run, and waits until all are ready.
func (c *cluster) start() {
	c.t.Helper()
	for _, m := range c.hosts {
		m.start(ours)
	}
	for _, m := range c.hosts {
		m.ready()
	}
}

func lastLines(b []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// start starts the host's agent, unless it runs.
func (m *member) start(bin string, env ...string) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		return
	}
	m.cmd = exec.Command(filepath.Join(bin, "underlayd"), "--config", m.conf)
	m.cmd.Env = append(os.Environ(), env...)
	m.cmd.Stderr = m.log
	if err := m.Do(m.cmd.Start); err != nil {
		m.t.Fatal(err)
	}
}

// etcd is the folder of the registry, of the host that has it.
func (m *member) etcd() string { return filepath.Join(filepath.Dir(m.DataDir), "etcd") }

// end sends a signal and waits for the end of the process, if there is one.
func (m *member) end(s syscall.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Signal(s)
	_ = m.cmd.Wait()
	m.cmd = nil
}

// ready waits until the agent is, its registry too.
func (m *member) ready() {
	m.t.Helper()
	var why error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		r, err := m.api.Ready(m.t.Context())
		if err == nil && r.Ready {
			return
		}
		why = errors.Join(err, fmt.Errorf("%+v", r))
	}
	m.t.Fatalf("the agent of %s is not ready: %v", m.Name, why)
}

// cut takes the host off the switch, or puts it back. Its containers go with it.
func (m *member) cut(off bool) {
	m.t.Helper()
	state := "up"
	if off {
		state = "down"
	}
	mustDo(m.t, m.lab.Switch, "ip", "link", "set", "dev", m.Name, state)
}

// pool makes a cluster pool, by underlayctl on the first host.
func (c *cluster) pool(object string) {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), "pool.json")
	if err := os.WriteFile(file, []byte(object), 0o600); err != nil {
		c.t.Fatal(err)
	}
	ctl(c.t, c.hosts[0].Host, "pool", "create", file)
}

// fromPool is the configuration of a network with addresses of a cluster pool.
func (m *member) fromPool(name string, more keys) string {
	m.t.Helper()
	conf := keys{"ipam": json.RawMessage(`{"type": "underlay", "pool": "` + name + `"}`)}
	for k, v := range more {
		conf[k] = v
	}
	return lan(m.t, m.Host, conf)
}

// fetch reads a document of the agent's API over its socket.
func (m *member) fetch(path string) string {
	m.t.Helper()
	c, err := net.Dial("unix", filepath.Join(m.RunDir, api.SocketName))
	if err != nil {
		m.t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", path)
	var b bytes.Buffer
	if _, err := b.ReadFrom(c); err != nil {
		m.t.Fatal(err)
	}
	return b.String()
}
