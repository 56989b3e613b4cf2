package segment

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/pkg/agent/cluster"
	"github.com/underlay-cni/underlay/pkg/flock"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const vni = 7

// bed is a registry, and a switch with hosts.
type bed struct {
	t     testing.TB
	store *memstore.Store
	reg   registry.Registry
	wire  *netns.NS
	hosts []*host
}

// host is a namespace on the switch, with the tasks of an agent.
type host struct {
	*bed
	name   string
	ns     *netns.NS
	l      *ledger.Ledger
	runDir string
	log    io.Writer
	*Task
	metrics *prometheus.Registry
	stop    func()
}

func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{t: t, store: memstore.New(), wire: netnstest.New(t)}
	b.reg = registry.Registry{Store: b.store}
	_, err := b.reg.Open(t.Context())
	must(t, err)
	netnstest.Batch(t, b.wire, "ip", "link add br0 type bridge mcast_snooping 0\nlink set br0 addrgenmode none\nlink set br0 up")
	return b
}

// host adds one, n<i>, whose eth1 has 192.0.2.<i>/24.
func (b *bed) host() *host {
	b.t.Helper()
	i := len(b.hosts) + 1
	h := &host{bed: b, name: fmt.Sprint("n", i), ns: netnstest.New(b.t), log: b.t.Output()}
	b.hosts = append(b.hosts, h)
	netnstest.Batch(b.t, b.wire, "ip", fmt.Sprintf(`link add %[1]s type veth peer name eth1 netns /proc/%[2]d/fd/%[3]d
link set %[1]s master br0 addrgenmode none up`, h.name, os.Getpid(), h.ns.Fd()))
	h.ip(fmt.Sprintf("link set lo up\nlink set eth1 addrgenmode none\nlink set eth1 up\naddr add 192.0.2.%d/24 dev eth1", i))
	h.newLedger()
	return h
}

// newLedger makes the host another node, without anything on record.
func (h *host) newLedger() {
	h.t.Helper()
	dir := h.t.TempDir()
	h.runDir = filepath.Join(dir, "run")
	l, err := ledger.Open(h.t.Context(), ledger.Options{DataDir: filepath.Join(dir, "data"), RunDir: h.runDir, BootID: "boot", MachineID: h.name})
	must(h.t, err)
	h.l = l
	h.t.Cleanup(func() { must(h.t, l.Close()) })
}

// With implements Ledger.
func (h *host) With(f func(*ledger.Ledger) error) error { return f(h.l) }

// start starts the agent's tasks, and waits until they have got going.
func (h *host) start() {
	h.t.Helper()
	log := slog.New(slog.NewTextHandler(h.log, nil)).With("node", h.name)
	h.metrics = prometheus.NewRegistry()
	member, err := cluster.New(cluster.Config{
		Open: func(context.Context) (registry.Store, <-chan error, func(), error) {
			return h.store.As(h.name), nil, func() {}, nil
		},
		Ledger: h, Node: h.name, Log: log, Registry: prometheus.NewRegistry(),
	})
	must(h.t, err)
	h.Task, err = New(Config{Cluster: member, Ledger: h, Node: h.name, Log: log, Registry: h.metrics, Netns: h.ns, RunDir: h.runDir})
	must(h.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, t := range []interface{ Run(context.Context) error }{member, h.Task} {
		running.Go(func() {
			if err := t.Run(ctx); err != nil {
				h.t.Errorf("%s: %v", h.name, err)
			}
		})
	}
	h.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	h.t.Cleanup(h.stop)
	<-h.Ready()
}

// id is the host's identity.
func (h *host) id() lease.Node {
	h.t.Helper()
	n, err := h.l.Node()
	must(h.t, err)
	return n
}

// put puts an attachment on record.
func put(t testing.TB, l *ledger.Ledger, id, mac string, u ipam.Uses, addrs ...string) {
	t.Helper()
	req := ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "red", ContainerID: id, IfName: "eth0"}, MAC: mac, Uses: u}
	if u.Segment.Port != 0 {
		req.Attachment.Network = "red/vxlan"
	}
	for _, a := range addrs {
		at := func(s string) netip.Addr { return netip.MustParseAddr(s) }
		r := ipam.Range{Subnet: netip.MustParsePrefix("10.9.0.0/16"), Interval: ipam.Interval{First: at("10.9.0.1"), Last: at("10.9.255.254")}}
		if at(a).Is6() {
			r = ipam.Range{Subnet: netip.MustParsePrefix("2001:db8:9::/64"), Interval: ipam.Interval{First: at("2001:db8:9::1"), Last: at("2001:db8:9::ffff")}}
		}
		req.Pool.Name, req.Pool.Sets, req.Addresses = "red", append(req.Pool.Sets, ipam.RangeSet{r}), append(req.Addresses, at(a))
	}
	_, err := l.Allocate(req, nil)
	must(t, err)
}

