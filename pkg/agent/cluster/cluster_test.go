package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/leases"
)

// bed is a registry with one pool, and nodes with a ledger and an agent each.
type bed struct {
	t     *testing.T
	store *memstore.Store
	reg   registry.Registry
	nodes []*node
	next  int
	used  map[netip.Addr]string
}

type node struct {
	*Cluster
	bed     *bed
	name    string
	options ledger.Options
	l       *ledger.Ledger
	stop    func()
	log     journal
}

// journal is a log that is read while it is written.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) has(s string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Contains(j.text.String(), s)
}

func newBed(t *testing.T, pool string, nodes int) *bed {
	b := &bed{t: t, store: memstore.New(), used: map[netip.Addr]string{}}
	b.reg = registry.Registry{Store: b.store}
	if _, err := b.reg.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pool != "" {
		b.pool(pool)
	}
	dir := t.TempDir()
	for i := range nodes {
		n := &node{bed: b, name: fmt.Sprint("n", i)}
		n.options = ledger.Options{DataDir: filepath.Join(dir, n.name), RunDir: filepath.Join(dir, n.name, "run"), BootID: "boot", MachineID: "machine-" + n.name}
		b.nodes = append(b.nodes, n)
		n.start()
	}
	return b
}

func (b *bed) pool(spec string) {
	b.t.Helper()
	p, err := record.LoadPool([]byte(spec))
	if err == nil {
		_, err = b.reg.CreatePool(b.t.Context(), p)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// With implements Ledger.
func (n *node) With(f func(*ledger.Ledger) error) error { return f(n.l) }

func (n *node) start() {
	t := n.bed.t
	var err error
	if n.l, err = ledger.Open(t.Context(), n.options); err != nil {
		t.Fatal(err)
	}
	n.Cluster, err = New(Config{
		Open: func(context.Context) (registry.Store, <-chan error, func(), error) {
			return n.bed.store.As(n.name), nil, func() {}, nil
		},
		Ledger: n, Node: n.name, Log: slog.New(slog.NewTextHandler(&n.log, nil)), Registry: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", n.name, err)
		}
		if findings, err := n.l.Check(); err != nil || len(findings) > 0 {
			t.Errorf("%s: check: %q, %v", n.name, findings, err)
		}
		if err := n.l.Close(); err != nil {
			t.Error(err)
		}
	})
	<-n.Ready()
}

func (b *bed) end() {
	for _, n := range b.nodes {
		n.stop()
	}
}

func (n *node) add(owner string) (id string, a netip.Addr, err error) {
	n.bed.next++
	id = fmt.Sprint("c", n.bed.next)
	req := ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "net", ContainerID: id, IfName: "eth0"}, Cluster: "a", Owner: owner}
	got, err := n.Allocate(context.Background(), n.l, req, func() (ipam.Allocation, error) { return n.l.Allocate(req, nil) })
	if err != nil {
		return id, a, err
	}
	a = got.Addresses[0].Prefix.Addr()
	if who, used := n.bed.used[a]; used {
		n.bed.t.Errorf("%s is used by %s, and now by %s on %s", a, who, id, n.name)
	}
	n.bed.used[a] = id
	return id, a, nil
}

func (n *node) del(id string) {
	n.bed.t.Helper()
	r, err := n.l.Release(ipam.ReleaseRequest{Attachment: ipam.Attachment{Network: "net", ContainerID: id, IfName: "eth0"}})
	if err != nil || len(r.Records) != 1 {
		n.bed.t.Fatalf("%s: release %s: %+v, %v", n.name, id, r, err)
	}
	delete(n.bed.used, r.Records[0].Address.Addr())
	n.Stir()
}

// inBubble runs a test in time that passes only while all wait.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, f)
}

