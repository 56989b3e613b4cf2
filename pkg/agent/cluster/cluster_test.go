package cluster

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
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
	down    int // how many times it does not reach the store
	change  func(*Config)
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
	conf := Config{
		Open: func(context.Context) (registry.Store, <-chan error, func(), error) {
			if n.down > 0 {
				n.down--
				return nil, nil, nil, registry.ErrUnreachable
			}
			return n.bed.store.As(n.name), nil, func() {}, nil
		},
		Ledger: n, Node: n.name, Log: slog.New(slog.NewTextHandler(&n.log, nil)), Registry: prometheus.NewRegistry(),
	}
	if n.change != nil {
		n.change(&conf)
	}
	if n.Cluster, err = New(conf); err != nil {
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