// made is what an attachment uses that the segment is made for, and in one that
// is only in it.
func made() ipam.Uses { return ipam.Uses{Parent: "eth1", Segment: ipam.Segment{VNI: vni, Port: 8472}} }
func in() ipam.Uses   { return ipam.Uses{Parent: "lg7", Segment: ipam.Segment{VNI: vni}} }

// release takes an attachment off the record.
func release(t testing.TB, l *ledger.Ledger, network, id string) {
	t.Helper()
	_, err := l.Release(ipam.ReleaseRequest{Attachment: ipam.Attachment{Network: network, ContainerID: id, IfName: "eth0"}})
	must(t, err)
}

// container is a namespace with a macvlan on the leg.
type container struct {
	ns    *netns.NS
	mac   string
	addrs []string
}

// add does what the plugins do for an ADD: the segment, on record before it is
// made; then the container's link, likewise.
func (h *host) add(id string, mac string, addrs ...string) container {
	h.t.Helper()
	put(h.t, h.l, id, "", made())
	h.Stir()
	unlock, err := flock.Parent(h.t.Context(), h.runDir, "eth1")
	must(h.t, err)
	real, err := openHost(h.ns)
	must(h.t, err)
	_, err = real.Build(vni, 8472, "eth1")
	real.close()
	unlock()
	must(h.t, err)
	put(h.t, h.l, id, mac, in(), addrs...)
	h.Stir()
	c := container{netnstest.New(h.t), mac, addrs}
	h.link(c)
	return c
}

// link gives a container its link.
func (h *host) link(c container) {
	h.t.Helper()
	h.ip(fmt.Sprintf("link add link lg7 name c0 address %s netns /proc/%d/fd/%d type macvlan mode bridge", c.mac, os.Getpid(), c.ns.Fd()))
	lines := []string{"link set c0 addrgenmode none", "link set c0 up"}
	for _, a := range c.addrs {
		if strings.Contains(a, ":") {
			a += "/64 dev c0 nodad"
		} else {
			a += "/16 dev c0"
		}
		lines = append(lines, "addr add "+a)
	}
	netnstest.Batch(h.t, c.ns, "ip", strings.Join(lines, "\n"))
}

// del does what the plugins do for a DEL.
func (h *host) del(id string, last bool) {
	h.t.Helper()
	release(h.t, h.l, "red", id)
	unlock, err := flock.Parent(h.t.Context(), h.runDir, "eth1")
	must(h.t, err)
	if last {
		must(h.t, vxlan.RemoveSegment(h.ns, vni))
	}
	release(h.t, h.l, "red/vxlan", id)
	unlock()
	h.Stir()
}

// ip runs commands of ip on the host, one a line.
func (h *host) ip(commands string) string {
	h.t.Helper()
	return netnstest.Batch(h.t, h.ns, "ip", commands)
}

