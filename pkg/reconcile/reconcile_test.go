package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func text(err error) string {
	if err == nil {
		return ""
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

func TestApply(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		have    string
		prepare func(*kernel)
		want    string
		written string // first Apply
		is      string
		err     string
	}{
		{name: "nothing"},
		{name: "from cold", want: "b=1 a=2", written: "+b=1 +a=2", is: "a=2 b=1"},
		{name: "stale ones go, last", have: "a=1 x=1 y=2", want: "a=1 b=1", written: "+b=1 -x=1 -y=2", is: "a=1 b=1"},
		{name: "changed ones are replaced", have: "a=1 b=1", want: "a=2 b=1", written: "a=1>a=2", is: "a=2 b=1"},
		{name: "several of a key", have: "a=1 a=2 a=3 b=4 b=5", want: "a=2 b=6", written: "b=4>b=6 -a=3 -b=5 -a=1", is: "a=2 b=6"},
		{name: "as the kernel shows it", have: "a=x", want: "a=X", is: "a=x"},
		{name: "malformed", have: "a=1", want: "=1 b=2", written: "+b=2 -a=1", is: "b=2", err: "peer of-: =1: has no key"},
		{name: "two want the same", want: "a=1 b=1 a=2", written: "+a=1 +b=1", is: "a=1 b=1", err: "peer of-a: a=2: peer of-a wants a=1"},
		{
			name: "refused", want: "a=1 b=1", written: "+a=1 +b=1", is: "b=1", err: "peer of-a: refused",
			prepare: func(k *kernel) { k.refuse[thing{"a", "1"}] = errThing },
		},
		{
			// What is there would lead somewhere else.
			name: "refused instead of another", have: "a=0", want: "a=1", written: "a=0>a=1 -a=0", err: "peer of-a: refused",
			prepare: func(k *kernel) { k.refuse[thing{"a", "1"}] = errThing },
		},
		{
			name: "cannot be deleted", have: "a=1", want: "b=1", written: "+b=1 -a=1", is: "a=1 b=1", err: "refused",
			prepare: func(k *kernel) { k.refuse[thing{"a", "1"}] = errThing },
		},
		{
			name: "taken, and lost at once", want: "a=1 b=1", written: "+a=1 +b=1 +a=1", is: "a=1 b=1",
			prepare: func(k *kernel) { k.forget[thing{"a", "1"}] = 1 },
		},
		{
			name: "never kept", want: "a=1 b=1", written: "+a=1 +b=1 +a=1", is: "b=1", err: "peer of-a: a=1: " + errNotKept.Error(),
			prepare: func(k *kernel) { k.forget[thing{"a", "1"}] = 100 },
		},
		{
			// All of it was carried out, and none of it was heard.
			name: "outcome unknown", want: "a=1 b=1", written: "+a=1 +b=1", is: "a=1 b=1",
			prepare: func(k *kernel) { k.cut = []int{0} },
		},
		{
			name: "outcome unknown from the second on", have: "x=1", want: "a=1 b=1", written: "+a=1 +b=1 -x=1", is: "b=1", err: "peer of-a: refused",
			prepare: func(k *kernel) { k.cut = []int{1}; k.refuse[thing{"a", "1"}] = errThing },
		},
		{
			name: "outcome unknown again and again", want: "a=1 b=1", written: "+a=1 +b=1 +a=1 +a=1", is: "b=1", err: "cut",
			prepare: func(k *kernel) { k.cut = []int{0, 0, 0}; k.refuse[thing{"a", "1"}] = errThing },
		},
		{name: "not read", want: "a=1", err: "broken", prepare: func(k *kernel) { k.broken = errors.New("broken") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			k := newKernel()
			for _, w := range things(tt.have) {
				k.have = append(k.have, w.Object)
			}
			if tt.prepare != nil {
				tt.prepare(k)
			}
			r := New[string](k, Options[thing]{})
			err := r.Apply(t.Context(), things(tt.want))
			got := []string{k.said(), k.String(), text(err)}
			if diff := cmp.Diff([]string{tt.written, tt.is, tt.err}, got); diff != "" {
				t.Errorf("written, is, error (-want +got):\n%s", diff)
			}
			if k.broken == nil && tt.err != "cut" {
				if again := text(r.Apply(t.Context(), things(tt.want))); again != tt.err || k.said() != "" {
					t.Errorf("the second time it says %q, and writes", again)
				}
			}
		})
	}
}

func TestByPeer(t *testing.T) {
	t.Parallel()
	k := newKernel(thing{"x", "1"})
	k.refuse[thing{"a", "1"}], k.refuse[thing{"x", "1"}] = errThing, errThing
	r := New[string](k, Options[thing]{})
	_ = r.Apply(t.Context(), append(things("a=1 b=1"), Want[thing]{"of-a", thing{"c", "1"}}, Want[thing]{"of-a", thing{"", "1"}}))
	got := make(map[string]string)
	for peer, err := range ByPeer(r.Status()) {
		got[peer] = text(err)
	}
	want := map[string]string{"of-a": "refused; =1: has no key", "of-b": "", "": "refused"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// start runs a reconciler in a bubble, and applies.
func start(t *testing.T, k *kernel, opts Options[thing], want string) *Reconciler[string, thing] {
	t.Helper()
	r := New[string](k, opts)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	time.Sleep(2 * settle)
	_ = r.Apply(t.Context(), things(want))
	return r
}

// One that is refused is tried after 1 s, 2 s, 4 s and so on, whatever becomes
// of others, until it works.
func TestBackOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKernel()
		k.refuse[thing{"a", "1"}] = errThing
		k.refuse[thing{"c", "1"}] = errThing
		var told []string
		r := start(t, k, Options[thing]{MaxRetry: 5 * time.Second, Resync: time.Hour, Changed: func(s Status[thing]) {
			told = append(told, fmt.Sprintf("%s %v", s.Peer, s.Err))
		}}, "a=1 b=1 c=1")
		var tries []string
		for second := range 21 {
			if second == 5 {
				k.mu.Lock()
				delete(k.refuse, thing{"c", "1"})
				k.mu.Unlock()
			}
			synctest.Wait()
			if written := k.said(); written != "" {
				tries = append(tries, fmt.Sprintf("%d: %s", second, written))
			}
			if s := r.Status()[0]; s.Attempts != len(tries) || time.Until(s.Next) > 5*time.Second {
				t.Errorf("after %d attempts: %+v", len(tries), s)
			}
			time.Sleep(time.Second)
		}
		want := []string{"0: +a=1 +b=1 +c=1", "1: +a=1 +c=1", "3: +a=1 +c=1", "7: +a=1 +c=1", "12: +a=1", "17: +a=1"}
		if diff := cmp.Diff(want, tries); diff != "" {
			t.Errorf("attempts by second (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"of-a refused", "of-c refused", "of-c <nil>"}, told); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
		if got := k.String(); got != "b=1 c=1" {
			t.Errorf("is %q", got)
		}
	})
}

// What is tried before it is due, since something has changed, is not due later
// for it.
func TestEarlyAttempts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKernel()
		k.refuse[thing{"a", "1"}] = errThing
		r := start(t, k, Options[thing]{Retry: time.Minute, MaxRetry: time.Hour}, "a=1")
		due := r.Status()[0].Next
		for range 10 {
			k.do(Around, func() {})
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if s := r.Status()[0]; s.Attempts != 11 || s.Next != due {
			t.Errorf("%d attempts, the next %v later than before", s.Attempts, s.Next.Sub(due))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := r.Status()[0]; s.Attempts != 12 || s.Next.Sub(due) != 2*time.Minute {
			t.Errorf("%d attempts, the next %v later than before", s.Attempts, s.Next.Sub(due))
		}
	})
}

func TestRun(t *testing.T) {
	t.Parallel()
	// quiet waits until what has been heard is done with.
	quiet := func() {
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
	}
	hour := Options[thing]{Retry: time.Hour, MaxRetry: time.Hour, Resync: 24 * time.Hour}
	t.Run("ours", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			k := newKernel()
			start(t, k, hour, "a=1 b=1")
			k.do(Ours, func() { k.have = []thing{{"x", "1"}} })
			quiet()
			if got := k.String(); got != "a=1 b=1" {
				t.Errorf("is %q", got)
			}
		})
	})
	t.Run("a burst", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			k := newKernel()
			r := start(t, k, hour, "a=1")
			quiet()
			before := r.Counts().Passes
			for range 1000 {
				k.do(Ours, func() {})
			}
			quiet()
			if got := r.Counts().Passes - before; got > 2 {
				t.Errorf("%d passes", got)
			}
		})
	})
	t.Run("what failed is tried when something else changes", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			k := newKernel()
			k.refuse[thing{"a", "1"}] = errThing
			r := start(t, k, hour, "a=1")
			quiet()
			k.said()
			k.do(Ours, func() {})
			quiet()
			if got := k.said(); got != "" {
				t.Errorf("after a change of ours: %q", got)
			}
			for _, n := range []News{Around, Foreign} {
				k.do(n, func() {})
				quiet()
				if got := k.said(); got != "+a=1" {
					t.Errorf("after news %d: %q", n, got)
				}
			}
			k.do(Around, func() { clear(k.refuse) })
			quiet()
			passes := r.Counts().Passes
			k.do(Foreign, func() {}) // does not matter now
			quiet()
			if got := r.Counts().Passes; k.String() != "a=1" || got != passes {
				t.Errorf("is %q, %d passes, before %d", k, got, passes)
			}
		})
	})
	t.Run("the slow timer", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			k := newKernel()
			start(t, k, Options[thing]{}, "a=1")
			quiet()
			k.mu.Lock()
			k.have = nil // and nobody says so
			k.mu.Unlock()
			time.Sleep(29 * time.Second)
			if got := k.String(); got != "" {
				t.Errorf("too early: %q", got)
			}
			time.Sleep(2 * time.Second)
			if got := k.String(); got != "a=1" {
				t.Errorf("is %q", got)
			}
		})
	})
	t.Run("cannot be read for a while", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			k := newKernel()
			k.refuse[thing{"b", "1"}] = errThing
			r := start(t, k, Options[thing]{Resync: time.Hour}, "b=1")
			k.mu.Lock()
			k.broken = errThing
			delete(k.refuse, thing{"b", "1"})
			k.mu.Unlock()
			_ = r.Apply(t.Context(), things("a=1 b=1"))
			before := r.Counts().Passes
			time.Sleep(10 * time.Second) // b is long due
			if got := r.Counts().Passes - before; got > 11 {
				t.Errorf("%d passes in 10 s", got)
			}
			if r.Err() == nil || r.Status()[0].Err == nil {
				t.Error("nothing tells that the kernel cannot be read")
			}
			k.mu.Lock()
			k.broken = nil
			k.mu.Unlock()
			time.Sleep(2 * time.Second)
			if err := errors.Join(r.Err(), r.Status()[0].Err); err != nil || k.String() != "a=1 b=1" {
				t.Errorf("is %q, %v", k, err)
			}
		})
	})
	t.Run("nothing before the first", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			k := newKernel(thing{"a", "1"})
			r := New[string](k, Options[thing]{})
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- r.Run(ctx) }()
			synctest.Wait()
			k.do(Around, func() {})
			time.Sleep(time.Hour)
			if got := k.said(); got != "" {
				t.Errorf("wrote %q", got)
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("deaf", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			k := newKernel()
			go func() { k.deaf <- errThing }()
			if err := New[string](k, Options[thing]{}).Run(context.Background()); !errors.Is(err, errThing) {
				t.Errorf("ends with %v", err)
			}
		})
	})
}

