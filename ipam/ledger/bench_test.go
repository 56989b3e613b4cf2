package ledger

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/history"
)

// fill has n attachments hold an address each, without measuring it.
func fill(t testing.TB, o Options, p ipam.Pool, n int) {
	t.Helper()
	l, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	const batch = 500 // in one transaction
	for done := 0; done < n; {
		err := l.update(func(x *tx) error {
			for end := min(n, done+batch); done < end; done++ {
				if _, err := x.allocate(request(p, fmt.Sprintf("filler-%032d", done))); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkHeld measures what an ADD and a DEL cost a plugin: open the
// ledger, one transaction, close it. The times are medians; written is what
// one of the two hands to the kernel, in bytes and calls.
func BenchmarkHeld(b *testing.B) {
	for _, n := range []int{0, 100, 10_000, 60_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o := testOptions(b, nil)
			p := pool("lan", set(b, "10.0.0.0/16"))
			fill(b, o, p, n)
			times := map[string][]time.Duration{}
			lap := func(what string, fn func() error) {
				start := time.Now()
				if err := fn(); err != nil {
					b.Fatal(err)
				}
				times[what] = append(times[what], time.Since(start))
			}
			once := func(what string, fn func(*Ledger) error) {
				var l *Ledger
				lap("open", func() (err error) { l, err = Open(b.Context(), o); return err })
				lap(what, func() error { return fn(l) })
				lap("close", l.Close)
			}
			bytes0, calls0 := written(b)
			for i := 0; b.Loop(); i++ {
				req := request(p, fmt.Sprintf("bench-%032d", i))
				once("add", func(l *Ledger) error { _, err := l.Allocate(req, nil); return err })
				once("del", func(l *Ledger) error {
					_, err := l.Release(ipam.ReleaseRequest{Attachment: req.Attachment})
					return err
				})
			}
			bytes1, calls1 := written(b)
			for what, ds := range times {
				slices.Sort(ds)
				b.ReportMetric(float64(ds[len(ds)/2].Microseconds()), what+"-us")
			}
			b.ReportMetric(float64(bytes1-bytes0)/float64(2*b.N), "written-B")
			b.ReportMetric(float64(calls1-calls0)/float64(2*b.N), "written-calls")
		})
	}
}

// BenchmarkHistory measures what it adds to a DEL that is written down, on open
// ledgers with 1,000 held that take turns: one without the bucket, one where it
// is empty at first, and a full one. The times are medians.
func BenchmarkHistory(b *testing.B) {
	type side struct {
		name     string
		l        *Ledger
		add, del []time.Duration
		bytes    int
	}
	p := pool("lan", set(b, "10.0.0.0/16"))
	var sides []*side
	for _, name := range []string{"none", "empty", "full"} {
		o := testOptions(b, nil)
		fill(b, o, p, 1000)
		s := &side{name: name, l: open(b, o)}
		switch name {
		case "none":
			noHistory(b, s.l)
		case "full":
			err := s.l.update(func(x *tx) error {
				rec, err := x.record(p.Sets[0][0].First.Next().Next())
				for range history.Most {
					err = errors.Join(err, x.ended(rec))
				}
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		sides = append(sides, s)
	}
	for i := 0; b.Loop(); i++ {
		for k := range sides {
			s := sides[(i+k)%len(sides)]
			req := request(p, fmt.Sprintf("bench-%032d", i))
			start := time.Now()
			if _, err := s.l.Allocate(req, nil); err != nil {
				b.Fatal(err)
			}
			s.add = append(s.add, time.Since(start))
			before, _ := written(b)
			start = time.Now()
			if _, err := s.l.Release(ipam.ReleaseRequest{Attachment: req.Attachment}); err != nil {
				b.Fatal(err)
			}
			s.del = append(s.del, time.Since(start))
			after, _ := written(b)
			s.bytes += after - before
		}
	}
	for _, s := range sides {
		slices.Sort(s.add)
		slices.Sort(s.del)
		b.ReportMetric(float64(s.add[len(s.add)/2].Microseconds()), s.name+"-add-us")
		b.ReportMetric(float64(s.del[len(s.del)/2].Microseconds()), s.name+"-del-us")
		b.ReportMetric(float64(s.bytes)/float64(len(s.del)), s.name+"-del-B")
	}
}

// written returns what this process has written so far.
func written(b *testing.B) (bytes, calls int) {
	b.Helper()
	io, err := os.ReadFile("/proc/self/io")
	if err != nil {
		b.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscanf(string(io), "rchar: %d\nwchar: %d\nsyscr: %d\nsyscw: %d", &n, &bytes, &n, &calls); err != nil {
		b.Fatal(err)
	}
	return bytes, calls
}
