package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
)

const (
	podPool = `{"version": 1, "name": "pods", "kind": "routed", "expectedNodes": 3,
		"ranges": [[{"subnet": "10.5.0.0/16"}], [{"subnet": "fd00:5::/64"}]]}`
	podNetwork = `{"version": 1, "name": "pods", "pool": "pods", "backend": "hostgw"}`
)

// newPeers is a cluster whose containers are routed from host to host.
func newPeers(t *testing.T, hosts int) *cluster {
	t.Helper()
	c := newCluster(t, hosts, func(m *member) { m.configure(keys{"parents": keys{"lan": keys{"name": lab.Parent}}}) })
	c.pool(podPool)
	c.network(podNetwork)
	return c
}

// configure adds keys to the agent's configuration.
func (m *member) configure(more keys) {
	m.t.Helper()
	text, err := os.ReadFile(m.conf)
	var conf keys
	if err == nil {
		err = json.Unmarshal(text, &conf)
	}
	if err == nil {
		text, err = json.Marshal(merged(conf, more))
	}
	if err == nil {
		err = os.WriteFile(m.conf, text, 0o600)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// network makes a network, by underlayctl on the first host.
func (c *cluster) network(object string) {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), "network.json")
	if err := os.WriteFile(file, []byte(object), 0o600); err != nil {
		c.t.Fatal(err)
	}
	ctl(c.t, c.hosts[0].Host, "network", "create", file)
}

// pod attaches a container to the routed network.
func (m *member) pod(name string, more keys) *attachment {
	m.t.Helper()
	return attach(m.t, m.Host, name, m.fromPool("pods", merged(keys{"name": "pods", "type": "hostgw"}, more)))
}

// peerRoutes are the routes of a family that the agent has made to other hosts.
func (m *member) peerRoutes(family int) []string {
	m.t.Helper()
	var out []string
	for line := range strings.Lines(mustDo(m.t, m.Namespace, "ip", fmt.Sprint("-", family), "route", "show", "proto", "141", "type", "unicast")) {
		out = append(out, strings.TrimSpace(line))
	}
	return out
}

// routesTo waits until the host has a route of each family by way of each of
// the addresses, and no others.
func (m *member) routesTo(vias ...string) {
	m.t.Helper()
	for _, family := range []int{4, 6} {
		want := map[string]bool{}
		for _, v := range vias {
			if netip.MustParseAddr(v).Is4() == (family == 4) {
				want[v] = true
			}
		}
		eventually(m.t, fmt.Sprintf("routes of %s by way of %v", m.Name, vias), func() bool {
			got := map[string]bool{}
			for _, r := range m.peerRoutes(family) {
				_, rest, _ := strings.Cut(r, " via ")
				via, _, _ := strings.Cut(rest, " ")
				got[via] = true
			}
			if len(got) != len(want) {
				return false
			}
			for v := range want {
				if !got[v] {
					return false
				}
			}
			return true
		})
	}
}

// TestPeers: containers on three hosts reach each other and the hosts, by routes
// alone.
func TestPeers(t *testing.T) {
	t.Parallel()
	c := newPeers(t, 3)
	h1, h2, h3 := c.hosts[0], c.hosts[1], c.hosts[2]
	a, b := h1.pod("a", nil), h1.pod("b", nil)
	d, e := h2.pod("d", nil), h3.pod("e", keys{"bridge": "ul0"})
	h1.routesTo("192.0.2.2", "192.0.2.3", "2001:db8::2", "2001:db8::3")
	meet(t, a.station, b.station)
	meet(t, a.station, d.station)
	meet(t, d.station, e.station)
	for _, host := range []*member{h1, h2, h3} {
		meet(t, a.station, hostStation(t, host.Host))
		meet(t, e.station, hostStation(t, host.Host))
	}
	for _, p := range []*attachment{a, b, d, e} {
		wantOK(t, "CHECK", p.cni.Check(t.Context(), p.conf, p.rt))
		wantOK(t, "STATUS", p.cni.Status(t.Context(), p.conf))
	}
	list := ctl(t, h1.Host, "peer", "list")
	for _, want := range []string{"h2", "h3", "192.0.2.2", "direct"} {
		if !strings.Contains(list, want) {
			t.Errorf("underlayctl peer list has no %s:\n%s", want, list)
		}
	}
	// What is in the host's own block, and nowhere, is not passed on.
	stray := a.addrs[0].Next().Next().Next()
	if out, err := d.Exec(t.Context(), "ping", "-n", "-c", "1", "-W", "2", stray.String()); err == nil || !strings.Contains(out, "Unreachable") {
		t.Errorf("ping of %s, which nobody has: %v\n%s", stray, err, out)
	}
	a.del()
	b.del()
}

