package memstore_test

import (
	"context"
	"testing"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/storetest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(*testing.T) storetest.Backend {
		s := memstore.New()
		return storetest.Backend{
			A: s.As("a"), B: s.As("b"),
			Compact: func(_ context.Context, rev lease.Rev) error { s.Compact(rev); return nil },
		}
	})
}

func TestFaults(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := memstore.New()
	next := memstore.Deliver
	s.Rig(func(r memstore.Request) memstore.Fault {
		if r.Client == "a" {
			return next
		}
		return memstore.Deliver
	})
	a, b := s.As("a"), s.As("b")
	rev := b.Swap(ctx, "k", 0, []byte("0")).Rev
	step := func(name string, fault memstore.Fault, change func() registry.Answer, outcome registry.Outcome, value string) {
		t.Helper()
		next = fault
		if got := change(); got.Outcome != outcome {
			t.Errorf("%s: %s, want %s", name, got.Outcome, outcome)
		}
		item, err := b.Get(ctx, "k")
		if err != nil || string(item.Value) != value {
			t.Errorf("%s: %q, %v, want %q", name, item.Value, err, value)
		}
		rev = item.Rev
	}
	swap := func(value string) func() registry.Answer {
		return func() registry.Answer { return a.Swap(ctx, "k", rev, []byte(value)) }
	}
	step("failed", memstore.Fail, swap("1"), registry.Unknown, "0")
	step("answer lost", memstore.Lose, swap("2"), registry.Unknown, "2")
	step("late", memstore.Delay, swap("3"), registry.Unknown, "2")
	step("late too", memstore.Delay, swap("4"), registry.Unknown, "2")
	if n := len(s.Late()); n != 2 {
		t.Fatalf("%d are late", n)
	}
	if got := s.Land(1); got != registry.Applied {
		t.Errorf("landing: %s", got)
	}
	if got := s.Land(0); got != registry.Refused {
		t.Errorf("landing after another: %s", got)
	}
	step("in order", memstore.Deliver, swap("5"), registry.Refused, "4")
	next = memstore.Fail
	if _, err := a.Get(ctx, "k"); err == nil {
		t.Error("a read got through")
	}
}

func TestRestoreGoesBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := memstore.New()
	rev := s.Swap(ctx, "k", 0, []byte("old")).Rev
	snap := s.Snapshot()
	s.Swap(ctx, "k", rev, []byte("new"))
	n, err := s.Bind(ctx, "live", nil, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	broken := make(chan error)
	heard := make(chan bool)
	go func() {
		broken <- s.Watch(ctx, "", rev, func(registry.Batch) error {
			heard <- true
			return nil
		})
	}()
	<-heard
	s.Restore(snap)
	if err := <-broken; err == nil {
		t.Error("the watch goes on")
	}
	<-n.Context().Done()
	l, err := s.List(ctx, "")
	if err != nil || l.Rev != rev || len(l.Items) != 1 || string(l.Items[0].Value) != "old" {
		t.Errorf("restored: %+v, %v", l, err)
	}
}

// A watch that lags shows what is no longer so, in order, and gets there.
func TestHold(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := memstore.New()
	s.Hold(true)
	heard := make(chan string, 10)
	go s.Watch(ctx, "", 1, func(b registry.Batch) error {
		for _, i := range b.Items {
			heard <- string(i.Value)
		}
		return nil
	})
	rev := s.Put("k", []byte("1"))
	s.Swap(ctx, "k", rev, []byte("2"))
	select {
	case v := <-heard:
		t.Errorf("heard %q while held", v)
	default:
	}
	s.Hold(false)
	if a, b := <-heard, <-heard; a != "1" || b != "2" {
		t.Errorf("heard %q, %q", a, b)
	}
}
