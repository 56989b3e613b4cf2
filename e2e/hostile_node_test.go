package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// writes are the keys that the agent of a node writes which is no operator's. Of all
// below /underlay/ it reads.
var writes = []string{"/underlay/live/", "/underlay/segment/", "/underlay/member/", "/underlay/vni/", "/underlay/v1/block/", "/underlay/v1/node/", "/underlay/v1/want/"}

// guarded starts an etcd on the host that knows two users: operator, who may change
// all that is ours, and node, who may change what a node has to.
func (m *member) guarded() {
	m.t.Helper()
	program, err := exec.LookPath("etcd")
	if err != nil {
		m.t.Fatalf("%v; apt-get install etcd-server", err)
	}
	const client, peer = "http://192.0.2.1:2379", "http://192.0.2.1:2380"
	cmd := exec.Command(program, "--name=test", "--data-dir="+m.etcd(), "--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=test="+peer)
	// It goes with the test, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.Do(cmd.Start); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	c := m.keys("", "")
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	for _, name := range []string{"root", "operator", "node"} {
		_, rerr := c.RoleAdd(ctx, name)
		_, uerr := c.UserAdd(ctx, name, "secret of "+name)
		_, gerr := c.UserGrantRole(ctx, name, name)
		if rerr != nil || uerr != nil || gerr != nil {
			m.t.Fatal(rerr, uerr, gerr)
		}
	}
	grant := func(role, prefix string, how clientv3.PermissionType) {
		if _, err := c.RoleGrantPermission(ctx, role, prefix, clientv3.GetPrefixRangeEnd(prefix), how); err != nil {
			m.t.Fatal(err)
		}
	}
	grant("operator", "/underlay/", clientv3.PermissionType(clientv3.PermReadWrite))
	grant("node", "/underlay/", clientv3.PermissionType(clientv3.PermRead))
	for _, prefix := range writes {
		grant("node", prefix, clientv3.PermissionType(clientv3.PermReadWrite))
	}
	if _, err := c.AuthEnable(ctx); err != nil {
		m.t.Fatal(err)
	}
}

// keys is a client of etcd's own, for what an agent does not do.
func (m *member) keys(user, password string) *clientv3.Client {
	m.t.Helper()
	// It dials on a thread of its own, which is not in the host's namespace.
	dial := grpc.WithContextDialer(func(context.Context, string) (c net.Conn, err error) {
		err = m.Do(func() error { c, err = net.Dial("tcp", "192.0.2.1:2379"); return err })
		return c, err
	})
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"192.0.2.1:2379"}, DialOptions: []grpc.DialOption{dial},
		Username: user, Password: password, Logger: zap.NewNop()})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c
}

