package boltfile

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Lock is an flock on a file of its own. It is held by the open file, so two
// Locks of one process exclude each other like those of two processes.
type Lock struct{ file *os.File }

// Acquire waits for the lock until ctx ends and then returns ErrLocked. The
// file at path is created when it is missing, and never renamed or removed:
// whoever waits on it must find the same file as everybody else. A shared
// lock changes nothing on disk; where no lock file exists it returns an error
// that is fs.ErrNotExist.
//
// The wait is one blocking flock in a thread of its own: the kernel wakes the
// waiters the moment that the lock is free, first come first, while polling
// leaves it idle and lets a lucky late one pass. When ctx ends first the
// thread stays behind until it gets the lock, and lets go of it at once.
func Acquire(ctx context.Context, path string, shared bool) (*Lock, error) {
	flag, how := os.O_RDWR|os.O_CREATE, unix.LOCK_EX
	if shared {
		flag, how = os.O_RDONLY, unix.LOCK_SH
	}
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	switch err := flock(f, how|unix.LOCK_NB); {
	case err == nil:
		return &Lock{f}, nil
	case !errors.Is(err, unix.EWOULDBLOCK):
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	got := make(chan error, 1)
	go func() { got <- flock(f, how) }()
	select {
	case err := <-got:
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return &Lock{f}, nil
	case <-ctx.Done():
		go func() {
			<-got
			_ = f.Close()
		}()
		return nil, fmt.Errorf("%w: %w", ErrLocked, context.Cause(ctx))
	}
}

// Close releases the lock.
func (l *Lock) Close() error { return l.file.Close() }

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
