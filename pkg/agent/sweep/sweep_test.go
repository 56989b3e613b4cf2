package sweep

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// open is a Ledger that is there, or not.
type open struct {
	l    *ledger.Ledger
	away atomic.Bool
}

func (o *open) With(f func(*ledger.Ledger) error) error {
	if o.away.Load() {
		return errors.New("no ledger")
	}
	return f(o.l)
}

// journal is a log that is read while it is written.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	l, err := ledger.Open(t.Context(), ledger.Options{DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	gone := ipam.Attachment{Network: "lan", ContainerID: "c1", IfName: "eth0"}
	doubt := client.Reclaimed{Seen: 20, Dead: 19, Doubt: "19 of 20 attachments look dead at once"}
	synctest.Test(t, func(t *testing.T) {
		var log journal
		reg := prometheus.NewRegistry()
		looks := []client.Reclaimed{{Seen: 2, Dead: 1}, {Seen: 2, Dead: 1, Released: []ipam.Attachment{gone}}, doubt, doubt, {}}
		var looked, freed atomic.Int64
		there := &open{l: l}
		s, err := New(Config{Ledger: there, Log: slog.New(slog.NewTextHandler(&log, nil)), Registry: reg, Freed: func() { freed.Add(1) },
			Reclaim: func(*ledger.Ledger) (client.Reclaimed, error) {
				return looks[looked.Add(1)-1], nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		<-s.Ready()
		after := func(d time.Duration, want int64) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := looked.Load(); got != want {
				t.Errorf("%d looks, want %d", got, want)
			}
		}
		after(59*time.Second, 0)
		after(2*time.Second, 1)
		if log.String() != "" || freed.Load() != 0 || testutil.ToFloat64(s.metrics.dead) != 1 {
			t.Errorf("after one look: %s", &log)
		}
		after(time.Minute, 2)
		if !strings.Contains(log.String(), "container=c1") || testutil.ToFloat64(s.metrics.released) != 1 || freed.Load() != 1 || testutil.ToFloat64(s.metrics.dead) != 0 {
			t.Errorf("after two looks: %s", &log)
		}
		after(2*time.Minute, 4)
		if strings.Count(log.String(), "look dead at once") != 1 || testutil.ToFloat64(s.metrics.doubts) != 2 {
			t.Errorf("a doubt is told once: %s", &log)
		}
		there.away.Store(true)
		after(time.Minute, 4)
		if !strings.Contains(log.String(), "no ledger") {
			t.Errorf("without a ledger: %s", &log)
		}
		there.away.Store(false)
		after(time.Minute, 5)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
