// Package ledger keeps the addresses of one node in one bbolt file: which
// attachment holds which, which ones rest after their release, and which
// parent interfaces, VLANs and host-side siblings attachments share.
//
// What holds at any time, also after a crash at any point:
//
//   - An address has one record or none, so it never has two holders.
//   - Each change is durable; when a method has returned without error its
//     result survives kill -9 and power loss. Changes that are asked for at the
//     same time share a transaction, and none of them notices.
//   - A ledger that is damaged, of an unknown state, or older than what this
//     boot has seen of it gives out no address. Releases go on where they can.
//   - Allocate and Release touch a bounded number of records, whatever the
//     ledger holds.
//
// The file is opened for each use and closed again, for which processes queue,
// or stays open in the agent that serves them.
// Package ipam defines what the states mean; package boltfile is the file.
package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
	"github.com/underlay-cni/underlay/ipam/ledger/demand"
	"github.com/underlay-cni/underlay/ipam/ledger/mark"
	"github.com/underlay-cni/underlay/pkg/fault"
)

var (
	// ErrLost is returned when ledger.db is missing, older than, or another
	// than the one that was used since this boot.
	ErrLost = errors.New("this is not the ledger of the containers that are running")
	// ErrNewerSchema is returned for a ledger that a newer version wrote.
	ErrNewerSchema = errors.New("a newer version of underlay wrote it")
	// ErrUnconfirmed is returned by Allocate from a cluster pool while nobody has
	// confirmed, in this boot, that the node has what it leased: see Confirm.
	ErrUnconfirmed = errors.New("the agent has not confirmed this node's leases since the boot")
	// ErrReadOnly is returned for a change to a ledger that is opened for
	// reading, or that lies where this process may not write.
	ErrReadOnly = errors.New("it is read-only")
	// ErrCorrupt is returned when the file, or a record in it, is damaged.
	ErrCorrupt = boltfile.ErrCorrupt
	// ErrNoSpace is returned by Allocate when the disk is full.
	ErrNoSpace = boltfile.ErrNoSpace
	// ErrLocked is returned by Open when ctx ended before others let go.
	ErrLocked = boltfile.ErrLocked
)

// errOldSchema is returned for a change of blocks in a ledger that could not be
// brought to this version's schema.
var errOldSchema = errors.New("it is of an older schema, without cluster pools")

// errBroken is why nothing is given out after a commit that broke.
var errBroken = boltfile.ErrUnknown

const (
	dbName   = "ledger.db"
	lockName = "ledger.lock"
	markName = "ledger.seq"
	// confirmedName is of the file that Confirm writes.
	confirmedName = "confirmed"

	// schema of the buckets that tx.go describes.
	schema = 2
	// minFree is what has to be free in the file for Allocate: what is left
	// is for releases, on a disk that gives no more.
	minFree = 1 << 20
	// tightFree is what has to be free for released addresses to rest, which
	// takes more room than to forget them.
	tightFree = minFree / 4
)

// Options of Open and Rebuild.
type Options struct {
	// DataDir holds ledger.db and ledger.lock; required, made with mode 0700.
	DataDir string
	// RunDir holds ledger.seq and is emptied by a reboot; required.
	RunDir string
	// BootID of the running kernel; default: the kernel's own.
	BootID string
	// MachineID goes into a new ledger; default: that of /etc/machine-id.
	MachineID string
	// Now is the wall clock; default fault.Now.
	Now func() time.Time
	// ReadOnly opens for reading beside other readers, and changes nothing.
	ReadOnly bool
}

func (o *Options) setDefaults() error {
	if o.DataDir == "" || o.RunDir == "" {
		return errors.New("ledger: DataDir and RunDir are required")
	}
	if o.Now == nil {
		o.Now = fault.Now
	}
	if o.BootID == "" {
		var err error
		if o.BootID, err = fault.Boot(); err != nil {
			return err
		}
	}
	return nil
}

func (o *Options) dbPath() string   { return filepath.Join(o.DataDir, dbName) }
func (o *Options) markPath() string { return filepath.Join(o.RunDir, markName) }

// Ledger is an open ledger. Its methods may be called concurrently.
type Ledger struct {
	o    Options
	lock *boltfile.Lock
	file *boltfile.File
	id   string

	queue  queue
	demand demand.Counter

	mu   sync.Mutex // orders transactions and their marks
	mark *os.File   // nil where there is none to be written
	seq  uint64     // of the last transaction

	refusedMu sync.Mutex // not mu: whoever asks must not wait for the disk
	refused   error

	spool sync.Mutex // one drain at a time
}

