package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
	"github.com/underlay-cni/underlay/ipam/ledger/mark"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
	"github.com/underlay-cni/underlay/pkg/fault"
)

// maxTogether is how many changes one transaction takes. It bounds what a
// transaction may need of the file, and how long the first of them waits.
const maxTogether = 128

// change is what one caller wants done, and what came of it.
type change struct {
	fn  func(*tx) error
	err error
	// turn wakes the caller: done, or to commit what waits.
	turn chan turn
}

type turn bool

const (
	done   turn = false
	commit turn = true
)

// queue has the callers that come while a transaction is under way wait. The
// first of them then commits what all of them want, so that one wait for the
// disk serves many; no goroutine is needed for it, and a caller who is alone
// waits for nobody.
type queue struct {
	mu      sync.Mutex
	busy    bool
	waiting []*change
}

// enter returns what the caller has to commit, after which it leaves; nil if
// somebody else has done so with c.
func (q *queue) enter(c *change) []*change {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.busy {
		q.busy = true
		return []*change{c}
	}
	c.turn = make(chan turn, 1)
	q.waiting = append(q.waiting, c)
	q.mu.Unlock()
	t := <-c.turn
	q.mu.Lock()
	if t == done {
		return nil
	}
	n := min(len(q.waiting), maxTogether)
	batch := q.waiting[:n:n] // c is the first
	q.waiting = q.waiting[n:]
	return batch
}

// leave wakes those whose changes were made, and the one who is next.
func (q *queue) leave(batch []*change) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range batch[1:] {
		c.turn <- done
	}
	if q.busy = len(q.waiting) > 0; q.busy {
		q.waiting[0].turn <- commit
	}
}

// update runs fn in a write transaction, beside what others want at the same
// time: fn sees what those before it have done, and if it fails nothing of its
// own remains. If fn changes anything, the transaction is durable and its mark
// is written before update returns; otherwise the disk is not touched. fn may
// run more than once.
func (l *Ledger) update(fn func(*tx) error) error {
	if l.o.ReadOnly {
		return l.o.explain(ErrReadOnly)
	}
	c := &change{fn: fn}
	if batch := l.queue.enter(c); batch != nil {
		l.commit(batch)
		l.queue.leave(batch)
	}
	return l.o.explain(c.err)
}

// commit makes the changes and says in each what came of it.
func (l *Ledger) commit(batch []*change) {
	err := l.together(batch)
	if errors.Is(err, ErrNoSpace) && len(batch) > 1 {
		// What is left is for releases, which need less than all together.
		for _, c := range batch {
			if err := l.together([]*change{c}); err != nil {
				c.err = err
			}
		}
		return
	}
	if err != nil {
		for _, c := range batch {
			c.err = err
		}
	}
}

// together makes the changes in one transaction. It returns an error when
// there was none; what each change failed with is in it.
func (l *Ledger) together(batch []*change) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var seq uint64
	err := l.file.Update(func(b *bbolt.Tx) (dirty bool, err error) {
		seq = l.seq
		short, tight := l.file.Reserve(minFree), false
		if short != nil {
			tight = l.file.Reserve(tightFree) != nil
		}
		for _, c := range batch {
			t := newTx(b, &l.o)
			t.short, t.tight, t.shared = short, tight, len(batch) > 1
			if c.err = c.fn(t); c.err == nil {
				dirty = dirty || t.dirty
			} else if err := t.undo(); err != nil {
				return false, err
			}
		}
		// A ledger that is behind its mark must not catch up with it.
		if dirty && l.mark != nil {
			seq, err = b.Bucket(bucketMeta).NextSequence()
		}
		return dirty, err
	})
	switch {
	case errors.Is(err, errBroken):
		l.refuse(err)
		return errors.Join(err, l.writeMark(true))
	case err != nil:
		return err
	case seq == l.seq:
		return nil
	}
	fault.Point("ledger.commit.durable")
	l.seq = seq
	err = l.writeMark(false)
	fault.Point("ledger.commit.marked")
	return err
}

// before is what was under a key when a change touched it; value is nil where
// nothing was.
type before struct{ bucket, key, value []byte }

