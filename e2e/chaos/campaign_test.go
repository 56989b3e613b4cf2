package chaos_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/cluster"
)

const (
	hosts   = 3
	workers = 3 // of each host
	// roundFor is how long there are faults before all is looked at.
	roundFor = 25 * time.Second
)

// campaign is what all share.
type campaign struct {
	*journal
	t       *testing.T
	c       *cluster.Cluster
	hosts   []*host
	holders *holders
	seed    uint64
	// until is the end of the round.
	until atomic.Pointer[time.Time]
}

// host is a node, and what the runtime on it knows.
type host struct {
	*cluster.Node
	x *campaign
	n int // counted from 1
	// gate: a call to a plugin holds it for reading, and for writing a fault
	// during which there is none.
	gate sync.RWMutex
	// boot and port count how often the host, and its eth1, was there anew.
	boot, port atomic.Int32
	// stay is held for reading by who needs the host to be there, and wire by who
	// takes eth1, or the switch's port, away. Before gate, both.
	stay sync.RWMutex
	wire sync.Mutex

	mu sync.Mutex
	// live are the attachments that have had an ADD and no DEL that was ok.
	live map[*attachment]bool
	// lost went without a DEL, with their namespace.
	lost map[*attachment]bool

	others others
}

func (x *campaign) over() bool { return time.Now().After(*x.until.Load()) }

// fail writes down what must not be.
func (x *campaign) fail(where, format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	x.note(where, "WRONG: %s", what)
	x.t.Errorf("%s: %s", where, what)
}

func (x *campaign) random(stream uint64, round int) *rand.Rand {
	return rand.New(rand.NewPCG(x.seed, stream<<32|uint64(round)))
}

// TestChaos: see the comment of the package.
func TestChaos(t *testing.T) {
	seed := *seeded
	for seed == 0 {
		seed = rand.Uint64()
	}
	x := &campaign{journal: newJournal(), t: t, seed: seed, holders: newHolders()}
	t.Logf("seed %d, %s of faults", seed, *duration)
	defer x.tell()
	x.setUp()
	stop := x.watch()
	end := time.Now().Add(*duration)
	for round := 1; time.Now().Before(end) && !t.Failed(); round++ {
		x.round(round)
		if !t.Failed() {
			x.quiet(round)
		}
	}
	stop()
	if !t.Failed() {
		x.last()
	}
}

// setUp makes the cluster, its pools and networks.
func (x *campaign) setUp() {
	x.t.Helper()
	x.c = cluster.New(x.t, cluster.Config{Bin: bin, Nodes: hosts, IPv6: true, Apart: true, Logs: *keep, Prepare: x.prepare,
		Agent: map[string]any{"parents": keys{"lan": keys{"name": "eth1"}}}})
	api := x.c.Nodes[0].API
	for _, p := range pools {
		if _, err := api.CreatePool(x.t.Context(), []byte(p)); err != nil {
			x.t.Fatal(err)
		}
	}
	for _, n := range networks {
		if _, err := api.CreateNetwork(x.t.Context(), []byte(n)); err != nil {
			x.t.Fatal(err)
		}
	}
}

// prepare gives a host its disk, and what others have on it.
func (x *campaign) prepare(n *cluster.Node) error {
	h := &host{Node: n, x: x, n: len(x.hosts) + 1, live: map[*attachment]bool{}, lost: map[*attachment]bool{}}
	h.boot.Store(1)
	x.hosts = append(x.hosts, h)
	if err := h.mount(); err != nil {
		return err
	}
	return h.others.put(h)
}

// round has workers attach and detach while faults happen, until all of these
// are undone.
func (x *campaign) round(number int) {
	x.note("", "round %d", number)
	until := time.Now().Add(roundFor)
	x.until.Store(&until)
	var all sync.WaitGroup
	for i, h := range x.hosts {
		for w := range workers {
			all.Go(func() {
				(&worker{host: h, choose: x.random(uint64(100+10*i+w), number), name: fmt.Sprintf("w%d", w)}).run(number)
			})
		}
		all.Go(func() { (&nemesis{x, x.random(uint64(10+i), number)}).harm(h, ofState) })
		all.Go(func() { (&nemesis{x, x.random(uint64(20+i), number)}).harm(h, ofKernel) })
	}
	all.Go(func() { (&nemesis{x, x.random(1, number)}).harm(nil, ofCluster) })
	all.Wait()
}

// tell prints what there is to know of the run.
func (x *campaign) tell() {
	x.t.Logf("seed %d, %s: %s", x.seed, time.Since(x.began).Round(time.Second), x.summary())
	if x.t.Failed() {
		x.t.Logf("the end of the journal:\n%s", x.ending(100))
	}
	if *keep != "" {
		if err := x.write(*keep); err != nil {
			x.t.Error(err)
		}
	}
}
