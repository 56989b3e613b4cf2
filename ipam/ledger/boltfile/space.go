package boltfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"go.etcd.io/bbolt"

	"github.com/underlay-cni/underlay/pkg/fault"
)

const (
	// firstSize is what a new file takes; room for some 5,000 attachments.
	firstSize = 8 << 20
	// growStep is what it grows by.
	growStep = 4 << 20
)

// Compact makes the file at path anew if it is larger than a new one twice over
// and more than half of it is free, and returns by how much it is shorter then.
// After a crash at any point there is the old file or the new one.
func Compact(path string) (saved int64, err error) {
	old, err := Open(path, true, true)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	size, free := old.Size()
	if size <= 2*firstSize || free <= size/2 {
		return 0, nil
	}
	err = old.View(func(from *bbolt.Tx) error {
		return Create(path, "", func(to *bbolt.Tx) error { return copyAll(from, to) })
	})
	if err != nil {
		return 0, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return size - info.Size(), nil
}

// copyAll copies buckets, which have none inside them, and their sequences.
func copyAll(from, to *bbolt.Tx) error {
	return from.ForEach(func(name []byte, b *bbolt.Bucket) error {
		c, err := to.CreateBucket(name)
		if err != nil {
			return err
		}
		if err := c.SetSequence(b.Sequence()); err != nil {
			return err
		}
		c.FillPercent = 1 // the keys come in order
		return b.ForEach(c.Put)
	})
}

// Size of the file in bytes, and how many of them the next transaction may
// use.
func (f *File) Size() (total, free int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size, f.freeLocked()
}

func (f *File) freeLocked() int64 {
	stats := f.db.Stats()
	pages := int64(stats.FreePageN + stats.PendingPageN)
	// bbolt does not touch the very last page of a file it may not grow.
	return max(0, f.size-f.used-pageSize) + pages*pageSize
}

// Reserve sees to it that at least n bytes are free in the file, and returns
// ErrNoSpace where the file system has no room to grow it. It is called from
// inside of Update.
func (f *File) Reserve(n int64) error {
	free := f.freeLocked()
	if free >= n {
		return nil
	}
	return f.grow(max(growStep, n-free))
}

// grow adds n bytes. The new blocks are written with zeros, not only
// allocated: the first write to an allocated but unwritten block makes the
// file system commit its journal, which would be paid in the fdatasync of
// some later transaction instead of once here.
func (f *File) grow(n int64) error {
	err := extend(f.file, f.size, n)
	if err == nil {
		fault.Point("ledger.grow.extended")
		err = f.file.Sync()
	}
	if err != nil {
		// What did fit is given back; the old part is untouched either way.
		_ = f.file.Truncate(f.size)
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
			return fmt.Errorf("%w: grow by %d KiB: %w", ErrNoSpace, n>>10, err)
		}
		return fmt.Errorf("grow by %d KiB: %w", n>>10, err)
	}
	f.limit(f.size + n)
	return nil
}

// limit has bbolt use size bytes and no more. Left alone, bbolt would extend
// the file by a hole, and a full disk would show only when the hole is
// written: as a failed commit, at a time when nothing can be refused any
// more. With a limit the transaction fails before it has written anything.
func (f *File) limit(size int64) {
	f.size = size
	f.db.MaxSize = int(size)
	// Anything but zero is added by bbolt to what it compares with MaxSize.
	f.db.AllocSize = 0
}

// extend writes n zero bytes at off. fallocate goes first where the file
// system has it: it finds out at once whether there is room, and takes it in
// one piece.
func extend(f *os.File, off, n int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, off, n)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return os.NewSyscallError("fallocate", err)
	}
	w := io.NewOffsetWriter(f, off)
	zeros := make([]byte, 1<<20)
	for n > 0 {
		k, err := w.Write(zeros[:min(n, int64(len(zeros)))])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// CopyTo makes a copy of the file as it is, in one piece: after a crash there is
// none, or a whole one.
func (f *File) CopyTo(path string) (err error) {
	temp := path + ".tmp"
	defer func() {
		if err != nil {
			_ = os.Remove(temp)
		}
	}()
	out, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	wrote, err := f.Copy(out)
	if wrote != nil {
		err = wrote
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	fault.Point("ledger.copy.written")
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Copy writes the file as it is. wrote is the error of w, if that is what it
// ended with. It is a read transaction, which a file that has to grow waits for.
func (f *File) Copy(w io.Writer) (wrote, err error) {
	s := &sink{w: w}
	err = f.View(func(tx *bbolt.Tx) error {
		_, err := tx.WriteTo(s)
		return err
	})
	return s.err, err
}

// sink keeps the error of a writer, of which bbolt passes on the text only.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	if err != nil && s.err == nil {
		s.err = err
	}
	return n, err
}
