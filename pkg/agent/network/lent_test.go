package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/leases"
	"github.com/underlay-cni/underlay/pkg/agent/network/plan"
	"github.com/underlay-cni/underlay/pkg/agent/runfile"
	"github.com/underlay-cni/underlay/pkg/hostnet"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
)

// assignments are those of a file, as a shell or flannel's CNI plugin reads them.
func assignments(path string) map[string]string {
	out := make(map[string]string)
	text, _ := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		out[key] = value
	}
	return out
}

// lent is what the ledger lends, by address.
func (h *host) lent() string {
	h.t.Helper()
	blocks, err := h.l.Blocks(h.pool.UUID)
	must(h.t, err)
	var out []string
	for _, b := range blocks {
		if b.Lent != "" {
			out = append(out, b.CIDR.String())
		}
	}
	return strings.Join(out, " ")
}

// reader makes a bridge of what the file says, with a container on it, as
// flannel's CNI plugin does.
func (h *host) reader(path string) (container *netns.NS, four, six netip.Addr) {
	h.t.Helper()
	env := assignments(path)
	c := netnstest.New(h.t)
	h.ip("link add cni0 type bridge\nlink set cni0 addrgenmode none\nlink set cni0 up\naddr add fe80::1/64 dev cni0 nodad\naddr add " + env["FLANNEL_SUBNET"] + " dev cni0\naddr add " + env["FLANNEL_IPV6_SUBNET"] + " dev cni0 nodad")
	for _, key := range []string{"net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"} { // as the reference bridge does
		must(h.t, h.ns.Do(func() error { return os.WriteFile("/proc/sys/"+key, []byte("1"), 0o644) }))
	}
	four, six = netip.MustParsePrefix(env["FLANNEL_SUBNET"]).Addr(), netip.MustParsePrefix(env["FLANNEL_IPV6_SUBNET"]).Addr()
	h.ip(fmt.Sprintf("link add vethc type veth peer name eth0 netns /proc/%d/fd/%d\nlink set vethc master cni0 up", os.Getpid(), c.Fd()))
	netnstest.Batch(h.t, c, "ip", "link set eth0 up\naddr add "+four.Next().String()+"/26 dev eth0\naddr add "+six.Next().String()+"/122 dev eth0 nodad\nroute add default via "+four.String()+"\nroute add default via "+six.String())
	return c, four.Next(), six.Next()
}

// TestSubnetFile: whoever reads the file gives out the addresses of a block of his
// own, which peers route to; and the block comes back when he has gone.
func TestSubnetFile(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n1, n2 := b.host(), b.host()
	b.lease(n2.id(), "10.5.0.64/26")
	b.lease(n2.id(), "2001:db8:5::40/122")
	n2.start(noDrops)
	run := t.TempDir()
	path := filepath.Join(t.TempDir(), "flannel", "subnet.env")
	// A folder in its place keeps the file from being written, and nothing else.
	must(t, os.MkdirAll(filepath.Join(path, "x"), 0o755))
	lends := func(c *Config) {
		c.RunDir = run
		c.SubnetFile = &SubnetFile{Path: path, Network: "pods", IPMasq: true}
	}
	n1.start(lends, noDrops)
	await(t, "a block of each family is lent", "2", func() string { return string('0' + rune(len(strings.Fields(n1.lent())))) })
	lent := n1.lent()
	await(t, "the reason why there is no file", "true", func() string {
		n1.mu.Lock()
		defer n1.mu.Unlock()
		if n1.now.untold == nil {
			return "none"
		}
		return map[bool]string{true: "true"}[strings.Contains(n1.now.untold.Error(), "subnetFile \""+path+"\"")]
	})
	n1.stop() // the same as a kill between the two: nothing is done at the end
	must(t, os.RemoveAll(path))
	n1.start(lends, noDrops)
	await(t, "the file", "1500 true 10.5.0.0/16 2001:db8:5::/112", func() string {
		env := assignments(path)
		return strings.Join([]string{env["FLANNEL_MTU"], env["FLANNEL_IPMASQ"], env["FLANNEL_NETWORK"], env["FLANNEL_IPV6_NETWORK"]}, " ")
	})
	if got := n1.lent(); got != lent {
		t.Errorf("after a restart %s is lent, and %s was", got, lent)
	}
	env := assignments(path)
	for key, block := range map[string]string{"FLANNEL_SUBNET": strings.Fields(lent)[0], "FLANNEL_IPV6_SUBNET": strings.Fields(lent)[1]} {
		if got := netip.MustParsePrefix(env[key]); got.Masked().String() != block || got.Addr() != got.Masked().Addr().Next() {
			t.Errorf("%s=%s of the block %s", key, got, block)
		}
	}

	container, four, six := n1.reader(path)
	n1.ip("link set lo up")
	n2.ip("addr add 10.5.0.70/32 dev lo\naddr add 2001:db8:5::46/128 dev lo nodad")
	await(t, "the containers of the readers are reached by other nodes", "true", func() string {
		if !strings.Contains(n2.routes("141"), strings.Fields(lent)[0]+" via 192.0.2.1") || !strings.Contains(n2.routes("141"), strings.Fields(lent)[1]+" via 2001:db8::1") {
			return n2.routes("141")
		}
		return "true"
	})
	netnstest.Run(t, n2.ns, "ping", "-c1", "-W2", "-I", "10.5.0.70", four.String())
	netnstest.Run(t, container, "ping", "-c1", "-W2", "10.5.0.70")
	netnstest.Run(t, n2.ns, "ping", "-c1", "-W2", "-I", "2001:db8:5::46", six.String())
	if rules := netnstest.Run(t, n1.ns, "nft", "list", "table", "inet", "underlay"); !strings.Contains(rules, "masquerade") {
		t.Errorf("nothing is masqueraded:\n%s", rules)
	}

	n1.ip("link set eth1 mtu 1400")
	await(t, "another MTU", "1400", func() string { return assignments(path)["FLANNEL_MTU"] })
	must(t, os.Remove(path))
	n1.Stir()
	await(t, "the file is back", "1400", func() string { return assignments(path)["FLANNEL_MTU"] })

	// Without the key: not before all are gone who may use it.
	n1.stop()
	n1.start(noDrops, func(c *Config) { c.RunDir = run })
	still := func(when string) {
		t.Helper()
		asked := n1.asked.Load()
		await(t, "asked again, "+when, "true", func() string {
			n1.member.Stir()
			return fmt.Sprint(n1.asked.Load() >= asked+4) // twice for each block
		})
		if got := n1.lent(); got != lent {
			t.Errorf("%s: lent %q, want %q", when, got, lent)
		}
	}
	still("while the file is there")
	must(t, os.Remove(path))
	still("while the bridge is there")
	n1.ip("route add " + four.String() + "/32 dev eth1\nroute add " + six.String() + "/128 dev eth1\nlink del cni0")
	still("while routes lead to containers")
	n1.ip("route del " + four.String() + "/32 dev eth1\nroute del " + six.String() + "/128 dev eth1")
	await(t, "nothing is lent any more", "", func() string {
		n1.member.Stir()
		return n1.lent()
	})
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the file: %v", err)
	}
}