// remember notes what undo is to put back.
func (t *tx) remember(bucket, key []byte) {
	if t.shared {
		// bbolt's slices are good only until its next change.
		t.trail = append(t.trail, before{bucket, bytes.Clone(key), bytes.Clone(t.get(bucket, key))})
	}
}

// undo takes back what a change that failed has done, in a transaction that
// goes on for others: bbolt has no savepoints. One that nobody shares comes to
// nothing by itself.
func (t *tx) undo() (err error) {
	for i := len(t.trail) - 1; i >= 0 && err == nil; i-- {
		if b := t.trail[i]; b.value == nil {
			err = t.bucket(b.bucket).Delete(b.key)
		} else {
			err = t.bucket(b.bucket).Put(b.key, b.value)
		}
	}
	return err
}

// writeMark writes ledger.seq for the last transaction.
func (l *Ledger) writeMark(broken bool) error {
	if l.mark == nil {
		return nil
	}
	return mark.Mark{Boot: l.o.BootID, ID: l.id, Seq: l.seq, Broken: broken}.WriteTo(l.mark)
}

// judge says why a ledger with this id and sequence must not give out
// addresses, if its mark is of this boot. A process that died in Renew has left
// the former id in it.
func judge(m mark.Mark, boot, id, former string, seq uint64) error {
	switch {
	case m.Boot != boot:
		return nil
	case m.ID != id && m.ID != former:
		return fmt.Errorf("%w: its ID is %s, and %s was used since this boot", ErrLost, id, m.ID)
	case seq < m.Seq:
		return fmt.Errorf("%w: it ends at transaction %d, and %d was acknowledged since this boot", ErrLost, seq, m.Seq)
	case m.Broken:
		return errBroken
	}
	return nil
}

// Confirm says, until the next boot, that the node has what its ledger says it
// leases: it was not removed from the registry while it was off, and nothing that
// it sent before can land any more (lease.Goal.Fence). Before that, Allocate
// gives out nothing new of cluster pools.
func (l *Ledger) Confirm() (err error) {
	if l.o.ReadOnly {
		return l.o.explain(ErrReadOnly)
	}
	if err := l.Refused(); err != nil {
		return err
	}
	line, err := l.confirmation()
	if err != nil {
		return err
	}
	path := filepath.Join(l.o.RunDir, confirmedName)
	if err := boltfile.MakeDir(l.o.RunDir, 0o755); err != nil {
		return l.o.explain(err)
	}
	if err := os.WriteFile(path+".tmp", []byte(line), 0o600); err != nil {
		return l.o.explain(err)
	}
	fault.Point("ledger.confirm.written")
	return l.o.explain(os.Rename(path+".tmp", path))
}

// Unconfirmed says why Allocate gives out nothing of cluster pools, or nil.
func (l *Ledger) Unconfirmed() error {
	want, err := l.confirmation()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(l.o.RunDir, confirmedName))
	if errors.Is(err, os.ErrNotExist) || err == nil && string(b) != want {
		err = ErrUnconfirmed
	}
	return l.o.explain(err)
}

// confirmation is what the file has to hold; of another boot or ledger it says
// nothing.
func (l *Ledger) confirmation() (line string, err error) {
	err = l.view(func(t *tx) error {
		line = fmt.Sprintf("%s %s\n", t.boot, t.node())
		return nil
	})
	return line, err
}

// Past returns what the ledger remembers of the registry.
func (l *Ledger) Past() (p lease.Past, err error) {
	err = l.view(func(t *tx) (err error) {
		if v := t.get(bucketMeta, keyPast); v != nil {
			if p, err = record.DecodePast(v); err != nil {
				err = fmt.Errorf("%w: what it remembers of the registry: %w", ErrCorrupt, err)
			}
		}
		return err
	})
	return p, err
}

// Remember replaces what Past returns.
func (l *Ledger) Remember(p lease.Past) error {
	return l.update(func(t *tx) error {
		v := record.EncodePast(p)
		if bytes.Equal(v, t.get(bucketMeta, keyPast)) {
			return nil
		}
		return t.put(bucketMeta, keyPast, v)
	})
}