// entries are what keeps a segment: neighbours, and FDB entries that nobody has
// learned, one a line.
func (h *host) entries() string {
	h.t.Helper()
	var lines []string
	add := func(out, dev string, keep func(string) bool) {
		for line := range strings.Lines(out) {
			line = strings.Join(strings.Fields(line), " ")
			if keep(line) {
				lines = append(lines, dev+" "+line+"\n")
			}
		}
	}
	if h.there("br7") {
		for _, family := range []string{"-4", "-6"} {
			add(netnstest.Run(h.t, h.ns, "ip", family, "neigh", "show", "dev", "br7"), "br7", func(l string) bool { return strings.HasSuffix(l, "PERMANENT") })
		}
	}
	for _, dev := range []string{"vx7", "lp7"} {
		if h.there(dev) {
			add(netnstest.Run(h.t, h.ns, "bridge", "fdb", "show", "dev", dev), dev, func(l string) bool {
				return strings.Contains(l, "static") || strings.Contains(l, " dst ")
			})
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func (h *host) there(dev string) bool {
	return strings.Contains(netnstest.Run(h.t, h.ns, "ip", "-o", "link"), " "+dev+"@") || strings.Contains(netnstest.Run(h.t, h.ns, "ip", "-o", "link"), " "+dev+":")
}

// await waits until what f returns is want, and says how long that took.
func await(t testing.TB, what, want string, f func() string) time.Duration {
	t.Helper()
	var got string
	began := time.Now()
	for ; time.Since(began) < 15*time.Second; time.Sleep(10 * time.Millisecond) {
		if got = f(); got == want {
			took := time.Since(began)
			t.Logf("%s: after %s", what, took.Round(time.Millisecond))
			return took
		}
	}
	t.Fatalf("%s: got\n%s\nwant\n%s", what, got, want)
	return 0
}

// cut keeps hosts from the registry, and nobody else.
func (b *bed) cut(names ...string) {
	b.store.Rig(func(r memstore.Request) memstore.Fault {
		if slices.Contains(names, r.Client) {
			return memstore.Fail
		}
		return memstore.Deliver
	})
}

func command(name string, args ...string) error { return exec.Command(name, args...).Run() }

func sortLines(text string) string {
	lines := strings.SplitAfter(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// listen hears the ARP and the neighbour discovery in VXLAN on an interface, until
// it is asked what that was, one frame a line.
func listen(t testing.TB, n *netns.NS, dev string) (heard func() string) {
	t.Helper()
	var fd int
	must(t, n.Do(func() error {
		l, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: l.Index}) // ETH_P_ALL
	}))
	t.Cleanup(func() { unix.Close(fd) })
	return func() string {
		var lines []string
		frame := make([]byte, 1<<16)
		for {
			size, _, err := unix.Recvfrom(fd, frame, 0)
			if err != nil {
				return strings.Join(lines, "")
			}
			if text := asks(frame[:size]); text != "" {
				lines = append(lines, text+"\n")
			}
		}
	}
}

// asks says what is asked in VXLAN over IPv4 in a frame; "" if nothing is.
func asks(f []byte) string {
	const outer = 14 + 20 + 8 + 8
	if len(f) < outer+14+28 || f[12] != 8 || f[13] != 0 || f[14] != 0x45 || f[23] != unix.IPPROTO_UDP || int(f[36])<<8|int(f[37]) != 8472 {
		return ""
	}
	switch inner := f[outer:]; {
	case inner[12] == 8 && inner[13] == 6:
		return fmt.Sprintf("ARP of %d.%d.%d.%d for %d.%d.%d.%d", inner[28], inner[29], inner[30], inner[31], inner[38], inner[39], inner[40], inner[41])
	case inner[12] == 0x86 && inner[13] == 0xdd && inner[20] == unix.IPPROTO_ICMPV6 && len(inner) > 14+40+24 && inner[54] == 135:
		return fmt.Sprintf("solicitation for %s", netip.AddrFrom16([16]byte(inner[62:78])))
	}
	return ""
}
