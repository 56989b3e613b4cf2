// Package storetest is what every store of the registry has to pass. It
// checks what registry.Store promises, with two clients of one database.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
)

// patience is how long something may take that is to happen.
const patience = 30 * time.Second

// Backend is a fresh database with two clients.
type Backend struct {
	A, B registry.Store
	// Compact has the database forget changes up to a revision.
	Compact func(context.Context, lease.Rev) error
}

// Run runs the suite. open is called once for each test and cleans up by
// itself.
func Run(t *testing.T, open func(t *testing.T) Backend) {
	tests := []struct {
		name string
		test func(*testing.T, context.Context, Backend)
	}{
		{"swap compares revisions", swap},
		{"delete compares revisions", remove},
		{"list is ordered and of one moment", list},
		{"swaps of many do not get lost", contend},
		{"watch tells all in order", watch},
		{"watch ends with its function and its context", watchEnds},
		{"watch of what is compacted", compacted},
		{"segments are followed apart from all else", segments},
		{"VNIs of names", vnis},
		{"a request that cannot be made is not applied", refused},
		{"session keeps its keys and removes them", session},
		{"session of another is not taken", taken},
		{"session of the same is taken over", takenOver},
		{"session of a dead process ends", dead},
		{"a key of no session is nobody's", unbound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			tt.test(t, ctx, open(t))
		})
	}
}

func want(t *testing.T, what string, a registry.Answer, outcome registry.Outcome) lease.Rev {
	t.Helper()
	if a.Outcome != outcome {
		t.Fatalf("%s: %s (%v), want %s", what, a.Outcome, a.Err, outcome)
	}
	return a.Rev
}

