package e2e_test

import (
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const clusterPool = `{"version": 1, "name": "tenants", "kind": "shared", "sticky": true, "expectedNodes": 3, "ranges": [
	[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100", "rangeEnd": "192.0.2.199"}],
	[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::100", "rangeEnd": "2001:db8::1ff"}]]}`

// TestClusterHosts: three hosts draw from one pool, and go on without the agents and
// without the registry.
func TestClusterHosts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.pool(clusterPool)
	h1, h2, h3 := c.hosts[0], c.hosts[1], c.hosts[2]
	var all []*attachment
	seen := map[netip.Addr]string{}
	add := func(m *member, name string) *attachment {
		t.Helper()
		a := attach(t, m.Host, name, m.fromPool("tenants", nil))
		for _, addr := range a.addrs {
			if who := seen[addr]; who != "" {
				t.Errorf("%s has %s, which %s has already", a.ID, addr, who)
			}
			seen[addr] = a.ID
		}
		all = append(all, a)
		return a
	}
	for _, m := range c.hosts {
		add(m, "a")
		add(m, "b")
	}
	for _, a := range all[1:] {
		reaches(t, all[0].station, a.station)
	}
	for _, a := range all {
		wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
		wantOK(t, "STATUS", a.cni.Status(t.Context(), a.conf))
	}

	h2.end(syscall.SIGKILL) // an agent
	add(h2, "c")
	h1.end(syscall.SIGKILL) // the registry
	add(h3, "c")
	add(h1, "c")
	wantOK(t, "DEL without a registry", all[4].cni.Del(t.Context(), all[4].conf, all[4].rt))
	h3.end(syscall.SIGKILL)
	add(h3, "d")
	wantOK(t, "DEL without an agent", all[0].cni.Del(t.Context(), all[0].conf, all[0].rt))

	c.start()
	for _, m := range c.hosts {
		add(m, "e")
	}
	list := ctl(t, h2.Host, "lease", "list", "--pool", "tenants")
	for _, name := range []string{"h1", "h2", "h3"} {
		if !strings.Contains(list, name) {
			t.Errorf("underlayctl lease list has no %s:\n%s", name, list)
		}
	}
	if m := h3.fetch("/metrics"); !strings.Contains(m, "underlay_registry_connected 1") {
		t.Errorf("metrics:\n%s", m)
	}
}

// TestClusterPartition: an owner whose address is in use on a host that is cut
// off is told who has it, and gets it when that has let go.
func TestClusterPartition(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.pool(clusterPool)
	h2, h3 := c.hosts[1], c.hosts[2]
	pod := [][2]string{{"K8S_POD_NAMESPACE", "db"}, {"K8S_POD_NAME", "web-0"}}
	was := attach(t, h2.Host, "a", h2.fromPool("tenants", nil), pod...)
	time.Sleep(time.Second)
	h2.cut(true)
	_, rt := container(t, h3.Host, "a")
	rt.Args = pod
	conf := h3.fromPool("tenants", nil)
	_, err := h3.CNI(ours).Add(t.Context(), conf, rt)
	wantError(t, err, 11, "db/web-0", was.addrs[0].String(), `"h2"`)
	// The host that is cut off goes on meanwhile.
	attach(t, h2.Host, "b", h2.fromPool("tenants", nil))
	wantOK(t, "DEL while cut off", was.cni.Del(t.Context(), was.conf, was.rt))
	h2.cut(false)
	var moved []netip.Addr
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end) && err != nil; {
		result, aerr := h3.CNI(ours).Add(t.Context(), conf, rt)
		if err = aerr; err == nil {
			for _, ip := range result.IPs {
				a, _ := netip.AddrFromSlice(ip.Address.IP)
				moved = append(moved, a.Unmap())
			}
		}
	}
	if err != nil || !slices.Equal(moved, was.addrs) {
		t.Errorf("after that it has %v, want %v: %v", moved, was.addrs, err)
	}
}
