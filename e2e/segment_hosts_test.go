package e2e_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// pools of two tenants that have the same subnets.
const (
	redPool = `{"version": 1, "name": "red", "tenant": "red", "kind": "shared", "expectedNodes": 4,
		"ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]}`
	bluePool = `{"version": 1, "name": "blue", "tenant": "blue", "kind": "shared", "expectedNodes": 4,
		"ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]}`
)

// inSegment attaches a container to a tenant's segment, with an address of the
// tenant's pool.
func (m *member) inSegment(tenant string, vni int, name string) *attachment {
	m.t.Helper()
	return attach(m.t, m.Host, name, m.tenant(tenant, vni))
}

// tenant is the configuration of a tenant's segment.
func (m *member) tenant(tenant string, vni int) string {
	m.t.Helper()
	return chain(m.t, tenant, merged(segment(vni, nil), keys{"dataDir": m.DataDir, "runDir": m.RunDir}), keys{
		"type": "macvlan", "mode": "bridge", "dataDir": m.DataDir, "runDir": m.RunDir, "ipam": keys{"type": "underlay", "pool": tenant},
	})
}

// vxlanARP is what is asked for in VXLAN on the hosts' segment, of the addresses of
// containers.
func vxlanARP(c *lab.Capture) (out []string) {
	for _, f := range c.Frames() {
		const outer = 14 + 20 + 8 + 8
		if len(f.Raw) < outer+14 || f.Type() != lab.TypeIPv4 || f.Raw[23] != 17 || int(f.Raw[36])<<8|int(f.Raw[37]) != 8472 {
			continue
		}
		inner := lab.Frame{Raw: f.Raw[outer:]}
		if text := inner.String(); strings.Contains(text, "who-has") {
			out = append(out, text)
		}
	}
	return out
}

// TestSegmentOverHosts: containers of a tenant reach each other over hosts as soon
// as they are attached, without anybody being asked for, and those of another
// tenant with the same addresses are not there for them.
func TestSegmentOverHosts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.pool(redPool)
	c.pool(bluePool)
	h1, h2, h3 := c.hosts[0], c.hosts[1], c.hosts[2]
	r1 := h1.inSegment("red", 5001, "r1")
	b1 := h1.inSegment("blue", 5002, "b1")
	wire, err := h1.Capture(t.Context(), lab.Parent)
	if err != nil {
		t.Fatal(err)
	}
	r2 := h2.inSegment("red", 5001, "r2")
	b2 := h2.inSegment("blue", 5002, "b2")
	r3 := h3.inSegment("red", 5001, "r3")
	known := func(m *member, what string, endpoints int) {
		t.Helper()
		began := time.Now()
		eventually(t, what+" on "+m.Name, func() bool {
			out := ctl(t, m.Host, "segment", "show", "5001")
			return strings.Count(out, " local ")+strings.Count(out, " remote ") == endpoints
		})
		t.Logf("%s on %s: after %s", what, m.Name, time.Since(began).Round(time.Millisecond))
	}
	for _, m := range c.hosts {
		known(m, "three endpoints", 3)
	}
	meet(t, r1.station, r2.station)
	meet(t, r2.station, r3.station)
	meet(t, r1.station, r3.station)
	meet(t, b1.station, b2.station)
	for i, a := range r2.addrs {
		if out := ctl(t, h1.Host, "trace", r1.addrs[i].String(), a.String()); !strings.Contains(out, "VXLAN") || !strings.Contains(out, "node h2, VTEP 192.0.2.2, has "+a.String()) {
			t.Errorf("trace to %s:\n%s", a, out)
		}
	}
	if arp := vxlanARP(wire); len(arp) > 0 {
		t.Errorf("somebody asks for what is known:\n%s", strings.Join(arp, "\n"))
	}
	// What is for all comes to all of one tenant, on each host, and to nobody else;
	// so it is with who takes the address of somebody of the other.
	same, other := hearIn(t, r3), hearIn(t, b2)
	for _, frame := range shout(t, r1.station, "eth0") {
		heard(t, same, frame)
	}
	mustDo(t, b1.Namespace, "ip", "addr", "add", r2.addrs[0].String()+"/32", "dev", "eth0")
	forger := station{Namespace: b1.Namespace, addrs: r2.addrs[:1], mac: b1.mac}
	_, _ = forger.Exec(t.Context(), "ping", "-n", "-c", "2", "-W", "1", "-I", r2.addrs[0].String(), r1.addrs[0].String())
	for _, f := range other.Close() {
		if strings.Contains(f.String(), r1.mac) {
			t.Errorf("%s has heard of %s: %s", b2.ID, r1.ID, f)
		}
	}
	for _, f := range same.Close() {
		if strings.Contains(f.String(), b1.mac) {
			t.Errorf("%s has heard of %s: %s", r3.ID, b1.ID, f)
		}
	}
	meet(t, r1.station, r2.station)
	others := slices.Concat(r1.addrs, r2.addrs, r3.addrs)
	for _, b := range []*attachment{b1, b2} {
		if !slices.ContainsFunc(b.addrs, func(a netip.Addr) bool { return slices.Contains(others, a) }) {
			silent(t, r1.station, b.station)
		}
	}
	for _, a := range []*attachment{r1, r2, r3, b1, b2} {
		wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
	}

	// An agent that is killed leaves all as it is, and the next makes up for it.
	h2.end(syscall.SIGKILL)
	meet(t, r1.station, r2.station)
	r3.del()
	known(h1, "two endpoints", 2)
	c.start()
	known(h2, "two endpoints", 2)
	mustDo(t, h2.Namespace, "ip", "link", "del", "vx5001")
	eventually(t, "a device that is back", func() bool {
		return len(answered(t, r2.station, r1.station, time.Second)) == len(r1.addrs)
	})

	// The last one takes the segment along.
	for _, a := range []*attachment{r1, r2, b1, b2} {
		a.del()
	}
	for _, m := range c.hosts {
		wantSegments(t, m.Host)
		eventually(t, "no segments of "+m.Name, func() bool { return !strings.Contains(ctl(t, m.Host, "segment", "list"), "500") })
	}
}

