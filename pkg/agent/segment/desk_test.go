package segment

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// desk is a task with nothing real about it, of node n<me>.
type desk struct {
	*Task
	t       *testing.T
	me      int
	conf    Config
	store   *memstore.Store
	ledger  *ledger.Ledger
	metrics *prometheus.Registry
	members chan struct{}

	mu      sync.Mutex
	away    error // of the registry's view
	fail    error // of Build
	unread  error // of the ledger
	links   func()
	built   []string
	removed []int
	kernels map[int]*neigh.Fake
	local   string
	changed int
}

func newDesk(t *testing.T, change func(*Config)) *desk {
	t.Helper()
	return newDeskOf(t, 1, memstore.New(), change)
}

func newDeskOf(t *testing.T, me int, store *memstore.Store, change func(*Config)) *desk {
	t.Helper()
	d := &desk{t: t, me: me, store: store, members: make(chan struct{}, 1), kernels: make(map[int]*neigh.Fake), local: fmt.Sprint("192.0.2.", me)}
	dir := t.TempDir()
	var err error
	d.ledger, err = ledger.Open(t.Context(), ledger.Options{DataDir: dir, RunDir: dir + "/run", BootID: "boot", MachineID: "m"})
	must(t, err)
	t.Cleanup(func() { must(t, d.ledger.Close()) })
	d.conf = Config{
		Cluster: d, Ledger: d, Node: fmt.Sprint("n", me), Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Host: d,
		Changed: func() { d.mu.Lock(); d.changed++; d.mu.Unlock() },
	}
	if change != nil {
		change(&d.conf)
	}
	d.anew()
	return d
}

// anew makes the task of another life.
func (d *desk) anew() {
	d.t.Helper()
	d.metrics = prometheus.NewRegistry()
	d.conf.Registry = d.metrics
	var err error
	d.Task, err = New(d.conf)
	must(d.t, err)
}

// run runs it until end.
func (d *desk) run() (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	return func() {
		d.t.Helper()
		cancel()
		must(d.t, <-ended)
	}
}

func (d *desk) With(f func(*ledger.Ledger) error) error {
	d.mu.Lock()
	err := d.unread
	d.mu.Unlock()
	if err != nil {
		return err
	}
	return f(d.ledger)
}

func (d *desk) Look(ctx context.Context, f func(*registry.View, lease.Node)) error {
	d.mu.Lock()
	err := d.away
	d.mu.Unlock()
	if err != nil {
		return err
	}
	v, err := registry.Registry{Store: d.store}.View(ctx)
	if err == nil {
		f(v, idOf(d.me))
	}
	return err
}

func (d *desk) Members() <-chan struct{}           { return d.members }
func (d *desk) Client() (registry.Registry, error) { return registry.Registry{Store: d.store}, nil }

func (d *desk) Watch(ctx context.Context, heard func()) error {
	d.mu.Lock()
	d.links = heard
	d.mu.Unlock()
	heard()
	<-ctx.Done()
	return ctx.Err()
}

// hear tells that links may be others, if anybody listens.
func (d *desk) hear() {
	d.mu.Lock()
	heard := d.links
	d.mu.Unlock()
	if heard != nil {
		heard()
	}
}

func (d *desk) Build(vni, port int, parent string) (s vxlan.Segment, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return s, d.fail
	}
	d.built = append(d.built, fmt.Sprintf("%d on %s at %d", vni, parent, port))
	k := d.kernelLocked(vni)
	k.SetDevice(vxlan.Name(vni), neigh.FakeDevice{VXLAN: true, Port: true})
	k.SetDevice(vxlan.BridgeName(vni), neigh.FakeDevice{})
	k.SetDevice(fmt.Sprint("lp", vni), neigh.FakeDevice{Port: true})
	return vxlan.Segment{Device: vxlan.Device{VNI: vni, Port: port, Parent: parent, Local: netip.MustParseAddr(d.local), MTU: 1450}}, nil
}

func (d *desk) kernelLocked(vni int) *neigh.Fake {
	if d.kernels[vni] == nil {
		d.kernels[vni] = new(neigh.Fake)
	}
	return d.kernels[vni]
}

func (d *desk) Remove(vni int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.removed = append(d.removed, vni)
	return nil
}

func (d *desk) Entries(vni int) (Entries, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return neigh.New(neigh.Config{Kernel: d.kernelLocked(vni)})
}

// set changes what the host or the registry is like.
func (d *desk) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *desk) kernel() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.kernelLocked(vni).String()
}

// pass lets time pass, and all that is due be done.
func (d *desk) pass(t time.Duration) {
	time.Sleep(t)
	synctest.Wait()
}

func (d *desk) expect(what, want string, got any) {
	d.t.Helper()
	if text := fmt.Sprint(got); text != want {
		d.t.Errorf("%s: got\n%s\nwant\n%s", what, text, want)
	}
}

func (d *desk) put(parts ...record.Segment) {
	d.t.Helper()
	for _, s := range parts {
		must(d.t, registry.Registry{Store: d.store}.PutSegment(d.t.Context(), s))
	}
}

// record is what the registry has of this node; "" for nothing.
func (d *desk) record() string {
	i, err := d.store.Get(d.t.Context(), record.SegmentKey(vni, idOf(1)))
	must(d.t, err)
	return string(i.Value)
}

func inBubble(t *testing.T, change func(*Config), f func(t *testing.T, d *desk)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, change)
		end := d.run()
		defer end()
		synctest.Wait()
		f(t, d)
	})
}
