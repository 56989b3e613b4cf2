package storetest

import (
	"context"
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/registry"
)

// ttl of the sessions: what etcd takes for one at least.
const ttl = 2 * time.Second

func never([]byte) bool  { return false }
func always([]byte) bool { return true }

func bind(t *testing.T, ctx context.Context, s registry.Store, value string, takeOver func([]byte) bool) registry.Session {
	t.Helper()
	n, err := s.Bind(ctx, "/t/live", []byte(value), ttl, takeOver)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// gone waits until a key is.
func gone(t *testing.T, ctx context.Context, s registry.Store, key string) {
	t.Helper()
	for end := time.Now().Add(patience); get(t, ctx, s, key).Rev != 0; {
		if time.Now().After(end) {
			t.Fatalf("%s is still there", key)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func lost(t *testing.T, n registry.Session) {
	t.Helper()
	select {
	case <-n.Context().Done():
		if err := context.Cause(n.Context()); !errors.Is(err, registry.ErrSessionLost) {
			t.Errorf("the session ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("the session does not end")
	}
}

func session(t *testing.T, ctx context.Context, b Backend) {
	n := bind(t, ctx, b.A, "a", never)
	want(t, "further key", n.Swap(ctx, "/t/want", 0, []byte("w")), registry.Applied)
	want(t, "further key that is there", n.Swap(ctx, "/t/want", 0, []byte("w")), registry.Refused)
	time.Sleep(2 * ttl) // it is renewed all the while
	for _, key := range []string{"/t/live", "/t/want"} {
		if get(t, ctx, b.B, key).Rev == 0 {
			t.Errorf("%s is gone", key)
		}
	}
	if err := n.Context().Err(); err != nil {
		t.Errorf("the session has ended: %v", err)
	}
	if err := n.Close(ctx); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"/t/live", "/t/want"} {
		if get(t, ctx, b.B, key).Rev != 0 {
			t.Errorf("%s is left", key)
		}
	}
	if n.Context().Err() == nil || errors.Is(context.Cause(n.Context()), registry.ErrSessionLost) {
		t.Errorf("after Close: %v", context.Cause(n.Context()))
	}
	if a := n.Swap(ctx, "/t/want", 0, []byte("late")); a.Outcome == registry.Applied {
		t.Error("a closed session wrote a key")
	}
}

func taken(t *testing.T, ctx context.Context, b Backend) {
	n := bind(t, ctx, b.A, "a", never)
	asked := ""
	_, err := b.B.Bind(ctx, "/t/live", []byte("b"), ttl, func(value []byte) bool { asked = string(value); return false })
	if !errors.Is(err, registry.ErrTaken) || asked != "a" {
		t.Errorf("%v, asked about %q", err, asked)
	}
	if i := get(t, ctx, b.B, "/t/live"); string(i.Value) != "a" || !i.Bound {
		t.Errorf("the key has become %q, of a session %v", i.Value, i.Bound)
	}
	if err := n.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := bind(t, ctx, b.B, "b", never).Close(ctx); err != nil {
		t.Fatal(err)
	}
}

func takenOver(t *testing.T, ctx context.Context, b Backend) {
	first := bind(t, ctx, b.A, "first", never)
	want(t, "key of the first", first.Swap(ctx, "/t/want", 0, []byte("w")), registry.Applied)
	second := bind(t, ctx, b.B, "second", always)
	lost(t, first)
	gone(t, ctx, b.A, "/t/want")
	if a := first.Swap(ctx, "/t/want", 0, []byte("late")); a.Outcome == registry.Applied {
		t.Error("the session that was lost wrote a key")
	}
	_ = first.Close(ctx) // must not take the second's key along
	if i := get(t, ctx, b.A, "/t/live"); string(i.Value) != "second" || second.Context().Err() != nil {
		t.Errorf("the key is %q, the second session: %v", i.Value, second.Context().Err())
	}
	if err := second.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

func dead(t *testing.T, ctx context.Context, b Backend) {
	process, kill := context.WithCancel(ctx)
	n := bind(t, process, b.A, "a", never)
	want(t, "further key", n.Swap(ctx, "/t/want", 0, []byte("w")), registry.Applied)
	kill()
	if get(t, ctx, b.B, "/t/live").Rev == 0 {
		t.Error("the key went with the process, and not after its time")
	}
	gone(t, ctx, b.B, "/t/live")
	gone(t, ctx, b.B, "/t/want")
}

// unbound: a key that goes with no session keeps nobody from one, and all reads
// tell the two apart.
func unbound(t *testing.T, ctx context.Context, b Backend) {
	before := b.A.Swap(ctx, "/t/live", 0, []byte("junk"))
	want(t, "a key", before, registry.Applied)
	n := bind(t, ctx, b.A, "a", never)
	want(t, "further key", n.Swap(ctx, "/t/want", 0, []byte("w")), registry.Applied)
	want(t, "a key", b.A.Swap(ctx, "/t/plain", 0, []byte("p")), registry.Applied)
	wanted := map[string]bool{"/t/live": true, "/t/want": true, "/t/plain": false}
	l, err := b.B.List(ctx, "/t/")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	errAll := errors.New("all told")
	err = b.B.Watch(ctx, "/t/", before.Rev, func(b registry.Batch) error {
		for _, i := range b.Items {
			told[i.Key] = i.Bound
		}
		if len(told) == len(wanted) {
			return errAll
		}
		return nil
	})
	if !errors.Is(err, errAll) {
		t.Error(err)
	}
	listed := map[string]bool{}
	for _, i := range l.Items {
		listed[i.Key] = i.Bound
	}
	if !maps.Equal(listed, wanted) || !maps.Equal(told, wanted) {
		t.Errorf("a list says %v, a watch %v, want %v", listed, told, wanted)
	}
	if err := n.Close(ctx); err != nil {
		t.Fatal(err)
	}
}
