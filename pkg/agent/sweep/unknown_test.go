package sweep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// runtime is a Containers that knows what it is told to.
type runtime struct {
	mu    sync.Mutex
	known map[string]bool
	err   error
}

func (*runtime) Runtimes() []string { return []string{"ctr", "containerd"} }

func (r *runtime) Known(context.Context) (map[string]bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known, r.err
}

func (r *runtime) set(err error, known ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known, r.err = map[string]bool{}, err
	for _, id := range known {
		r.known[id] = true
	}
}

// yard is a ledger with a sweep that asks a runtime.
type yard struct {
	t    *testing.T
	l    *ledger.Ledger
	pool ipam.Pool
	rt   runtime
	s    *Sweep
	log  journal
	left map[string]Left // by container; LeftNothing where there is none
	end  func()
}

// newYard belongs into a bubble.
func newYard(t *testing.T) *yard {
	y := &yard{t: t, left: map[string]Left{}}
	dir := t.TempDir()
	var err error
	if y.l, err = ledger.Open(context.Background(), ledger.Options{DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run")}); err != nil {
		t.Fatal(err)
	}
	conf, err := ipam.Load([]byte(`{"type":"underlay","ranges":[[{"subnet":"10.0.0.0/24"}]]}`), "lan", nil)
	if err != nil {
		t.Fatal(err)
	}
	y.pool = conf.Pool
	y.s, err = New(Config{
		Ledger: &open{l: y.l}, Log: slog.New(slog.NewTextHandler(&y.log, nil)), Registry: prometheus.NewRegistry(), Containers: &y.rt,
		Reclaim: func(*ledger.Ledger) (client.Reclaimed, error) { return client.Reclaimed{}, nil },
		Left: func(recs []ipam.AttachmentRecord) (out []Left, err error) {
			for _, a := range recs {
				l, ok := y.left[a.Attachment.ContainerID]
				if !ok {
					l = LeftNothing
				}
				out = append(out, l)
			}
			return out, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- y.s.Run(ctx) }()
	y.end = func() {
		cancel()
		if err := errors.Join(<-ended, y.l.Close()); err != nil {
			t.Error(err)
		}
	}
	return y
}

func (y *yard) add(runtime string, containers ...string) {
	y.t.Helper()
	for _, id := range containers {
		req := ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "lan", ContainerID: id, IfName: "eth0"}, Pool: y.pool, Runtime: runtime,
			Netns: ipam.Netns{Path: "/run/netns/" + id, Dev: 4, Inode: 7}}
		if _, err := y.l.Allocate(req, nil); err != nil {
			y.t.Fatal(err)
		}
	}
}

func (y *yard) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// states lists what became of the addresses, by the container that has or had
// them.
func (y *yard) states() map[string]ipam.State {
	y.t.Helper()
	out := map[string]ipam.State{}
	err := y.l.Records(func(r ipam.Record) error {
		out[r.Attachment.ContainerID] = r.State
		return nil
	})
	if err != nil {
		y.t.Error(err)
	}
	return out
}

func (y *yard) want(when string, want map[string]ipam.State) {
	y.t.Helper()
	if diff := cmp.Diff(want, y.states()); diff != "" {
		y.t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

// TestUnknown: what is released, and what is not.
func TestUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		defer y.end()
		y.rt.set(nil, "default-running")
		y.add("ctr", "default-running", "default-gone", "default-linked", "default-busy", "default-unseen")
		y.add("nomad", "elsewhere")
		y.left["default-linked"], y.left["default-busy"], y.left["default-unseen"] = LeftLink, LeftProcess, LeftUnseen
		all := map[string]ipam.State{"default-running": ipam.Held, "default-gone": ipam.Held, "default-linked": ipam.Held, "default-busy": ipam.Held,
			"default-unseen": ipam.Held, "elsewhere": ipam.Held}
		y.pass(5*time.Minute + time.Second)
		y.want("at the first look at settled ones", all)
		y.add("containerd", "young")
		all["young"] = ipam.Held
		y.pass(time.Minute)
		all["default-gone"], all["default-linked"] = ipam.Cooling, ipam.Quarantined
		y.want("at the second look", all)
		if n := testutil.ToFloat64(y.s.metrics.released); n != 2 {
			t.Errorf("%v were counted", n)
		}
		events, _ := y.s.conf.Events.Since(0)
		if len(events) != 2 {
			t.Errorf("events: %+v", events)
		}
		rec, _, err := y.l.Record(netip.MustParseAddr("10.0.0.4"))
		if err != nil || rec.Attachment.ContainerID != "default-linked" || !strings.Contains(rec.Reason, "still has it") {
			t.Errorf("%+v, %v", rec, err)
		}
		y.rt.set(nil, "default-running", "young")
		y.pass(10 * time.Minute)
		if s := y.states()["young"]; s != ipam.Held {
			t.Errorf("one that was written down late is %s", s)
		}
	})
}

// TestUnbelievable: nothing is released on the word of a runtime that does not
// answer, or that knows much less than the ledger.
func TestUnbelievable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		defer y.end()
		var ids []string
		want := map[string]ipam.State{}
		for i := range 12 {
			ids = append(ids, fmt.Sprint("c", i))
			want[ids[i]] = ipam.Held
		}
		y.add("ctr", ids...)
		y.rt.set(errors.New("connection refused"))
		y.pass(10 * time.Minute)
		y.want("when nobody answers", want)
		if n := strings.Count(y.log.String(), "connection refused"); n != 1 {
			t.Errorf("it is said %d times", n)
		}
		y.rt.set(nil)
		y.pass(10 * time.Minute)
		y.want("when nothing is known", want)
		if n := strings.Count(y.log.String(), "12 containers of 12 are not known at once"); n != 1 {
			t.Errorf("it is said %d times: %s", n, &y.log)
		}
		// The first look that can be believed is the first of two.
		y.rt.set(nil, ids[1:]...)
		y.pass(time.Minute)
		y.want("at the first look after", want)
		// One that comes back was only missed.
		y.rt.set(nil, ids...)
		y.pass(time.Minute)
		y.rt.set(nil, ids[1:]...)
		y.pass(time.Minute)
		y.want("when it was known in between", want)
		y.rt.set(errors.New("connection refused"))
		y.pass(time.Minute)
		y.want("when the second look fails", want)
		y.rt.set(nil, ids[1:]...)
		y.pass(time.Minute)
		want[ids[0]] = ipam.Cooling
		y.want("at the second look", want)
	})
}

// TestAttachedAgain: two looks are of one attachment, not of two by one name.
func TestAttachedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		defer y.end()
		y.rt.set(nil)
		y.add("ctr", "c1")
		y.pass(5*time.Minute + 30*time.Second)
		if _, err := y.l.Release(ipam.ReleaseRequest{Attachment: ipam.Attachment{Network: "lan", ContainerID: "c1", IfName: "eth0"}}); err != nil {
			t.Fatal(err)
		}
		y.add("ctr", "c1")
		y.pass(5*time.Minute + 45*time.Second)
		y.want("at its own first look", map[string]ipam.State{"c1": ipam.Held})
		y.pass(time.Minute)
		y.want("at its second", map[string]ipam.State{"c1": ipam.Cooling})
	})
}