// Open opens the ledger and makes a new one where none has been. It waits for
// the lock until ctx ends. Unless it opens for reading it then applies the
// releases that were spooled (Spool) and, at the first open after a reboot,
// releases all that was held before it.
//
// A ledger that gives out no addresses is opened all the same where that is
// possible: see Refused.
func Open(ctx context.Context, o Options) (*Ledger, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	l := &Ledger{o: o}
	if err := l.open(ctx); err != nil {
		_ = l.Close()
		return nil, o.explain(err)
	}
	return l, nil
}

func (l *Ledger) open(ctx context.Context) error {
	if err := l.acquire(ctx); err != nil {
		return err
	}
	last, err := mark.Read(l.o.markPath())
	if err != nil {
		return err
	}
	former, err := l.openFile(last)
	if err != nil {
		return err
	}
	if l.Refused() == nil {
		l.refuse(judge(last, l.o.BootID, l.id, former, l.seq))
	}
	if l.Refused() == nil && !l.o.ReadOnly {
		l.refuse(l.settle(last))
	}
	return nil
}

// acquire takes the lock.
func (l *Ledger) acquire(ctx context.Context) (err error) {
	if !l.o.ReadOnly {
		if err := boltfile.MakeDir(l.o.DataDir, 0o700); err != nil {
			return err
		}
	}
	l.lock, err = boltfile.Acquire(ctx, filepath.Join(l.o.DataDir, lockName), l.o.ReadOnly)
	if l.o.ReadOnly && errors.Is(err, os.ErrNotExist) {
		return nil // nothing there yet, or a copy; openFile knows
	}
	return err
}

// openFile opens ledger.db, or makes it unless the mark knows of one. former is
// the ID that it had before Renew.
func (l *Ledger) openFile(last mark.Mark) (former string, err error) {
	path, seen := l.o.dbPath(), last.Boot == l.o.BootID
	// Once a boot every page is looked at. Later it is known that the file is
	// as a process of this boot has left it.
	l.file, err = boltfile.Open(path, l.o.ReadOnly, !seen)
	switch {
	case !errors.Is(err, os.ErrNotExist):
	case seen:
		err = fmt.Errorf("%w: it is missing, and %s was used since this boot", ErrLost, last.ID)
	case !l.o.ReadOnly:
		err = boltfile.Create(path, "", func(b *bbolt.Tx) error { return l.o.layOut(b, newID()) })
		if err == nil {
			l.file, err = boltfile.Open(path, false, false)
		}
	}
	if err != nil {
		return "", err
	}
	return former, l.view(func(t *tx) (err error) {
		l.id, l.seq, err = t.identity()
		former = string(t.get(bucketMeta, keyFormer))
		if !seen && err == nil {
			l.refuse(l.o.foreign(string(t.get(bucketMeta, keyMachine))))
		}
		return err
	})
}

// migrate brings a ledger of an older schema to this one, in one transaction,
// after a copy of the file for the way back. Where there is no room for that the
// ledger stays as it is, and releases go on.
func (l *Ledger) migrate() error {
	old, whole := schema, false
	err := l.view(func(t *tx) (err error) {
		old, err = t.schema()
		whole = t.bucket(bucketHistory) != nil
		return err
	})
	if err != nil || old == schema && whole {
		return err
	}
	if old != schema {
		if err := l.file.CopyTo(fmt.Sprintf("%s.schema%d", l.o.dbPath(), old)); err != nil {
			return fmt.Errorf("copy it before its schema changes: %w", err)
		}
	}
	fault.Point("ledger.migrate.copied")
	err = l.file.Update(func(b *bbolt.Tx) (bool, error) {
		for _, name := range since2 {
			if _, err := b.CreateBucketIfNotExists(name); err != nil {
				return false, err
			}
		}
		return true, newTx(b, &l.o).put(bucketMeta, keySchema, binary.BigEndian.AppendUint32(nil, schema))
	})
	fault.Point("ledger.migrate.done")
	return err
}

// settle brings a ledger up to date: mark, spool, reboot. What it returns is
// why no address may be given out.
func (l *Ledger) settle(last mark.Mark) (err error) {
	if err := l.migrate(); err != nil {
		return err
	}
	if l.mark, err = mark.Open(l.o.markPath()); err != nil {
		return err
	}
	if last.Boot != l.o.BootID {
		if err := l.writeMark(false); err != nil {
			return err
		}
	}
	if err := l.drain(); err != nil {
		return fmt.Errorf("apply spooled releases: %w", err)
	}
	if err := l.sweepBoot(); err != nil {
		return fmt.Errorf("release what was held before the reboot: %w", err)
	}
	return nil
}