// Whatever is there, wanted and refused: in the end that is there which is
// wanted and not refused, and applying it again writes nothing.
func TestRandom(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		one := rapid.Custom(func(t *rapid.T) thing {
			return thing{rapid.StringMatching("[a-e]").Draw(t, "key"), rapid.StringMatching("[0-3]").Draw(t, "value")}
		})
		k := newKernel()
		r := New[string](k, Options[thing]{Retry: time.Hour, MaxRetry: time.Hour})
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			k.have = append(k.have, rapid.SliceOfN(one, 0, 3).Draw(t, "others add")...)
			slices.SortFunc(k.have, func(a, b thing) int { return strings.Compare(a.String(), b.String()) })
			k.have = slices.Compact(k.have)
			clear(k.refuse)
			for _, o := range rapid.SliceOfN(one, 0, 2).Draw(t, "refused") {
				if !slices.Contains(k.have, o) {
					k.refuse[o] = errThing
				}
			}
			k.cut = rapid.SliceOfN(rapid.IntRange(0, 5), 0, 1).Draw(t, "cut")
			var want []Want[thing]
			var is []string
			for _, o := range rapid.SliceOfNDistinct(one, 0, 5, thing.Key).Draw(t, "want") {
				want = append(want, Want[thing]{Object: o})
				if k.refuse[o] == nil {
					is = append(is, o.String())
				}
			}
			slices.Sort(is)
			// As after a link's news, so that nothing rests.
			r.mu.Lock()
			r.takeLocked(want)
			r.passLocked(context.Background(), true)
			r.mu.Unlock()
			if got := k.String(); got != strings.Join(is, " ") {
				t.Fatalf("is %q, want %q", got, is)
			}
			k.said()
			k.cut = nil
			err := r.Apply(context.Background(), want)
			if got := k.said(); got != "" || (err == nil) != (len(is) == len(want)) {
				t.Fatalf("again: %q, %v", got, err)
			}
		}
	})
}
