// Package boltfile keeps a bbolt file that many short-lived processes share,
// on disks that fill up and lose blocks:
//
//   - processes queue for it in the order in which they come (Acquire);
//   - it comes into being whole or not at all (Create);
//   - its space is taken ahead of need, so that a full disk refuses a
//     transaction before it begins instead of breaking its commit (Reserve);
//   - damage in it is an error and never a crash or an endless loop: Verify
//     walks the pages without bbolt, and what bbolt panics on, or faults on
//     in the mapping, comes back as ErrCorrupt.
//
// It knows nothing of what the file holds. The caller holds a Lock for as
// long as it has a File open: shared for reading, exclusive for writing.
package boltfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/fault"
)

var (
	// ErrCorrupt is returned when the file is not what bbolt wrote.
	ErrCorrupt = errors.New("the file is damaged")
	// ErrNoSpace is returned when the file cannot grow.
	ErrNoSpace = errors.New("no space left to grow the file")
	// ErrLocked is returned when the context ended before the lock was free.
	ErrLocked = errors.New("others hold the lock")
	// ErrUnknown is returned by a commit that broke: the transaction may have
	// happened or not. The File can only be closed after it.
	ErrUnknown = errors.New("a commit broke, its outcome is unknown")
)

// pageSize is that of every file, whatever the machine's: a file may move to
// a machine with larger pages, and a commit writes whole pages.
const pageSize = 4096

// File is an open bbolt file. Its methods may be called concurrently.
type File struct {
	file *os.File

	mu   sync.Mutex // one Update at a time; guards what follows
	db   *bbolt.DB
	size int64 // of the file
	used int64 // up to bbolt's high-water mark, as the last Update began

	deadMu sync.Mutex
	dead   error // why nothing but Close may be called
	stuck  bool  // bbolt has panicked, and may hold its own locks
}

// Create makes the file at path with what fill puts into it, and puts it in
// place of the one that is there, if any; that one stays beside it as keepAs
// unless keepAs is empty. After a crash at any point path is either what it
// was or complete.
func Create(path, keepAs string, fill func(*bbolt.Tx) error) (err error) {
	temp := path + ".tmp"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp)
		}
	}()
	if err := fillNew(file, fill); err != nil {
		return err
	}
	fault.Point("ledger.create.filled")
	if keepAs != "" {
		// A link keeps path in place all the time; a folder has to be moved.
		if err := os.Link(path, keepAs); err != nil && !errors.Is(err, os.ErrNotExist) {
			if err := os.Rename(path, keepAs); err != nil {
				return err
			}
		}
		fault.Point("ledger.create.kept")
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	fault.Point("ledger.create.renamed")
	return SyncDir(filepath.Dir(path))
}

func fillNew(file *os.File, fill func(*bbolt.Tx) error) (err error) {
	f, err := open(file, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fault.Point("ledger.create.opened")
	if err := f.grow(firstSize - f.size); err != nil {
		return err
	}
	return f.Update(func(tx *bbolt.Tx) (bool, error) { return true, fill(tx) })
}

// MakeDir makes a folder, and those above it, durable. One that is there
// stays as it is.
func MakeDir(dir string, mode os.FileMode) error {
	err := os.Mkdir(dir, mode)
	if errors.Is(err, os.ErrNotExist) {
		if _, serr := os.Stat(filepath.Dir(dir)); serr == nil {
			return err // some file systems say so of what they refuse to make
		}
		if err := MakeDir(filepath.Dir(dir), 0o755); err != nil {
			return err
		}
		err = os.Mkdir(dir, mode)
	}
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return SyncDir(filepath.Dir(dir))
}

// SyncDir makes what was created, renamed or removed in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Open opens the file at path. With everyPage it looks at every page
// first, as Verify does.
func Open(path string, readOnly, everyPage bool) (*File, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		// A pipe or a device could block or be harmed by opening it.
		return nil, fmt.Errorf("%w: it is not a file but %s", ErrCorrupt, info.Mode().Type())
	case info.Size() < 4*pageSize:
		// bbolt would make a new ledger of an empty one.
		return nil, fmt.Errorf("%w: it is only %d bytes long", ErrCorrupt, info.Size())
	}
	flag := os.O_RDWR
	if readOnly {
		flag = os.O_RDONLY
	}
	file, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	if err := verify(file, everyPage); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return open(file, readOnly)
}