func get(t *testing.T, ctx context.Context, s registry.Store, key string) registry.Item {
	t.Helper()
	i, err := s.Get(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func swap(t *testing.T, ctx context.Context, b Backend) {
	if i := get(t, ctx, b.A, "/t/a"); i.Rev != 0 || i.Value != nil {
		t.Errorf("what is not there: %+v", i)
	}
	r1 := want(t, "create", b.A.Swap(ctx, "/t/a", 0, []byte("1")), registry.Applied)
	if diff := cmp.Diff(registry.Item{Key: "/t/a", Value: []byte("1"), Rev: r1}, get(t, ctx, b.B, "/t/a")); diff != "" {
		t.Errorf("the other client (-want +got)\n%s", diff)
	}
	want(t, "create what is there", b.B.Swap(ctx, "/t/a", 0, []byte("2")), registry.Refused)
	want(t, "swap what is not there", b.B.Swap(ctx, "/t/b", r1, []byte("2")), registry.Refused)
	r2 := want(t, "swap", b.B.Swap(ctx, "/t/a", r1, []byte("2")), registry.Applied)
	r3 := want(t, "swap for the same value", b.B.Swap(ctx, "/t/a", r2, []byte("2")), registry.Applied)
	if r1 >= r2 || r2 >= r3 {
		t.Errorf("revisions do not grow: %d, %d, %d", r1, r2, r3)
	}
	want(t, "swap of an old revision", b.A.Swap(ctx, "/t/a", r2, []byte("3")), registry.Refused)
	if i := get(t, ctx, b.A, "/t/a"); string(i.Value) != "2" || i.Rev != r3 {
		t.Errorf("after a refused swap: %+v", i)
	}
}

func remove(t *testing.T, ctx context.Context, b Backend) {
	r1 := want(t, "create", b.A.Swap(ctx, "/t/a", 0, []byte("1")), registry.Applied)
	r2 := want(t, "swap", b.A.Swap(ctx, "/t/a", r1, []byte("2")), registry.Applied)
	want(t, "delete of an old revision", b.B.Delete(ctx, "/t/a", r1), registry.Refused)
	want(t, "delete what is not there", b.B.Delete(ctx, "/t/b", r1), registry.Refused)
	want(t, "delete", b.B.Delete(ctx, "/t/a", r2), registry.Applied)
	if i := get(t, ctx, b.A, "/t/a"); i.Rev != 0 {
		t.Errorf("after delete: %+v", i)
	}
	if r3 := want(t, "create again", b.A.Swap(ctx, "/t/a", 0, []byte("3")), registry.Applied); r3 <= r2 {
		t.Errorf("a revision has come again: %d after %d", r3, r2)
	}
}

func list(t *testing.T, ctx context.Context, b Backend) {
	revs := make(map[string]lease.Rev)
	for _, key := range []string{"/t/b", "/t/a", "/t0", "/t/a/x", "/s"} {
		revs[key] = want(t, key, b.A.Swap(ctx, key, 0, []byte(key)), registry.Applied)
	}
	l, err := b.B.List(ctx, "/t/")
	if err != nil {
		t.Fatal(err)
	}
	wanted := registry.List{Rev: revs["/s"]}
	for _, key := range []string{"/t/a", "/t/a/x", "/t/b"} {
		wanted.Items = append(wanted.Items, registry.Item{Key: key, Value: []byte(key), Rev: revs[key]})
	}
	if diff := cmp.Diff(wanted, l); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if l, err = b.B.List(ctx, "/none/"); err != nil || len(l.Items) != 0 || l.Rev != revs["/s"] {
		t.Errorf("empty list: %+v, %v", l, err)
	}
}

func contend(t *testing.T, ctx context.Context, b Backend) {
	const workers, each = 8, 10
	var wg sync.WaitGroup
	var mu sync.Mutex
	var revs []lease.Rev
	for w := range workers {
		s := []registry.Store{b.A, b.B}[w%2]
		wg.Go(func() {
			for done := 0; done < each; {
				i, err := s.Get(ctx, "/t/n")
				if err != nil {
					t.Error(err)
					return
				}
				a := s.Swap(ctx, "/t/n", i.Rev, append(i.Value, 'x'))
				if a.Outcome == registry.Unknown {
					t.Error(a.Err)
					return
				}
				if a.Outcome == registry.Applied {
					done++
					mu.Lock()
					revs = append(revs, a.Rev)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if n := len(get(t, ctx, b.A, "/t/n").Value); n != workers*each {
		t.Errorf("%d of %d swaps are left", n, workers*each)
	}
	slices.Sort(revs)
	if n := len(slices.Compact(revs)); n != workers*each {
		t.Errorf("%d revisions for %d swaps", n, workers*each)
	}
}

// errEnough ends a watch that has seen what it waited for.
var errEnough = errors.New("enough")

// collect watches until n changes have come.
func collect(ctx context.Context, s registry.Store, prefix string, after lease.Rev, n int) (items []registry.Item, last lease.Rev, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = s.Watch(ctx, prefix, after, func(b registry.Batch) error {
		items, last = append(items, b.Items...), b.Rev
		if len(items) >= n {
			return errEnough
		}
		return nil
	})
	return items, last, err
}

func watch(t *testing.T, ctx context.Context, b Backend) {
	r0 := want(t, "before", b.A.Swap(ctx, "/t/a", 0, []byte("0")), registry.Applied)
	r1 := want(t, "create", b.A.Swap(ctx, "/t/b", 0, []byte("1")), registry.Applied)
	want(t, "elsewhere", b.A.Swap(ctx, "/s/b", 0, []byte("1")), registry.Applied)
	done := make(chan struct{})
	var items []registry.Item
	var last lease.Rev
	var err error
	go func() {
		defer close(done)
		items, last, err = collect(ctx, b.B, "/t/", r0, 4)
	}()
	r2 := want(t, "swap", b.A.Swap(ctx, "/t/b", r1, []byte("2")), registry.Applied)
	r3 := want(t, "delete", b.A.Delete(ctx, "/t/b", r2), registry.Applied)
	r4 := want(t, "again", b.A.Swap(ctx, "/t/b", 0, []byte("4")), registry.Applied)
	<-done
	wanted := []registry.Item{
		{Key: "/t/b", Value: []byte("1"), Rev: r1}, {Key: "/t/b", Value: []byte("2"), Rev: r2},
		{Key: "/t/b", Rev: r3}, {Key: "/t/b", Value: []byte("4"), Rev: r4},
	}
	if diff := cmp.Diff(wanted, items); diff != "" || !errors.Is(err, errEnough) {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	if last != r4 {
		t.Errorf("told up to %d, want %d", last, r4)
	}
	// A second watch goes on where the first had got to.
	items, _, err = collect(ctx, b.A, "/t/", r2, 2)
	if diff := cmp.Diff(wanted[2:], items); diff != "" || !errors.Is(err, errEnough) {
		t.Errorf("resumed: %v (-want +got)\n%s", err, diff)
	}
}

func watchEnds(t *testing.T, ctx context.Context, b Backend) {
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	err := b.A.Watch(short, "/t/", 0, func(registry.Batch) error { return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after its context: %v", err)
	}
}

func compacted(t *testing.T, ctx context.Context, b Backend) {
	first := want(t, "create", b.A.Swap(ctx, "/t/a", 0, []byte("0")), registry.Applied)
	rev := first
	for i := range 5 {
		rev = want(t, "swap", b.A.Swap(ctx, "/t/a", rev, fmt.Append(nil, i)), registry.Applied)
	}
	if err := b.Compact(ctx, rev); err != nil {
		t.Fatal(err)
	}
	if _, _, err := collect(ctx, b.A, "/t/", first, 1); !errors.Is(err, registry.ErrCompacted) {
		t.Errorf("watch after revision %d: %v, want ErrCompacted", first, err)
	}
	l, err := b.A.List(ctx, "/t/")
	if err != nil || len(l.Items) != 1 {
		t.Fatalf("list: %+v, %v", l, err)
	}
	next := want(t, "swap", b.A.Swap(ctx, "/t/a", rev, []byte("new")), registry.Applied)
	items, _, err := collect(ctx, b.A, "/t/", l.Rev, 1)
	if diff := cmp.Diff([]registry.Item{{Key: "/t/a", Value: []byte("new"), Rev: next}}, items); diff != "" || !errors.Is(err, errEnough) {
		t.Errorf("from the list on: %v (-want +got)\n%s", err, diff)
	}
}

func refused(t *testing.T, ctx context.Context, b Backend) {
	over, cancel := context.WithCancel(ctx)
	cancel()
	if a := b.A.Swap(over, "/t/a", 0, []byte("1")); a.Outcome == registry.Applied || a.Err == nil {
		t.Errorf("swap after its context: %+v", a)
	}
	if _, err := b.A.Get(over, "/t/a"); err == nil {
		t.Error("get after its context")
	}
	if _, err := b.A.List(over, "/t/"); err == nil {
		t.Error("list after its context")
	}
	if a := b.A.Swap(ctx, "", 0, []byte("1")); a.Outcome == registry.Applied || a.Err == nil {
		t.Errorf("swap of no key: %+v", a)
	}
	if a := b.A.Swap(ctx, "/t/a", 0, make([]byte, 4<<20)); a.Outcome == registry.Applied || a.Err == nil {
		t.Errorf("swap of 4 MiB: %s", a.Outcome)
	}
	if i := get(t, ctx, b.A, "/t/a"); i.Rev != 0 {
		t.Errorf("something was applied: revision %d", i.Rev)
	}
}