// TestSegmentOrNetwork: one VNI is either a segment's or a network's, whichever was
// first.
func TestSegmentOrNetwork(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.pool(redPool)
	c.pool(podPool)
	h := c.hosts[0]
	r := h.inSegment("red", 5001, "r1")
	eventually(t, "published", func() bool {
		return strings.Contains(ctl(t, h.Host, "segment", "list", "-o", "json"), `"published": true`)
	})
	file := filepath.Join(t.TempDir(), "network.json")
	object := `{"version": 1, "name": "pods", "pool": "pods", "backend": "vxlan", "vni": 5001, "port": 4789}`
	if err := os.WriteFile(file, []byte(object), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := h.Exec(t.Context(), filepath.Join(ours, "underlayctl"), "--run-dir", h.RunDir, "network", "create", file)
	if said := fmt.Sprint(out, err); err == nil || !strings.Contains(said, `node "h1" has attachments in it`) {
		t.Errorf("a network with the VNI of a segment: %s", said)
	}
	c.network(strings.Replace(object, "5001", "5002", 1))
	_, rt := container(t, h.Host, "r2")
	_, err = h.CNI(ours).Add(t.Context(), h.tenant("red", 5002), rt)
	wantError(t, err, codeConfig, "vni: 5002", `network "pods"`)
	r.del()
}

// TestSegmentGuard: what a stranger sends in VXLAN gets into no segment, as long as
// the agent's rules are there.
func TestSegmentGuard(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	c.pool(redPool)
	h1, h2 := c.hosts[0], c.hosts[1]
	r1, r2 := h1.inSegment("red", 5001, "r1"), h2.inSegment("red", 5001, "r2")
	stranger, err := h1.lab.AddHost(t.Context(), "stranger", netip.MustParsePrefix("192.0.2.66/24"))
	if err != nil {
		t.Fatal(err)
	}
	const mac = "02:00:00:00:00:66"
	for _, line := range []string{
		"ip link add vx address " + mac + " type vxlan id 5001 dstport 8472 local 192.0.2.66 dev eth1",
		"ip addr add 10.9.0.250/24 dev vx", "ip link set vx up",
		"bridge fdb append 00:00:00:00:00:00 dev vx dst 192.0.2.1",
	} {
		mustDo(t, stranger.Namespace, strings.Fields(line)...)
	}
	table := func() string { return mustDo(t, h1.Namespace, "nft", "list", "ruleset") }
	eventually(t, "rules about VXLAN", func() bool {
		return strings.Contains(table(), "8472") && strings.Contains(table(), "192.0.2.2")
	})
	hears := func() bool {
		t.Helper()
		capture := hearIn(t, r1)
		_, _ = stranger.Exec(t.Context(), "ping", "-n", "-c", "2", "-W", "1", r1.addrs[0].String())
		return slices.ContainsFunc(capture.Close(), func(f lab.Frame) bool { return f.Src().String() == mac })
	}
	if hears() {
		t.Error("a stranger is heard in the segment")
	}
	meet(t, r1.station, r2.station)
	h1.end(syscall.SIGKILL)
	mustDo(t, h1.Namespace, "nft", "delete", "table", "inet", "underlay")
	if !hears() {
		t.Error("without rules a stranger is not heard either: that it is not with them shows nothing")
	}
	c.start()
	eventually(t, "rules about VXLAN again", func() bool { return strings.Contains(table(), "8472") })
	if hears() {
		t.Error("a stranger is heard again")
	}
}
