// Package flock waits for flock(2) locks. A lock belongs to an open file, so
// two open files of one process exclude each other like those of two
// processes, and it goes when the last descriptor of the open file is closed.
package flock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Lock waits until ctx ends for the lock on the open file that fd refers to,
// one that others may share or an exclusive one. After an error the caller
// closes fd.
//
// The wait is one blocking call in a thread of its own: the kernel wakes the
// waiters the moment that the lock is free, first come first, while polling
// leaves it idle and lets a lucky late one pass. When ctx ends first the
// thread stays behind until it gets the lock, and lets go of it at once. An
// error is that of flock, or that of ctx.
func Lock(ctx context.Context, fd int, shared bool) error {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	if err := call(fd, how|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	// fd may be closed, and its number be used again, while the thread waits.
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	got := make(chan error, 1)
	go func() {
		err := call(own, how)
		unix.Close(own)
		got <- err
	}()
	select {
	case err := <-got:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// File waits likewise for the exclusive lock on a file of its own, which is made
// where it is missing, and never renamed or removed: all have to wait on the same
// one.
func File(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := Lock(ctx, int(f.Fd()), false); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %q: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// Parent waits for what keeps other processes from making or removing what is
// shared on an interface of a name, a parent or a bridge, until unlock. The lock is
// a file in runDir.
func Parent(ctx context.Context, runDir, name string) (unlock func(), err error) {
	// After a reboot a DEL may be the first to come.
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, err
	}
	return File(ctx, filepath.Join(runDir, "parent-"+name+".lock"))
}

func call(fd, how int) error {
	for {
		if err := unix.Flock(fd, how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