// TestWholePool: 256 addresses less two and a gateway go to five nodes, whatever
// the order.
func TestWholePool(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24","gateway":"10.0.0.1"}]]}`, 5)
				defer b.end()
				rng := rand.New(rand.NewPCG(seed, 1))
				for i := range 253 {
					n := b.nodes[rng.IntN(5)]
					if _, _, err := n.add(""); err != nil {
						t.Fatalf("the %dth, on %s: %v", i+1, n.name, err)
					}
				}
				_, _, err := b.nodes[2].add("")
				var full *ipam.ExhaustedError
				if !errors.As(err, &full) || !strings.Contains(err.Error(), "5 nodes lease 253 addresses of it, most of them node") {
					t.Errorf("one too many: %v", err)
				}
			})
		})
	}
}

// TestMoves: an owner keeps its address over moves that follow each other at
// once, and while it is in use elsewhere it has to wait.
func TestMoves(t *testing.T) {
	for _, sticky := range []string{`true`, `"strict"`} {
		t.Run(sticky, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/26"}]],"sticky":`+sticky+`}`, 3)
				defer b.end()
				rng := rand.New(rand.NewPCG(1, 1))
				n := b.nodes[0]
				id, want, err := n.add("ns/web-0")
				if err != nil {
					t.Fatal(err)
				}
				for i := range 100 {
					time.Sleep(time.Duration(rng.IntN(3)) * time.Second)
					n.del(id)
					if rng.IntN(2) == 0 {
						if _, _, err := b.nodes[rng.IntN(3)].add(""); err != nil && i < 30 {
							t.Fatal(err)
						}
					}
					n = b.nodes[rng.IntN(3)]
					var got netip.Addr
					if id, got, err = n.add("ns/web-0"); err != nil || got != want {
						t.Fatalf("move %d, to %s: %s, want %s: %v", i, n.name, got, want, err)
					}
				}
				time.Sleep(time.Second)
				other := b.nodes[0]
				if other == n {
					other = b.nodes[1]
				}
				b.partition(n.name)
				_, _, err = other.add("ns/web-0")
				var held *leases.HolderError
				if !errors.As(err, &held) || held.Addr != want || held.Holder != n.node.Node {
					t.Errorf("while it is in use elsewhere: %v", err)
				}
			})
		})
	}
}

// partition cuts nodes off from the registry; none ends it.
func (b *bed) partition(names ...string) {
	b.store.Rig(func(r memstore.Request) memstore.Fault {
		for _, n := range names {
			if r.Client == n {
				return memstore.Fail
			}
		}
		return memstore.Deliver
	})
}

// TestAway: without a registry a node goes on with what it leases, and what it
// says when that is used up names the registry.
func TestAway(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]],"blockPrefix":{"ipv4":29}}`, 2)
		defer b.end()
		n := b.nodes[0]
		if _, _, err := n.add(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.partition("n0", "n1")
		time.Sleep(time.Minute)
		var err error
		for got := 1; err == nil; got++ {
			if _, _, err = n.add(""); err != nil && got < 7 {
				t.Fatalf("only %d addresses", got)
			}
		}
		var full *ipam.ExhaustedError
		if !errors.As(err, &full) || !strings.Contains(err.Error(), "the registry does not answer") {
			t.Errorf("when its own are used up: %v", err)
		}
		b.partition()
		time.Sleep(5 * time.Second)
		if _, _, err := n.add(""); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

func TestUnknownPool(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, "", 1)
		defer b.end()
		_, _, err := b.nodes[0].add("")
		var field *ipam.FieldError
		if !errors.As(err, &field) || field.Place != "ipam.pool" || field.CNICode() != ipam.CodeTryAgainLater {
			t.Errorf("a pool that does not exist: %v", err)
		}
		b.pool(`{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]]}`)
		if _, _, err := b.nodes[0].add(""); err != nil {
			t.Errorf("right after it was made: %v", err)
		}
	})
}

// TestByName: an address that is asked for comes from wherever nobody has it.
func TestByName(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]],"blockPrefix":{"ipv4":30}}`, 2)
		defer b.end()
		get := func(n *node, id, addr string) error {
			req := ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "net", ContainerID: id, IfName: "eth0"}, Cluster: "a"}
			req.Ask(netip.MustParseAddr(addr), "ips[0]")
			a, err := n.Allocate(t.Context(), n.l, req, func() (ipam.Allocation, error) { return n.l.Allocate(req, nil) })
			if err == nil && a.Addresses[0].Prefix.Addr().String() != addr {
				t.Errorf("%s: got %v", addr, a)
			}
			return err
		}
		for i, addr := range []string{"10.0.0.7", "10.0.0.200", "10.0.0.201"} {
			if err := get(b.nodes[0], fmt.Sprint("x", i), addr); err != nil {
				t.Errorf("%s: %v", addr, err)
			}
		}
		err := get(b.nodes[1], "y", "10.0.0.6")
		var taken *ipam.TakenError
		if !errors.As(err, &taken) || !strings.Contains(err.Error(), `node "n0"`) {
			t.Errorf("of a block that another node leases: %v", err)
		}
		var field *ipam.FieldError
		if err := get(b.nodes[1], "y", "10.0.9.6"); !errors.As(err, &field) {
			t.Errorf("of no pool: %v", err)
		}
	})
}