// Refused says why Allocate gives out no address, or nil.
func (l *Ledger) Refused() error {
	l.refusedMu.Lock()
	defer l.refusedMu.Unlock()
	if l.refused == nil && l.file != nil {
		return l.o.explain(l.file.Dead())
	}
	return l.o.explain(l.refused)
}

// Look is for whoever has the ledger open for long: it refuses further
// allocations, and says so, if the file is no more at its place, where the next
// process would look for it.
func (l *Ledger) Look() error {
	if !l.file.At(l.o.dbPath()) {
		l.refuse(fmt.Errorf("%w: it was removed or replaced while it was open", ErrLost))
	}
	return l.Refused()
}

func (l *Ledger) refuse(why error) {
	l.refusedMu.Lock()
	defer l.refusedMu.Unlock()
	l.refused = why
}

// Close closes the ledger and lets the next process have it.
func (l *Ledger) Close() error {
	var errs []error
	if l.file != nil {
		errs = append(errs, l.file.Close())
	}
	if l.mark != nil {
		errs = append(errs, l.mark.Close())
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}

// view runs fn in a read transaction.
func (l *Ledger) view(fn func(*tx) error) error {
	err := l.file.View(func(b *bbolt.Tx) error { return fn(newTx(b, &l.o)) })
	return l.o.explain(err)
}

// layOut fills a new file.
func (o *Options) layOut(b *bbolt.Tx, id string) error {
	for _, name := range slices.Concat(buckets, since2) {
		if _, err := b.CreateBucket(name); err != nil {
			return err
		}
	}
	t := newTx(b, o)
	return errors.Join(
		t.put(bucketMeta, keySchema, binary.BigEndian.AppendUint32(nil, schema)),
		t.put(bucketMeta, keyID, []byte(id)),
		t.put(bucketMeta, keyMachine, []byte(o.machine())),
		t.put(bucketMeta, keyBoot, []byte(o.BootID)))
}

// newID returns a random UUID, version 4.
func newID() string {
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:8], rand.Uint64())
	binary.NativeEndian.PutUint64(b[8:], rand.Uint64())
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// command is that of underlayctl for this ledger.
func (o *Options) command(verb string) string {
	c := "underlayctl ledger " + verb
	if o.DataDir != ipam.DefaultDataDir {
		c += " --data-dir " + o.DataDir
	}
	if o.RunDir != ipam.DefaultRunDir {
		c += " --run-dir " + o.RunDir
	}
	return c
}

// explain makes an error of the file one that says what to do about it.
// Errors that carry a code of their own pass.
func (o *Options) explain(err error) error {
	var coded interface{ CNICode() uint }
	if err == nil || errors.As(err, &coded) {
		return err
	}
	e := &ipam.LedgerError{Path: o.dbPath(), Msg: "cannot be used", Err: err}
	switch {
	case errors.Is(err, ErrLost):
		e.Msg, e.Hint = "gives out no addresses", fmt.Sprintf("run %q, which asks the live containers", o.command("rebuild"))
	case errors.Is(err, ErrCorrupt), errors.Is(err, errBroken):
		e.Hint = fmt.Sprintf("run %q, and %q to make it anew from the live containers", o.command("check"), o.command("rebuild"))
	case errors.Is(err, ErrNewerSchema):
		e.Hint = "install that version or a later one"
	case errors.Is(err, ErrNoSpace):
		e.Msg, e.Hint = "gives out no addresses", "make room on its file system; releases go on"
	case errors.Is(err, ErrUnconfirmed):
		e.Msg, e.Code = "gives out no addresses of cluster pools yet", ipam.CodeTryAgainLater
		e.Hint = "start underlayd, and let it reach the registry once"
	case errors.Is(err, ErrLocked):
		e.Msg, e.Code = "is busy", ipam.CodeTryAgainLater
	case errors.Is(err, ErrReadOnly):
		e.Msg = "cannot be written"
	case errors.Is(err, unix.EROFS), errors.Is(err, os.ErrPermission):
		e.Msg, e.Err = "cannot be written", fmt.Errorf("%w: %w", ErrReadOnly, err)
	case errors.Is(err, os.ErrNotExist):
		e.Msg = "does not exist"
	}
	return e
}