// open takes over file, which it closes if it fails.
func open(file *os.File, readOnly bool) (f *File, err error) {
	f = &File{file: file}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	err = f.guard(func() error {
		var err error
		f.db, err = bbolt.Open(file.Name(), 0o600, &bbolt.Options{
			ReadOnly: readOnly,
			// The file is open already; bbolt must not create another one.
			OpenFile: func(string, int, os.FileMode) (*os.File, error) { return file, nil },
			// bbolt's own lock is only a guard against foreign programs, since
			// the caller holds a Lock. Of a process that dies, the kernel may
			// let go of the Lock a moment before.
			Timeout:  time.Second,
			PageSize: pageSize,
			// The free list is written with each commit (one page), since an
			// open that finds none reads every page of the file to make one.
			NoFreelistSync: false,
			// It is loaded even for reading, here where a fault is caught.
			PreLoadFreelist: true,
			// The array gives out the lowest free pages first, which keeps the
			// used part of the file short, and loads faster than the hash map.
			FreelistType: bbolt.FreelistArrayType,
			// Size needs the count of free pages.
			NoStatistics: false,
		})
		if err != nil {
			return err
		}
		info, err := file.Stat()
		if err != nil {
			return err
		}
		f.limit(info.Size())
		return f.db.View(func(tx *bbolt.Tx) error {
			f.used = tx.Size()
			return nil
		})
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		err = fmt.Errorf("%w: another program has the file open", ErrLocked)
	}
	return f, err
}

// Close closes the file. Where bbolt has panicked, its mapping is left to the
// end of the process, since it may have stopped anywhere.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deadMu.Lock()
	defer f.deadMu.Unlock()
	if f.db != nil && !f.stuck {
		return f.db.Close()
	}
	// The mapping keeps the open file alive, and bbolt's lock with it.
	_ = unix.Flock(int(f.file.Fd()), unix.LOCK_UN)
	return f.file.Close()
}

// At reports whether the file is still the one at path.
func (f *File) At(path string) bool {
	there, err := os.Stat(path)
	if err != nil {
		return false
	}
	here, err := f.file.Stat()
	return err == nil && os.SameFile(there, here)
}

// Dead says why the File can only be closed, if so.
func (f *File) Dead() error {
	f.deadMu.Lock()
	defer f.deadMu.Unlock()
	return f.dead
}

func (f *File) die(err error, stuck bool) error {
	f.deadMu.Lock()
	defer f.deadMu.Unlock()
	if f.dead == nil {
		f.dead = err
	}
	f.stuck = f.stuck || stuck
	return err
}

// View runs fn in a read transaction.
func (f *File) View(fn func(*bbolt.Tx) error) error {
	if err := f.Dead(); err != nil {
		return err
	}
	return f.guard(func() error { return f.db.View(fn) })
}

// Update runs fn in a write transaction, and commits it durably if fn reports
// that it has written something. fn may run more than once. When an error is
// returned nothing has happened, unless it is ErrUnknown.
func (f *File) Update(fn func(*bbolt.Tx) (wrote bool, err error)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		err := f.update(fn)
		if !errors.Is(err, bolterrors.ErrMaxSizeReached) {
			return err
		}
		if err := f.grow(growStep); err != nil {
			return err
		}
	}
}

func (f *File) update(fn func(*bbolt.Tx) (bool, error)) error {
	if err := f.Dead(); err != nil {
		return err
	}
	return f.guard(func() error {
		tx, err := f.db.Begin(true)
		if err != nil {
			return err
		}
		f.used = tx.Size()
		if wrote, err := fn(tx); err != nil || !wrote {
			_ = tx.Rollback() // fails only when there is no transaction
			return err
		}
		fault.Point("ledger.commit.begin")
		err = tx.Commit()
		if err != nil && !errors.Is(err, bolterrors.ErrMaxSizeReached) {
			return f.die(fmt.Errorf("%w: %w", ErrUnknown, err), false)
		}
		return err
	})
}

// guard runs fn and turns damage that bbolt stumbles over into ErrCorrupt:
// its own panics, and faults in the mapping (a page beyond the end of the
// file, or one that the disk cannot read). Other panics pass.
func (f *File) guard(fn func() error) error {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return f.recovered(fn)
}

func (f *File) recovered(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if _, faulted := p.(interface{ Addr() uintptr }); !faulted && !panickedIn("go.etcd.io/bbolt") {
				panic(p)
			}
			err = f.die(fmt.Errorf("%w: %v", ErrCorrupt, p), true)
		}
	}()
	return fn()
}

// panickedIn reports, during a panic, whether code under the import path
// raised it.
func panickedIn(path string) bool {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	panicking := false
	for {
		frame, more := frames.Next()
		if inRuntime := strings.HasPrefix(frame.Function, "runtime."); panicking && !inRuntime {
			return strings.HasPrefix(frame.Function, path)
		}
		panicking = panicking || frame.Function == "runtime.gopanic"
		if !more {
			return false
		}
	}
}
