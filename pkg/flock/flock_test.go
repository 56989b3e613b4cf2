package flock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestLock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	first, second, third := open(t, path), open(t, path), open(t, path)
	if err := Lock(t.Context(), int(first.Fd()), false); err != nil {
		t.Fatal(err)
	}

	// One that gives up leaves nothing behind that keeps others out.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := Lock(ctx, int(second.Fd()), false); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("second lock: %v, want the deadline", err)
	}
	second.Close()

	got := make(chan error, 1)
	go func() { got <- Lock(t.Context(), int(third.Fd()), false) }()
	select {
	case err := <-got:
		t.Fatalf("third lock while the first is held: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	first.Close()
	if err := <-got; err != nil {
		t.Fatalf("third lock: %v", err)
	}
}

func TestShared(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	for range 2 {
		if err := Lock(t.Context(), int(open(t, path).Fd()), true); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := Lock(ctx, int(open(t, path).Fd()), false); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("exclusive lock beside shared ones: %v, want the deadline", err)
	}
}

// TestParent: who has the lock of one parent keeps out who wants that one.
func TestParent(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "run")
	unlock, err := Parent(t.Context(), dir, "eth1")
	if err != nil {
		t.Fatal(err)
	}
	other, err := Parent(t.Context(), dir, "eth2")
	if err != nil {
		t.Fatal(err)
	}
	other()
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Parent(short, dir, "eth1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while it is held: %v", err)
	}
	unlock()
	again, err := Parent(t.Context(), dir, "eth1")
	if err != nil {
		t.Fatal(err)
	}
	again()
}
