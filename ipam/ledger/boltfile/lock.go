package boltfile

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/underlay-cni/underlay/pkg/flock"
)

// Lock is an flock on a file of its own. It is held by the open file, so two
// Locks of one process exclude each other like those of two processes.
type Lock struct{ file *os.File }

// Acquire waits for the lock until ctx ends and then returns ErrLocked. The
// file at path is created when it is missing, and never renamed or removed:
// whoever waits on it must find the same file as everybody else. A shared
// lock changes nothing on disk; where no lock file exists it returns an error
// that is fs.ErrNotExist.
func Acquire(ctx context.Context, path string, shared bool) (*Lock, error) {
	flag := os.O_RDWR | os.O_CREATE
	if shared {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	err = flock.Lock(ctx, int(f.Fd()), shared)
	switch {
	case err == nil:
		return &Lock{f}, nil
	case ctx.Err() != nil:
		err = fmt.Errorf("%w: %w", ErrLocked, err)
	default:
		err = fmt.Errorf("lock %s: %w", path, err)
	}
	return nil, errors.Join(err, f.Close())
}

// Close releases the lock.
func (l *Lock) Close() error { return l.file.Close() }
