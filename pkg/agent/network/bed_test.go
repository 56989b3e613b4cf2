package network

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/cluster"
	"github.com/underlay-cni/underlay/pkg/agent/leases"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
	"github.com/underlay-cni/underlay/pkg/nft"
)

const pods = `{"version":1,"name":"pods","tenant":"","kind":"routed","ranges":[[{"subnet":"10.5.0.0/16"}],[{"subnet":"2001:db8:5::/112"}]],"blockPrefix":{"ipv4":26,"ipv6":122}}`

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bed is a registry with the network pods, and a switch.
type bed struct {
	t     testing.TB
	store *memstore.Store
	reg   registry.Registry
	pool  record.Pool
	wire  *netns.NS
	hosts []*host
}

// host is a namespace on the switch, with the tasks of an agent.
type host struct {
	*bed
	name string
	ns   *netns.NS
	l    *ledger.Ledger
	log  io.Writer
	*Task
	member *cluster.Cluster
	asked  atomic.Int32 // times whether anybody uses what is lent
	stop   func()
}

func newBed(t testing.TB, change ...func(*record.Network)) *bed {
	t.Helper()
	b := &bed{t: t, store: memstore.New(), wire: netnstest.New(t)}
	b.reg = registry.Registry{Store: b.store}
	_, err := b.reg.Open(t.Context())
	must(t, err)
	p, err := record.LoadPool([]byte(pods))
	must(t, err)
	b.pool, err = b.reg.CreatePool(t.Context(), p)
	must(t, err)
	n := record.Network{Name: "pods", Pool: "pods", Backend: record.HostGW}
	for _, f := range change {
		f(&n)
	}
	must(t, b.reg.CreateNetwork(t.Context(), n))
	netnstest.Batch(t, b.wire, "ip", "link add br0 type bridge mcast_snooping 0\nlink set br0 addrgenmode none\nlink set br0 up")
	return b
}

// host adds one, n<i>, whose eth1 has 192.0.2.<i>/24 and 2001:db8::<i>/64.
func (b *bed) host() *host {
	b.t.Helper()
	i := len(b.hosts) + 1
	h := &host{bed: b, name: fmt.Sprint("n", i), ns: netnstest.New(b.t), log: b.t.Output()}
	b.hosts = append(b.hosts, h)
	netnstest.Batch(b.t, b.wire, "ip", fmt.Sprintf(`link add %[1]s type veth peer name eth1 netns /proc/%[2]d/fd/%[3]d
link set %[1]s master br0 addrgenmode none up`, h.name, os.Getpid(), h.ns.Fd()))
	h.ip(fmt.Sprintf(`link set lo up
link set eth1 addrgenmode none
link set eth1 up
addr add 192.0.2.%[1]d/24 dev eth1
addr add 2001:db8::%[1]d/64 dev eth1 nodad
addr add fe80::%[1]d/64 dev eth1 nodad`, i))
	dir := b.t.TempDir()
	var err error
	h.l, err = ledger.Open(b.t.Context(), ledger.Options{DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), BootID: "boot", MachineID: h.name})
	must(b.t, err)
	b.t.Cleanup(func() { must(b.t, h.l.Close()) })
	return h
}

// With implements Ledger.
func (h *host) With(f func(*ledger.Ledger) error) error { return f(h.l) }

// start starts the agent's tasks, and waits until they have got going.
func (h *host) start(change ...func(*Config)) {
	h.t.Helper()
	log := slog.New(slog.NewTextHandler(h.log, nil)).With("node", h.name)
	var task *Task
	member, err := cluster.New(cluster.Config{
		Open: func(context.Context) (registry.Store, <-chan error, func(), error) {
			return h.store.As(h.name), nil, func() {}, nil
		},
		Ledger: h, Node: h.name, Log: log, Registry: prometheus.NewRegistry(), Addresses: func() []netip.Addr { return task.Addresses() },
		Loan: func() *leases.Loan {
			l := task.Loan()
			if l != nil {
				over := l.Over
				l.Over = func(to string, block netip.Prefix) bool {
					h.asked.Add(1)
					return over(to, block)
				}
			}
			return l
		},
	})
	must(h.t, err)
	conf := Config{Cluster: member, Ledger: h, Log: log, Registry: prometheus.NewRegistry(), Netns: h.ns, Parents: map[string]Parent{"lan": {Name: "eth1"}}}
	for _, f := range change {
		f(&conf)
	}
	task, err = New(conf)
	must(h.t, err)
	h.Task, h.member = task, member
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, t := range []interface{ Run(context.Context) error }{member, task} {
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
	<-task.Ready()
}

// id is the host's identity.
func (h *host) id() lease.Node {
	h.t.Helper()
	n, err := h.l.Node()
	must(h.t, err)
	return n
}

// lease gives a block of the pool to a node.
func (b *bed) lease(n lease.Node, cidr string) {
	b.t.Helper()
	p := netip.MustParsePrefix(cidr)
	var rev lease.Rev
	v, err := b.reg.View(b.t.Context())
	must(b.t, err)
	rev = v.Blocks[b.pool.UUID][p].Rev
	if _, a := b.reg.Send(b.t.Context(), b.pool.UUID, lease.Step{Do: lease.Send, Block: lease.Block{CIDR: p, Owner: n}, Rev: rev}); a.Outcome != registry.Applied {
		b.t.Fatalf("lease %s: %+v", cidr, a)
	}
}

// ip runs commands of ip on the host, one a line.
func (h *host) ip(commands string) string {
	h.t.Helper()
	return netnstest.Batch(h.t, h.ns, "ip", commands)
}

// ofPeers is the scope that package route gives a route to a peer, one of many
// that mean the same.
var ofPeers = regexp.MustCompile(` scope \d+`)

// routes are those of a protocol, one a line, with one space between words.
func (h *host) routes(proto string) string {
	h.t.Helper()
	var lines []string
	for _, list := range []string{"route show proto ", "-6 route show proto "} {
		for line := range strings.Lines(netnstest.Run(h.t, h.ns, "ip", strings.Fields(list+proto)...)) {
			line = ofPeers.ReplaceAllString(strings.ReplaceAll(line, " pref medium", ""), "")
			lines = append(lines, strings.Join(strings.Fields(line), " ")+"\n")
		}
	}
	return strings.Join(lines, "")
}

// await waits until what f returns is want.
func await(t testing.TB, what, want string, f func() string) {
	t.Helper()
	var got string
	for began := time.Now(); time.Since(began) < 15*time.Second; time.Sleep(20 * time.Millisecond) {
		if got = f(); got == want {
			t.Logf("%s: after %s", what, time.Since(began).Round(time.Millisecond))
			return
		}
	}
	t.Fatalf("%s: got\n%s\nwant\n%s", what, got, want)
}

func (h *host) awaitRoutes(what, want string) {
	h.t.Helper()
	await(h.t, h.name+": "+what, want, func() string { return h.routes("141") })
}

// noDrops is no firewall of others.
func noDrops(c *Config) { c.Drops = func(context.Context) ([]nft.Drop, error) { return nil, nil } }