// TestSubnetFileMTU: the file tells what goes on the way to any peer, through VXLAN
// or not, by the smallest parent; where that is not known there is no file.
func TestSubnetFileMTU(t *testing.T) {
	t.Parallel()
	link := func(name string, mtu int, addr string) hostnet.Link {
		return hostnet.Link{Name: name, MTU: mtu, Up: true, Broadcast: true, Addrs: []hostnet.Addr{{Prefix: netip.MustParsePrefix(addr)}}}
	}
	wire, other, six := link("eth1", 1500, "192.0.2.1/24"), link("eth2", 9000, "198.51.100.1/24"), link("eth1", 1500, "2001:db8::1/64")
	for _, tt := range []struct {
		name    string
		backend string
		parents []string
		links   []hostnet.Link
		want    int
	}{
		{"direct", record.HostGW, []string{"eth1"}, []hostnet.Link{wire, other}, 1500},
		{"jumbo frames", record.HostGW, []string{"eth2"}, []hostnet.Link{wire, other}, 9000},
		{"the smaller of two", record.HostGW, []string{"eth2", "eth1"}, []hostnet.Link{wire, other}, 1500},
		{"VXLAN over IPv4", record.VXLAN, []string{"eth1"}, []hostnet.Link{wire}, 1450},
		{"VXLAN over IPv6", record.VXLAN, []string{"eth1"}, []hostnet.Link{six}, 1430},
		{"no parent", record.HostGW, []string{"eth9"}, []hostnet.Link{wire}, 0},
		{"VXLAN from nowhere", record.VXLAN, []string{"eth9"}, []hostnet.Link{wire}, 0},
	} {
		parents := make(map[string]Parent)
		for _, p := range tt.parents {
			parents[p] = Parent{Name: p}
		}
		d := newDesk(t, func(c *Config) { c.Parents = parents })
		now := round{state: hostnet.State{Links: tt.links}}
		n := plan.Network{Name: "pods", Backend: tt.backend, VNI: 7, Port: 8472}
		now.snapshot = &plan.Snapshot{Networks: []plan.Network{n}}
		now.plan = plan.Make(now.snapshot, now.state, d.parents.devs(now.state), d.probes.answer)
		if got := d.mtu(now, n); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

// TestSubnetFileMasq: whom the file tells that his packets are masqueraded does not
// do so himself, so it is not told where they are not.
func TestSubnetFileMasq(t *testing.T) {
	t.Parallel()
	run, path := t.TempDir(), filepath.Join(t.TempDir(), "subnet.env")
	must(t, runfile.Write(filepath.Join(run, "lent.json"), []leases.Lent{{Pool: "pods", Block: netip.MustParsePrefix("10.5.0.0/26"), To: path}}))
	d := newDesk(t, func(c *Config) {
		c.RunDir, c.SubnetFile = run, &SubnetFile{Path: path, Network: "pods", IPMasq: true}
	})
	now := round{
		state:    hostnet.State{Default: []string{"eth1"}, Links: []hostnet.Link{{Name: "eth1", MTU: 1500, Addrs: []hostnet.Addr{{Prefix: netip.MustParsePrefix("192.0.2.1/24")}}}}},
		snapshot: &plan.Snapshot{Networks: []plan.Network{{Name: "pods", Pool: "pods", Backend: record.HostGW}}},
		synced:   map[string]bool{"pods": true},
	}
	d.Task.rules.err = errors.New("there is no nft")
	if err := d.tell(now); err == nil || !strings.Contains(err.Error(), "ipMasq: there is no nft") {
		t.Errorf("without rules: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("without rules there is a file")
	}
	d.Task.rules.err = nil
	must(t, d.tell(now))
	if env := assignments(path); env["FLANNEL_IPMASQ"] != "true" || env["FLANNEL_SUBNET"] != "10.5.0.1/26" {
		t.Errorf("with rules: %v", env)
	}
	now.synced = nil
	must(t, os.Remove(path))
	must(t, d.tell(now))
	if _, err := os.Stat(path); err == nil {
		t.Error("there is a file before there are routes")
	}
}
