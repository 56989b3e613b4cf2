package event

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/underlay-cni/underlay/pkg/agent/api"
)

func texts(events []api.Event) (out []string) {
	for _, e := range events {
		out = append(out, e.Text)
	}
	return out
}

func TestLog(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	l := New(Config{Slog: slog.New(slog.NewTextHandler(&text, nil)), Registry: prometheus.NewRegistry(), Size: 3, Now: func() time.Time { return now }})
	none, more := l.Since(0)
	if len(none) > 0 {
		t.Errorf("before anything: %v", none)
	}
	l.Add(api.Event{Kind: api.AddressConflict, Pool: "lan", Addr: netip.MustParseAddr("10.0.0.2"), Container: "c1", Text: "a"})
	select {
	case <-more:
	default:
		t.Error("nobody is told of an event")
	}
	first, _ := l.Since(0)
	want := []api.Event{{Seq: uint64(now.UnixMicro()) + 1, Time: now, Kind: api.AddressConflict, Pool: "lan", Addr: netip.MustParseAddr("10.0.0.2"), Container: "c1", Text: "a"}}
	if diff := cmp.Diff(want, first, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("the event (-want +got):\n%s", diff)
	}
	if line := text.String(); !strings.Contains(line, "level=WARN msg=a event=conflict container=c1 pool=lan addr=10.0.0.2\n") {
		t.Errorf("the line is %q", line)
	}
	for _, s := range []string{"b", "c", "d", "e"} {
		l.Add(api.Event{Kind: api.BlockLeased, Text: s})
	}
	all, more := l.Since(0)
	if diff := cmp.Diff([]string{"c", "d", "e"}, texts(all)); diff != "" {
		t.Errorf("of five, three are remembered (-want +got):\n%s", diff)
	}
	if rest, _ := l.Since(all[1].Seq); len(rest) != 1 || rest[0].Text != "e" {
		t.Errorf("after %d: %v", all[1].Seq, rest)
	}
	if rest, _ := l.Since(all[2].Seq); len(rest) != 0 {
		t.Errorf("after the last: %v", rest)
	}
	select {
	case <-more:
		t.Error("told of nothing")
	default:
	}
	if n := testutil.ToFloat64(l.count.WithLabelValues("blockLeased")); n != 4 {
		t.Errorf("counted %v", n)
	}
}

// TestFollow: whoever follows hears of every event once, in order.
func TestFollow(t *testing.T) {
	t.Parallel()
	const writers, each = 4, 200
	l := New(Config{Slog: slog.New(slog.DiscardHandler)})
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				l.Add(api.Event{Kind: api.BlockLeased})
			}
		})
	}
	seen, last := 0, uint64(0)
	for seen < writers*each {
		events, more := l.Since(last)
		for _, e := range events {
			if last != 0 && e.Seq != last+1 {
				t.Fatalf("%d follows %d", e.Seq, last)
			}
			last = e.Seq
			seen++
		}
		if len(events) == 0 {
			<-more
		}
	}
	wg.Wait()
}