// Renew gives the ledger of a node that was removed a new ID, and so makes it
// another node: of what it leased nothing is left. What containers hold stays
// theirs until they are gone, and is nobody's to give out then.
func (l *Ledger) Renew() (lease.Node, error) {
	id := newID()
	err := l.update(func(t *tx) error {
		if t.bucket(bucketBlock) == nil {
			return errOldSchema
		}
		var gone [][]byte
		err := t.bucket(bucketBlock).ForEach(func(k, _ []byte) error {
			gone = append(gone, bytes.Clone(k))
			return nil
		})
		for _, k := range gone {
			if err == nil {
				err = t.loseBlock(k)
			}
		}
		return errors.Join(err, t.put(bucketMeta, keyFormer, t.get(bucketMeta, keyID)), t.put(bucketMeta, keyID, []byte(id)))
	})
	if err != nil {
		return "", err
	}
	fault.Point("ledger.renew.kept")
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id = id
	return lease.Node(id), l.o.explain(l.writeMark(false))
}

// loseBlock forgets a block, and all of its addresses that nobody holds.
func (t *tx) loseBlock(key []byte) error {
	b, err := decodeBlock(key, t.get(bucketBlock, key))
	if err != nil {
		return err
	}
	pool := string(key[:len(key)-len(addrKey(b.CIDR.Addr()))-1])
	if err := t.keepBook(pool, b, lease.Book{CIDR: b.CIDR, Rev: b.Rev}, func(netip.Addr) bool { return false }); err != nil {
		return err
	}
	return t.del(bucketBlock, key)
}

// Node is the identity under which this node leases blocks: the ledger's ID.
func (l *Ledger) Node() (n lease.Node, err error) {
	err = l.view(func(t *tx) error {
		n = t.node()
		return nil
	})
	return n, err
}

// Identity tells the file of a ledger, open in one process at a time, from all
// copies of it.
type Identity struct {
	// Machine and Boot are the IDs of the machine and the boot that it is open
	// on.
	Machine, Boot string
	// Device and Inode of ledger.db, and Folder of what that is in, "device:inode".
	Device, Inode uint64
	Folder        string
}

// Identity of the open file.
func (l *Ledger) Identity() (Identity, error) {
	i := Identity{Machine: l.o.machine(), Boot: l.o.BootID}
	var st unix.Stat_t
	if err := unix.Stat(l.o.dbPath(), &st); err != nil {
		return i, l.o.explain(fmt.Errorf("stat: %w", err))
	}
	i.Device, i.Inode = st.Dev, st.Ino
	if err := unix.Stat(l.o.DataDir, &st); err != nil {
		return i, l.o.explain(fmt.Errorf("stat: %w", err))
	}
	i.Folder = fmt.Sprintf("%d:%d", st.Dev, st.Ino)
	return i, nil
}

// machine is "" where the machine has no ID.
func (o *Options) machine() string {
	if o.MachineID != "" {
		return o.MachineID
	}
	b, _ := os.ReadFile("/etc/machine-id") // not every machine has one
	return string(bytes.TrimSpace(b))
}

// foreign says why a ledger that was made on the machine with this ID must not
// give out addresses here.
func (o *Options) foreign(made string) error {
	if here := o.machine(); made != "" && here != "" && made != here {
		return fmt.Errorf("%w: it was made on the machine with the ID %s, and this one has %s", ErrLost, made, here)
	}
	return nil
}

// succeed is with which ID, and after which transaction, a new ledger takes the
// place of one that was lost. Whoever uses addresses in this boot stays the node
// that it was, and goes on with what that leases; what that was giving away is not
// known any more. No copy of the lost file is as far as the new one.
func (o *Options) succeed() (id string, seq uint64, err error) {
	last, err := mark.Read(o.markPath())
	if err != nil || last.Boot != o.BootID {
		return newID(), 0, err
	}
	err = os.Remove(filepath.Join(o.RunDir, confirmedName))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return last.ID, last.Seq + 2, err
}