// TestPeersRepair: what others delete comes back, and what is theirs stays.
func TestPeersRepair(t *testing.T) {
	t.Parallel()
	c := newPeers(t, 2)
	h1, h2 := c.hosts[0], c.hosts[1]
	a, b := h1.pod("a", keys{"ipMasq": true}), h2.pod("b", nil)
	peers := []string{"192.0.2.2", "2001:db8::2"}
	h1.routesTo(peers...)
	mustDo(t, h1.Namespace, "ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.2")
	mustDo(t, h1.Namespace, "nft", "add", "table", "inet", "other")
	const table = "inet underlay"
	ruleset := func() string { return mustDo(t, h1.Namespace, "nft", "list", "ruleset") }
	eventually(t, "a rule that masquerades", func() bool {
		s := ruleset()
		return strings.Contains(s, "table "+table) && strings.Contains(s, "masquerade")
	})
	for _, damage := range []struct {
		name string
		do   func()
	}{
		{"a route is deleted", func() {
			for i, family := range []int{4, 6} {
				for _, r := range h1.peerRoutes(family) {
					mustDo(t, h1.Namespace, "ip", []string{"-4", "-6"}[i], "route", "del", strings.Fields(r)[0], "proto", "141")
				}
			}
		}},
		{"the table is deleted", func() { mustDo(t, h1.Namespace, "nft", "delete", "table", "inet", "underlay") }},
		{"the parent's address goes and comes", func() {
			for _, verb := range []string{"del", "add"} {
				mustDo(t, h1.Namespace, "ip", "addr", verb, "192.0.2.1/24", "dev", lab.Parent)
			}
		}},
		{"the parent goes down and up", func() {
			mustDo(t, h1.Namespace, "ip", "link", "set", "dev", lab.Parent, "down")
			mustDo(t, h1.Namespace, "ip", "link", "set", "dev", lab.Parent, "up")
			// The kernel forgets these with the link.
			mustDo(t, h1.Namespace, "ip", "addr", "replace", "2001:db8::1/64", "dev", lab.Parent, "nodad")
			mustDo(t, h1.Namespace, "ip", "route", "replace", "198.51.100.0/24", "via", "192.0.2.2")
		}},
	} {
		damage.do()
		h1.routesTo(peers...)
		eventually(t, damage.name+": the table", func() bool { return strings.Contains(ruleset(), "table "+table) })
		meet(t, a.station, b.station)
		if t.Failed() {
			t.Fatal(damage.name)
		}
	}
	if out := mustDo(t, h1.Namespace, "ip", "route", "show", "198.51.100.0/24"); !strings.Contains(out, "192.0.2.2") {
		t.Errorf("somebody else's route: %q", out)
	}
	if !strings.Contains(ruleset(), "table inet other") {
		t.Error("somebody else's table is gone")
	}
}

// TestPeersLife: agents die and come back while packets flow, hosts get another
// address, and one is removed.
func TestPeersLife(t *testing.T) {
	t.Parallel()
	c := newPeers(t, 3)
	h1, h2, h3 := c.hosts[0], c.hosts[1], c.hosts[2]
	a, b := h1.pod("a", nil), h2.pod("b", nil)
	h3.pod("c", nil)
	h1.routesTo("192.0.2.2", "2001:db8::2", "192.0.2.3", "2001:db8::3")
	meet(t, a.station, b.station)

	lost := make(chan string, 1)
	go func() {
		out, _ := a.Exec(t.Context(), "ping", "-n", "-q", "-i", "0.02", "-c", "250", "-W", "2", b.addrs[0].String())
		lost <- out
	}()
	time.Sleep(500 * time.Millisecond)
	h1.end(syscall.SIGKILL)
	h2.end(syscall.SIGTERM)
	c.start()
	if out := <-lost; !strings.Contains(out, "250 received") {
		t.Errorf("two agents were ended and started again:\n%s", out)
	}

	// One comes back with another address.
	h2.end(syscall.SIGKILL)
	mustDo(t, h2.Namespace, "ip", "addr", "del", "192.0.2.2/24", "dev", lab.Parent)
	mustDo(t, h2.Namespace, "ip", "addr", "add", "192.0.2.22/24", "dev", lab.Parent)
	c.start()
	h1.routesTo("192.0.2.22", "2001:db8::2", "192.0.2.3", "2001:db8::3")
	meet(t, a.station, b.station)

	// One starts while the registry is away, and has blocks and routes.
	h1.end(syscall.SIGKILL)
	h2.end(syscall.SIGKILL)
	h2.start(ours)
	h2.ready()
	meet(t, a.station, h2.pod("late", nil).station)
	c.start()

	// One dies for good.
	h3.end(syscall.SIGKILL)
	eventually(t, "h3 is heard of no more", func() bool {
		return strings.Contains(ctl(t, h1.Host, "node", "show", "h3"), "silent")
	})
	ctl(t, h1.Host, "node", "remove", "h3", "--rest", "0s", "--yes-it-is-off")
	h1.routesTo("192.0.2.22", "2001:db8::2")
	h2.routesTo("192.0.2.1", "2001:db8::1")
}