// TestNodeRole: with a role of etcd a node leases, gives out and is reached, and can
// neither make nor change pools and networks. What it may write it may write for any
// node: that is what SECURITY.md says of one that was taken over.
func TestNodeRole(t *testing.T) {
	t.Parallel()
	user := func(m *member, name string) {
		m.configure(keys{"registry": keys{"etcd": keys{"endpoints": []string{"http://192.0.2.1:2379"}, "username": name, "password": "secret of " + name}}})
	}
	c := newCluster(t, 2, func(m *member) {
		if m.Name == "h1" {
			m.guarded()
			user(m, "operator")
			m.start(ours)
			m.ready()
		} else {
			user(m, "node")
		}
	})
	c.pool(redPool)
	h1, h2 := c.hosts[0], c.hosts[1]
	r1, r2 := h1.inSegment("red", 5001, "r1"), h2.inSegment("red", 5001, "r2")
	eventually(t, "two endpoints", func() bool {
		return len(answered(t, r2.station, r1.station, time.Second)) == len(r1.addrs)
	})
	file := func(object string) string {
		path := filepath.Join(t.TempDir(), "object.json")
		if err := os.WriteFile(path, []byte(object), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	before := ctl(t, h1.Host, "pool", "show", "red", "-o", "json")
	for _, args := range [][]string{
		{"pool", "create", file(bluePool)},
		{"pool", "update", file(strings.Replace(redPool, `"expectedNodes": 4`, `"expectedNodes": 8`, 1))},
		{"pool", "delete", "red"},
		{"network", "create", file(`{"version": 1, "name": "pods", "tenant": "red", "pool": "red", "backend": "hostgw"}`)},
	} {
		out, err := h2.Exec(t.Context(), append([]string{filepath.Join(ours, "underlayctl"), "--run-dir", h2.RunDir}, args...)...)
		if said := fmt.Sprint(out, err); err == nil || !strings.Contains(said, "permission denied") {
			t.Errorf("a node's %q: %s", args, said)
		}
	}
	if after := ctl(t, h1.Host, "pool", "show", "red", "-o", "json"); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	// Whoever has its password is not held to what an agent does.
	thief := h2.keys("node", "secret of node")
	blocks, err := thief.Get(t.Context(), "/underlay/v1/block/", clientv3.WithPrefix())
	if err != nil || len(blocks.Kvs) < 4 {
		t.Fatalf("blocks of two nodes: %v, %v", blocks, err)
	}
	for _, kv := range blocks.Kvs {
		if _, err := thief.Put(t.Context(), string(kv.Key), string(kv.Value)); err != nil {
			t.Errorf("a node does not write %s; SECURITY.md says that it does: %v", kv.Key, err)
		}
	}
	for _, key := range []string{"/underlay/v1/pool/red", "/underlay/v1/tenant/red", "/underlay/v1/gone/h1", "/underlay/v1/cluster", "/other"} {
		if _, err := thief.Put(t.Context(), key, "{}"); err == nil {
			t.Errorf("a node writes %s", key)
		}
	}
	r2.del()
	r1.del()
}

// TestForgedVTEP: VXLAN has no secret. Who can send on the hosts' segment with the
// address of a node gets into a segment, whatever the rules.
func TestForgedVTEP(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	c.pool(redPool)
	h1, h2 := c.hosts[0], c.hosts[1]
	r1 := h1.inSegment("red", 5001, "r1")
	h2.inSegment("red", 5001, "r2")
	eventually(t, "rules about VXLAN", func() bool {
		rules := mustDo(t, h1.Namespace, "nft", "list", "ruleset")
		return strings.Contains(rules, "8472") && strings.Contains(rules, "192.0.2.2")
	})
	stranger, err := h1.lab.AddHost(t.Context(), "stranger", netip.MustParsePrefix("192.0.2.66/24"))
	if err != nil {
		t.Fatal(err)
	}
	const mac = "02:00:00:00:00:66"
	device := func(local string) {
		for _, line := range []string{
			"ip link add vx address " + mac + " type vxlan id 5001 dstport 8472 local " + local + " dev eth1",
			"ip addr add 10.9.0.250/24 dev vx", "ip link set vx up",
			"bridge fdb append 00:00:00:00:00:00 dev vx dst 192.0.2.1",
		} {
			mustDo(t, stranger.Namespace, strings.Fields(line)...)
		}
	}
	gets := func() bool {
		t.Helper()
		return hears(t, r1.Namespace, "eth0", mac, func() {
			_, _ = stranger.Exec(t.Context(), "ping", "-n", "-c", "2", "-W", "1", r1.addrs[0].String())
		})
	}
	device("192.0.2.66")
	if gets() {
		t.Error("a stranger with an address of his own is heard")
	}
	// He has the node's address without telling anybody.
	mustDo(t, stranger.Namespace, "ip", "link", "del", "vx")
	mustDo(t, stranger.Namespace, "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=2", "net.ipv4.conf.eth1.arp_ignore=8")
	mustDo(t, stranger.Namespace, "ip", "addr", "add", "192.0.2.2/32", "dev", "lo")
	device("192.0.2.2")
	eventually(t, "a forged node is heard, as SECURITY.md says", gets)
}
