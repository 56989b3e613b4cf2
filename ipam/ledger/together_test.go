package ledger

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/underlay-cni/underlay/ipam"
)

// dump has all that is in the file but the count of transactions.
func dump(t testing.TB, l *Ledger) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := l.file.View(func(b *bbolt.Tx) error {
		return b.ForEach(func(name []byte, bucket *bbolt.Bucket) error {
			return bucket.ForEach(func(k, v []byte) error {
				all[fmt.Sprintf("%s %x", name, k)] = fmt.Sprintf("%x", v)
				return nil
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestTogether has two ledgers take the same changes, the one in transactions
// that several share, the other one by one. Pools are so small that many
// changes fail, most of them after they have written something. Each must come
// to the same in both, and both ledgers be the same to the last byte.
func TestTogether(t *testing.T) {
	t.Parallel()
	dirs := t
	small := pool("small", set(t, "10.0.0.0/24 10.0.0.1-10.0.0.4"))
	other := pool("other", set(t, "10.0.0.0/24 10.0.0.3-10.0.0.6"))
	dual := pool("dual", set(t, "10.0.0.0/24 10.0.0.1-10.0.0.6"), set(t, "2001:db8::/126"))
	strict := pool("strict", set(t, "10.0.0.0/24 10.0.0.2-10.0.0.5"))
	strict.Sticky, strict.StickyFor = ipam.StickyStrict, time.Hour
	pools := []ipam.Pool{small, other, dual, strict}
	failed := 0
	rapid.Check(t, func(t *rapid.T) {
		c := newClock()
		oneID := Options{BootID: "boot-1", MachineID: "machine", Now: c.Now}
		var ledgers [2]*Ledger
		for i := range ledgers {
			o := testOptions(dirs, c)
			o.BootID, o.MachineID = oneID.BootID, oneID.MachineID
			l, err := Open(dirs.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			ledgers[i] = l
		}
		// draw returns a change for each ledger, and their answers.
		draw := func() (fns [2]func(*tx) error, answers *[2]any) {
			answers = new([2]any)
			id := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}).Draw(t, "id")
			if rapid.IntRange(0, 2).Draw(t, "verb") == 0 {
				req := ipam.ReleaseRequest{Attachment: att(id), Undo: rapid.Bool().Draw(t, "undo")}
				for i := range fns {
					fns[i] = func(x *tx) (err error) { answers[i], err = x.releaseKnown(req); return err }
				}
				return fns, answers
			}
			req := request(rapid.SampledFrom(pools).Draw(t, "pool"), id)
			req.Owner = rapid.SampledFrom([]string{"", "ns/x"}).Draw(t, "owner")
			req.Uses = rapid.SampledFrom([]ipam.Uses{{}, {Parent: "eth1", VLAN: 5}, {Parent: "eth1", Port: "l2"}, {Parent: "eth1", Segment: ipam.Segment{VNI: 5, Port: 8472}}}).Draw(t, "uses")
			if a := rapid.SampledFrom([]string{"", "", "", "10.0.0.3", "10.0.0.5"}).Draw(t, "address"); a != "" {
				req.Ask(netip.MustParseAddr(a), "")
			}
			for i := range fns {
				fns[i] = func(x *tx) (err error) { answers[i], err = x.allocate(req); return err }
			}
			return fns, answers
		}
		for range rapid.IntRange(1, 8).Draw(t, "transactions") {
			var batch []*change
			var single []error
			var answers []*[2]any
			for range rapid.IntRange(2, 9).Draw(t, "changes") {
				fns, a := draw()
				batch = append(batch, &change{fn: fns[0]})
				single = append(single, ledgers[1].update(fns[1]))
				answers = append(answers, a)
			}
			ledgers[0].commit(batch)
			for i, b := range batch {
				err := ledgers[0].o.explain(b.err)
				if fmt.Sprint(err) != fmt.Sprint(single[i]) {
					t.Fatalf("change %d of %d together: %v, alone: %v", i, len(batch), err, single[i])
				}
				if err != nil {
					failed++
				} else if diff := cmp.Diff(fmt.Sprint(answers[i][1]), fmt.Sprint(answers[i][0])); diff != "" {
					t.Fatalf("change %d of %d (-alone +together):\n%s", i, len(batch), diff)
				}
			}
			c.add(rapid.SampledFrom([]time.Duration{0, time.Second, time.Minute}).Draw(t, "later"))
		}
		got, want := dump(dirs, ledgers[0]), dump(dirs, ledgers[1])
		id := fmt.Sprintf("%s %x", bucketMeta, keyID)
		delete(got, id)
		delete(want, id)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("what is in the file (-alone +together):\n%s", diff)
		}
		for _, l := range ledgers {
			if findings, err := l.Check(); err != nil || len(findings) > 0 {
				t.Fatalf("check: %q, %v", findings, err)
			}
		}
	})
	if failed == 0 {
		t.Error("no change failed: this proves nothing")
	}
}

// TestConcurrent: many callers at once share transactions, and nobody gets
// what another has.
func TestConcurrent(t *testing.T) {
	const callers, rounds = 32, 20
	l := open(t, testOptions(t, nil))
	p := pool("lan", set(t, "10.0.0.0/24 10.0.0.1-10.0.0.40"))
	p.CoolDown = 0
	tiny := pool("tiny", set(t, "10.0.1.0/24 10.0.1.1-10.0.1.1"))
	first := sequence(t, l)
	var mu sync.Mutex
	holder := map[string]string{}
	refused := 0
	var wg sync.WaitGroup
	for i := range callers {
		id := fmt.Sprintf("c%d", i)
		wg.Go(func() {
			for range rounds {
				a, err := l.Allocate(request(p, id), nil)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if h := holder[addrs(a)]; h != "" {
					t.Errorf("%s was given to %s and %s", addrs(a), h, id)
				}
				holder[addrs(a)] = id
				mu.Unlock()
				// Some fail among the others.
				var full *ipam.ExhaustedError
				if _, err := l.Allocate(request(tiny, "tiny-"+id), nil); errors.As(err, &full) {
					mu.Lock()
					refused++
					mu.Unlock()
				} else if err != nil {
					t.Error(err)
				}
				mu.Lock()
				delete(holder, addrs(a))
				mu.Unlock()
				if r, err := l.Release(ipam.ReleaseRequest{Attachment: att(id)}); err != nil || len(r.Records) != 1 {
					t.Errorf("release: %+v, %v", r, err)
				}
			}
		})
	}
	wg.Wait()
	changes, transactions := 2*callers*rounds, int(sequence(t, l)-first)
	if transactions > changes/2 {
		t.Errorf("%d changes took %d transactions: they were not shared", changes, transactions)
	}
	if refused != callers*rounds-rounds {
		t.Errorf("%d were refused", refused)
	}
	wantStates(t, l, "10.0.1.1 held "+states(t, l)[0][len("10.0.1.1 held "):])
}

// TestTogetherOnAFullDisk: what no transaction has room for, several have.
func TestTogetherOnAFullDisk(t *testing.T) {
	o := testOptions(t, newClock())
	smallDisk(t, &o, "9m")
	fill(t, o, pool("lan", set(t, "10.0.0.0/16")), 5000)
	l := open(t, o)
	var batch []*change
	for i := range 5000 {
		req := ipam.ReleaseRequest{Attachment: att(fmt.Sprintf("filler-%032d", i)), Undo: i%2 == 0}
		batch = append(batch, &change{fn: func(x *tx) error {
			_, err := x.releaseKnown(req)
			return err
		}})
	}
	// A change that takes more than there is fails alone, whatever it is with.
	batch = append(batch, &change{fn: func(x *tx) error { return x.put(bucketCursor, []byte("huge"), make([]byte, 9<<20)) }})
	l.commit(batch)
	last := batch[len(batch)-1]
	for i, c := range batch[:len(batch)-1] {
		if c.err != nil {
			t.Fatalf("release %d: %v", i, c.err)
		}
	}
	if !errors.Is(last.err, ErrNoSpace) {
		t.Errorf("too much: %v", last.err)
	}
	if info, err := l.Info(); err != nil || info.Held != 0 {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestConditions(t *testing.T) {
	c := newClock()
	l := open(t, testOptions(t, c))
	p := pool("lan", set(t, "10.0.0.0/24"))
	gone := errors.New("the caller is gone")
	if _, err := l.AllocateIf(func() error { return gone }, request(p, "a"), nil); !errors.Is(err, gone) {
		t.Error(err)
	}
	wantStates(t, l)
	first := request(p, "a")
	first.Token = 7
	add(t, l, first)
	again := first
	for _, tt := range []struct {
		token uint64
		known bool
	}{{0, true}, {7, false}, {8, true}, {7, false}} {
		again.Token = tt.token
		if a, err := l.Allocate(again, nil); err != nil || a.Known != tt.known {
			t.Errorf("token %d: %+v, %v, want known %v", tt.token, a, err, tt.known)
		}
	}
	release := ipam.ReleaseRequest{Attachment: att("a")}
	_, err := l.ReleaseIf(func(r ipam.AttachmentRecord) error {
		if r.Attachment != att("a") {
			t.Errorf("%+v", r)
		}
		return gone
	}, release)
	if !errors.Is(err, gone) {
		t.Error(err)
	}
	release.Token = 8
	if r, err := l.Release(release); err != nil || r.Records != nil {
		t.Error(r, err)
	}
	wantStates(t, l, "10.0.0.2 held a")
	release.Token, release.Before = 7, c.now.Add(-time.Hour) // a clock that was set back
	if r, err := l.Release(release); err != nil || len(r.Records) != 1 {
		t.Error(r, err)
	}
	if err := Spool([]string{l.o.DataDir}, ipam.ReleaseRequest{Attachment: att("b"), Before: c.now.Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	add(t, l, request(p, "b"))
	if err := l.Drain(); err != nil {
		t.Fatal(err)
	}
	wantStates(t, l, "10.0.0.2 cooling a", "10.0.0.3 cooling b")
}
