package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// within tries f until it has nothing to say, or half a minute is over.
func within(t *testing.T, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// agree: what the registry says that a node has is what its ledger has. It ends
// the agents: until then something is always under way.
func (c *cluster) agree() {
	c.t.Helper()
	within(c.t, func() error {
		for _, m := range c.hosts {
			d, err := m.api.Node(c.t.Context())
			if err != nil {
				return err
			}
			m.uuid = d.Ledger.ID
		}
		for _, m := range c.hosts[1:] {
			m.end(syscall.SIGTERM)
		}
		// What they did on the way is in the registry by now.
		leases, err := c.hosts[0].api.Leases(c.t.Context(), api.LeaseFilter{})
		if err != nil {
			return err
		}
		c.hosts[0].end(syscall.SIGTERM)
		defer c.start()
		for _, m := range c.hosts {
			err = errors.Join(err, m.agrees(leases))
		}
		return err
	})
}

func (m *member) agrees(leases []api.Lease) (err error) {
	l, err := ledger.Open(m.t.Context(), ledger.Options{DataDir: m.DataDir, RunDir: m.RunDir, ReadOnly: true})
	if err != nil {
		return err
	}
	defer l.Close()
	for _, x := range leases {
		b, err := l.Book(x.PoolUUID, x.CIDR)
		if err != nil {
			return err
		}
		for a := x.CIDR.Addr(); x.CIDR.Contains(a); a = a.Next() {
			owner := x.Owner
			for _, g := range x.Given {
				if g.Address == a {
					owner = g.Node
				}
			}
			if has := owner != nil && owner.Node == m.uuid; has != b.Usable(a) {
				return fmt.Errorf("%s: by the registry %s has %s: %v, by its ledger %v", x.CIDR, m.Name, a, has, b.Usable(a))
			}
		}
	}
	return nil
}

// use is all that a runtime does with one container.
func use(t *testing.T, m *member, name string) {
	t.Helper()
	a := attach(t, m.Host, name, m.fromPool("tenants", nil))
	wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
	wantOK(t, "DEL", a.cni.Del(t.Context(), a.conf, a.rt))
	b := attach(t, m.Host, name+"b", m.fromPool("tenants", nil))
	wantOK(t, "GC", b.cni.GC(t.Context(), b.conf))
}

// TestClusterAlone: what a host leases is its own, with agent and registry, without
// either, and without both on a full disk.
func TestClusterAlone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, func(m *member) {
		if m.Name == "h2" {
			small(t, m.DataDir)
		}
	})
	c.pool(clusterPool)
	h1, h2 := c.hosts[0], c.hosts[1]
	use(t, h2, "first")

	h2.end(syscall.SIGTERM)
	use(t, h2, "noagent")
	c.start()
	h1.end(syscall.SIGTERM)
	use(t, h2, "noregistry")
	kept := attach(t, h2.Host, "kept", h2.fromPool("tenants", nil))
	gone := attach(t, h2.Host, "gone", h2.fromPool("tenants", nil))

	h2.end(syscall.SIGKILL)
	full := filepath.Join(h2.DataDir, "full")
	if err := os.WriteFile(full, make([]byte, 64<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	wantOK(t, "DEL on a full disk", gone.cni.Del(t.Context(), gone.conf, gone.rt))
	wantOK(t, "CHECK on a full disk", kept.cni.Check(t.Context(), kept.conf, kept.rt))
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	c.start()
	wantOK(t, "CHECK", kept.cni.Check(t.Context(), kept.conf, kept.rt))
	held, err := h2.api.Addresses(t.Context(), api.AddressFilter{State: ipam.Held})
	if err != nil || len(held) != 2 || held[0].Attachment.ContainerID != kept.ID {
		t.Errorf("%s holds %+v, want %v: %v", h2.Name, held, kept.addrs, err)
	}
	c.agree()
}

// small puts a file system of 32 MiB at a folder.
func small(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=32m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestClusterRestored: a registry that was restored from a backup is noticed, and
// given out is nothing but what is leased until an operator has said how to go on.
func TestClusterRestored(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.pool(`{"version": 1, "name": "tenants", "kind": "shared", "blockPrefix": {"ipv4": 31, "ipv6": 127}, "ranges": [
		[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100", "rangeEnd": "192.0.2.131"}],
		[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::100", "rangeEnd": "2001:db8::11f"}]]}`)
	h1 := c.hosts[0]
	seen := map[netip.Addr]string{}
	add := func(n int) {
		t.Helper()
		m := c.hosts[n%3]
		a := attach(t, m.Host, fmt.Sprint("c", n), m.fromPool("tenants", nil))
		for _, addr := range a.addrs {
			if who := seen[addr]; who != "" {
				t.Errorf("%s has %s, which %s has already", a.ID, addr, who)
			}
			seen[addr] = a.ID
		}
	}
	for n := range 6 {
		add(n)
	}
	time.Sleep(time.Second)
	h1.end(syscall.SIGTERM)
	backup := filepath.Join(t.TempDir(), "backup")
	mustDo(t, h1.Namespace, "cp", "-a", h1.etcd(), backup)
	c.start()
	for n := 6; n < 15; n++ {
		add(n)
	}
	h1.end(syscall.SIGTERM)
	mustDo(t, h1.Namespace, "rm", "-rf", h1.etcd())
	mustDo(t, h1.Namespace, "cp", "-a", backup, h1.etcd())
	h1.start(ours)
	within(t, func() error {
		v, err := h1.api.Cluster(t.Context())
		if err == nil && v.Frozen == nil {
			err = errors.New("the registry is not frozen")
		}
		return err
	})
	if out := ctl(t, h1.Host, "registry", "status"); !strings.Contains(out, "frozen") && !strings.Contains(out, "Frozen") {
		t.Errorf("underlayctl registry status:\n%s", out)
	}
	ctl(t, h1.Host, "registry", "recovered", "--yes")
	within(t, func() error {
		v, err := h1.api.Cluster(t.Context())
		if err == nil && (v.Frozen != nil || len(v.Waiting) > 0) {
			err = fmt.Errorf("frozen %v, waiting for %v", v.Frozen, v.Waiting)
		}
		return err
	})
	for n := 15; n < 32; n++ {
		add(n)
	}
	c.agree()
}

// TestClusterLost: a host that has lost its ledger gives out nothing; one that
// was made anew of the live containers goes on with what the host leases.
func TestClusterLost(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	c.pool(clusterPool)
	h2 := c.hosts[1]
	// The machine has other labs' containers, too.
	conf := h2.fromPool("tenants", keys{"name": h2.ID})
	kept := attach(t, h2.Host, "kept", conf)
	before, err := h2.api.Node(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h2.end(syscall.SIGKILL)
	if err := os.Remove(filepath.Join(h2.DataDir, "ledger.db")); err != nil {
		t.Fatal(err)
	}
	h2.start(ours)
	_, rt := container(t, h2.Host, "next")
	_, err = h2.CNI(ours).Add(t.Context(), conf, rt)
	wantError(t, err, 104, "ledger.db", "underlayctl ledger rebuild")
	ctl(t, h2.Host, "ledger", "rebuild", "--network", h2.ID)
	within(t, func() error {
		_, err := h2.CNI(ours).Add(t.Context(), conf, rt)
		return err
	})
	h2.ready()
	wantOK(t, "CHECK", kept.cni.Check(t.Context(), kept.conf, kept.rt))
	after, err := h2.api.Node(t.Context())
	if err != nil || after.Ledger.ID != before.Ledger.ID {
		t.Errorf("the host was node %s, and is %s: %v", before.Ledger.ID, after.Ledger.ID, err)
	}
	held, err := h2.api.Addresses(t.Context(), api.AddressFilter{State: ipam.Held})
	if err != nil || len(held) != 4 {
		t.Errorf("held: %+v, %v", held, err)
	}
	for _, r := range held {
		if r.Pool != "tenants" || r.PoolUUID == "" {
			t.Errorf("%s is on record as of pool %q, UUID %q", r.Address, r.Pool, r.PoolUUID)
		}
	}
	wantOK(t, "DEL", kept.cni.Del(t.Context(), kept.conf, kept.rt))
	c.agree()
}
