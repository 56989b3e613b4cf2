package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// TestHandOver: agents come and go while callers go on, and nothing is lost or
// given twice.
func TestHandOver(t *testing.T) {
	const callers = 8
	p := newPlace(t)
	var over atomic.Bool
	var mu sync.Mutex
	holder := map[string]string{}
	calls := 0
	var wg sync.WaitGroup
	for i := range callers {
		id := fmt.Sprintf("c%d", i)
		c := client.New(p.options.DataDir, p.options.RunDir)
		wg.Go(func() {
			for !over.Load() {
				a, err := c.Allocate(t.Context(), p.request(id), nil)
				if err != nil {
					t.Error(err)
					return
				}
				addr := a.Addresses[0].Prefix.String()
				again, err := c.Allocate(t.Context(), p.request(id), nil)
				if err != nil || again.Addresses[0].Prefix.String() != addr {
					t.Errorf("%s has %s, and then %v, %v", id, addr, again, err)
				}
				mu.Lock()
				calls++
				if h := holder[addr]; h != "" {
					t.Errorf("%s is given to %s and %s", addr, h, id)
				}
				holder[addr] = id
				mu.Unlock()
				mu.Lock()
				delete(holder, addr)
				mu.Unlock()
				if r, err := c.Release(t.Context(), ipam.ReleaseRequest{Attachment: att(id)}, func(ipam.AttachmentRecord) error { return nil }); err != nil || len(r.Records) > 1 {
					t.Errorf("release: %+v, %v", r, err)
				}
			}
		})
	}
	for range 10 {
		_, stop := p.start()
		time.Sleep(100 * time.Millisecond)
		stop()
		time.Sleep(50 * time.Millisecond)
	}
	over.Store(true)
	wg.Wait()
	t.Logf("%d ADDs", calls)
	// A release that was spooled is applied by whoever opens the ledger.
	l, err := ledger.Open(t.Context(), p.options)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := l.Info(); err != nil || info.Held != 0 {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestQueued: who waits for the lock comes over to an agent that listens.
func TestQueued(t *testing.T) {
	p := newPlace(t)
	l, err := ledger.Open(t.Context(), p.options)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := p.c.Allocate(t.Context(), p.request("a"), nil)
		got <- err
	}()
	time.Sleep(50 * time.Millisecond) // in the queue, before the agent
	began := make(chan *Service)
	go func() {
		s, _ := p.start()
		began <- s
	}()
	time.Sleep(250 * time.Millisecond)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	<-began
	if err := <-got; err != nil {
		t.Error(err)
	}
	// The plugin's place in the queue is given up, or the agent would wait for it.
	p.add("b")
}

// TestRefusedLedger: an agent whose ledger gives out nothing is not in the way
// of those who mend it.
func TestRefusedLedger(t *testing.T) {
	p := newPlace(t)
	p.add("a")
	db := filepath.Join(p.options.DataDir, "ledger.db")
	if err := os.Rename(db, db+".away"); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s, err := New(Config{Ledger: p.options, Log: log, Registry: prometheus.NewRegistry(), RetryAfter: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	for range 3 {
		if _, err := p.c.Allocate(t.Context(), p.request("b"), nil); !errors.Is(err, ledger.ErrLost) {
			t.Errorf("allocate: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := s.With(func(*ledger.Ledger) error { return nil }); !errors.Is(err, ErrNotServing) {
		t.Errorf("with no ledger: %v", err)
	}
	if err := ledger.Rebuild(t.Context(), p.options, nil); err != nil {
		t.Fatal(err)
	}
	<-s.Ready()
	p.add("b")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestReplacedLedger: an agent does not go on with a file that nobody will find
// when it has gone.
func TestReplacedLedger(t *testing.T) {
	p := newPlace(t)
	s, _ := p.start()
	p.add("a")
	db := filepath.Join(p.options.DataDir, "ledger.db")
	if err := os.Rename(db, db+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.c.Allocate(t.Context(), p.request("b"), nil); !errors.Is(err, ledger.ErrLost) {
		t.Errorf("allocate: %v", err)
	}
	for s.With(func(*ledger.Ledger) error { return nil }) == nil {
		time.Sleep(time.Millisecond) // until it has let go
	}
	if err := os.Rename(db+".away", db); err != nil {
		t.Fatal(err)
	}
	p.add("b")
}

// TestSocketRemoved: an agent that nobody finds makes itself be found.
func TestSocketRemoved(t *testing.T) {
	p := newPlace(t)
	p.start()
	if err := os.RemoveAll(p.options.RunDir); err != nil {
		t.Fatal(err)
	}
	p.add("a") // waits for the lock, and then for nothing
	socket := filepath.Join(p.options.RunDir, wire.SocketName)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("there is no socket")
		}
	}
	p.add("b")
}

// TestSpooledMeanwhile: a release that had no answer is applied before the next
// allocation.
func TestSpooledMeanwhile(t *testing.T) {
	p := newPlace(t)
	s, _ := p.start()
	first := p.add("a")
	if err := ledger.Spool([]string{p.options.DataDir}, ipam.ReleaseRequest{Attachment: att("a")}); err != nil {
		t.Fatal(err)
	}
	p.add("b")
	err := s.With(func(l *ledger.Ledger) error {
		_, _, found, err := l.Attachment(att("a"))
		if found {
			t.Errorf("%s is still held", first)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// silent listens like an agent that has been stopped.
func (p *place) silent() {
	p.t.Helper()
	if err := os.MkdirAll(p.options.RunDir, 0o755); err != nil {
		p.t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(p.options.RunDir, wire.SocketName))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = l.Close() })
}

// TestSilentAgent: a DEL does not wait for an answer that does not come, an ADD
// says so and leaves nothing.
func TestSilentAgent(t *testing.T) {
	p := newPlace(t)
	p.add("a")
	p.silent()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := p.c.Allocate(ctx, p.request("b"), nil)
	var coded interface{ CNICode() uint }
	if !errors.As(err, &coded) || coded.CNICode() != ipam.CodeTryAgainLater {
		t.Errorf("allocate: %v", err)
	}
	// The patience of a client that has met with silence is short.
	began := time.Now()
	if r, err := p.c.Release(t.Context(), ipam.ReleaseRequest{Attachment: att("a")}, func(ipam.AttachmentRecord) error { return nil }); err != nil || r.Records != nil {
		t.Errorf("release: %+v, %v", r, err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the release took %v", took)
	}
	spooled, err := filepath.Glob(filepath.Join(p.options.DataDir, "released.d", "*.json"))
	if err != nil || len(spooled) != 2 {
		t.Errorf("spooled: %q, %v", spooled, err)
	}
}