// TestRemoved: what a removed node had is free for others after its rest, and
// the node comes back as another one.
func TestRemoved(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/29","gateway":"10.0.0.1"}]],"blockPrefix":{"ipv4":30}}`, 2)
		defer b.end()
		n, other := b.nodes[0], b.nodes[1]
		for range 5 {
			if _, _, err := n.add(""); err != nil {
				t.Fatal(err)
			}
		}
		before := n.node.Node
		n.stop()
		time.Sleep(time.Minute)
		if err := b.reg.Remove(t.Context(), before, time.Minute); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if _, _, err := other.add(""); err == nil {
			t.Error("its addresses were given to others without a rest")
		}
		time.Sleep(time.Minute)
		clear(b.used)
		for i := range 5 {
			if _, _, err := other.add(""); err != nil {
				t.Fatalf("the %dth after the rest: %v", i+1, err)
			}
		}
		n.options.BootID = "another boot"
		n.start()
		if n.node.Node == before || !n.log.has("removed from the cluster") {
			t.Errorf("it is back as %s", n.node.Node)
		}
		if _, _, err := n.add(""); err == nil {
			t.Error("it still has what it leased")
		}
	})
}

// TestCopied: an agent with a copy of a ledger gets nowhere.
func TestCopied(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]]}`, 1)
		defer b.end()
		n := b.nodes[0]
		if _, _, err := n.add(""); err != nil {
			t.Fatal(err)
		}
		id, err := n.l.Node()
		if err != nil {
			t.Fatal(err)
		}
		if err := b.reg.Enroll(t.Context(), record.Node{Node: id, Machine: "elsewhere", Name: "copy"}); !errors.Is(err, registry.ErrCopied) {
			t.Errorf("a copy on another machine: %v", err)
		}
		if _, err := b.reg.Bind(t.Context(), record.Live{Node: id, Machine: "machine-n0", Boot: "boot", Inode: 1}, time.Minute); !errors.Is(err, registry.ErrTaken) {
			t.Errorf("a copy beside it: %v", err)
		}
	})
}

// TestRecovered: a registry that was restored from a backup is frozen, and after
// an operator's word it agrees with the ledgers again.
func TestRecovered(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/27","gateway":"10.0.0.1"}]],"blockPrefix":{"ipv4":30}}`, 3)
		defer b.end()
		for i := range 9 {
			if _, _, err := b.nodes[i%3].add(""); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(15 * time.Second)
		backup := b.store.Snapshot()
		for i := range 9 {
			if _, _, err := b.nodes[i%3].add(""); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute) // the ledgers write down how far the registry was
		b.store.Restore(backup)
		time.Sleep(time.Minute)
		v, err := b.reg.View(t.Context())
		if err != nil || v.Cluster.Value.Frozen == nil {
			t.Fatalf("the registry is not frozen: %+v, %v", v.Cluster, err)
		}
		if _, err := b.reg.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		got := len(b.used)
		for ; got < 29; got++ {
			if _, _, err := b.nodes[got%3].add(""); err != nil {
				t.Fatalf("the %dth after the recovery: %v", got+1, err)
			}
		}
	})
}
