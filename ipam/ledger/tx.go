package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/history"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
	"github.com/underlay-cni/underlay/ipam/ledger/rest"
	"github.com/underlay-cni/underlay/ipam/ledger/run"
)

// The buckets of schema 2. Keys of several parts have a zero byte after each
// but the last; an address in a key is '4' or '6' and its 4 or 16 bytes.
var (
	// bucketMeta: what the ledger is; its sequence counts the transactions.
	bucketMeta = []byte("meta")
	// bucketAddress: address -> ipam.Record, for each address that is not free.
	bucketAddress = []byte("address")
	// bucketAttachment: network, container, interface -> ipam.AttachmentRecord.
	bucketAttachment = []byte("attachment")
	// bucketPool: ID -> ipam.Pool, a local one as last used, a cluster pool as
	// the registry has it.
	bucketPool = []byte("pool")
	// bucketCursor: pool, range set -> the address given out last.
	bucketCursor = []byte("cursor")
	// bucketRun, bucketRest, bucketParked, bucketUser: see index.go.
	bucketRun    = []byte("run")
	bucketRest   = []byte("rest")
	bucketParked = []byte("parked")
	bucketUser   = []byte("user")
	// bucketBlock: cluster pool, first address of a block -> record.Block.
	bucketBlock = []byte("block")
	// bucketFree: see index.go.
	bucketFree = []byte("free")
	// bucketHistory: who held which address until when; see package history. One
	// of schema 2 without it gets it when it is opened for writing.
	bucketHistory = []byte("history")

	buckets = [][]byte{bucketMeta, bucketAddress, bucketAttachment, bucketPool,
		bucketCursor, bucketRun, bucketRest, bucketParked, bucketUser}
	// since2 are those that schema 1 does not have.
	since2 = [][]byte{bucketBlock, bucketFree, bucketHistory}

	keySchema  = []byte("schema")
	keyID      = []byte("id")
	keyMachine = []byte("machine")
	keyRebuilt = []byte("rebuilt")
	// keyFormer is the ID before Renew.
	keyFormer = []byte("former")
	// keyPast is what is remembered of the registry, a lease.Past.
	keyPast = []byte("registry")
	// keyBoot is the boot that the ledger was last opened for writing in.
	keyBoot = []byte("boot")
)

// tx is a transaction. Changes go through put and del, and those of addresses
// and attachments through setRecord and setAttachment, which keep the indexes.
type tx struct {
	b    *bbolt.Tx
	now  time.Time
	boot string
	// short says why the file has less than minFree left, if so; tight, that
	// even tightFree is not left.
	short error
	tight bool
	// unconfirmed says why nothing of cluster pools is given out, if so.
	unconfirmed error
	// unused: what is released was never in use, so that nobody asks who had it.
	unused bool
	// dirty is set by the first change.
	dirty bool
	// shared: others' changes are in the same transaction. trail is for undo.
	shared bool
	trail  []before
	pools  map[string]ipam.Pool
}

// precision of the times in records. It is what the keys of the rest queue
// hold, so that the two never differ.
const precision = time.Microsecond

func newTx(b *bbolt.Tx, o *Options) *tx {
	return &tx{b: b, now: o.Now().UTC().Truncate(precision), boot: o.BootID, pools: map[string]ipam.Pool{}}
}

func (t *tx) bucket(name []byte) *bbolt.Bucket { return t.b.Bucket(name) }

func (t *tx) get(bucket, key []byte) []byte { return t.bucket(bucket).Get(key) }

func (t *tx) put(bucket, key, value []byte) error {
	t.dirty = true
	t.remember(bucket, key)
	return t.bucket(bucket).Put(key, value)
}

func (t *tx) del(bucket, key []byte) error {
	t.dirty = true
	t.remember(bucket, key)
	return t.bucket(bucket).Delete(key)
}

// identity returns what the ledger is, if this program can work with it.
func (t *tx) identity() (id string, seq uint64, err error) {
	for _, name := range buckets {
		if t.bucket(name) == nil {
			return "", 0, fmt.Errorf("%w: it has no %q", ErrCorrupt, name)
		}
	}
	got, err := t.schema()
	switch {
	case err != nil:
		return "", 0, err
	case got > schema:
		return "", 0, fmt.Errorf("%w: schema %d, and this one knows %d", ErrNewerSchema, got, schema)
	case got == schema && (t.bucket(bucketBlock) == nil || t.bucket(bucketFree) == nil):
		return "", 0, fmt.Errorf("%w: it has no blocks", ErrCorrupt)
	}
	if id = string(t.get(bucketMeta, keyID)); id == "" {
		return "", 0, fmt.Errorf("%w: it has no ID", ErrCorrupt)
	}
	return id, t.bucket(bucketMeta).Sequence(), nil
}

// schema returns that of the file. One of schema 1 has no cluster pools.
func (t *tx) schema() (int, error) {
	v := t.get(bucketMeta, keySchema)
	if len(v) != 4 || binary.BigEndian.Uint32(v) == 0 {
		return 0, fmt.Errorf("%w: its schema %x is none", ErrCorrupt, v)
	}
	return int(binary.BigEndian.Uint32(v)), nil
}

// join makes a key of several parts.
func join(parts ...string) []byte {
	var key []byte
	for i, p := range parts {
		if i > 0 {
			key = append(key, 0)
		}
		key = append(key, p...)
	}
	return key
}

func addrKey(a netip.Addr) []byte { return run.Key(a) }

// parseAddr is the inverse of addrKey; ok is false for anything else.
func parseAddr(key []byte) (a netip.Addr, ok bool) { return run.ParseKey(key) }

func attachmentKey(a ipam.Attachment) []byte { return join(a.Network, a.ContainerID, a.IfName) }

// record returns what is known of an address; the zero Record means that it
// is free.
func (t *tx) record(a netip.Addr) (ipam.Record, error) {
	key := addrKey(a)
	v := t.get(bucketAddress, key)
	if v == nil {
		return ipam.Record{}, nil
	}
	return decodeRecord(key, v)
}

// decodeRecord decodes a value of bucketAddress. One that this program cannot
// make sense of is damage: the address must not pass for free.
func decodeRecord(key, value []byte) (rec ipam.Record, err error) {
	a, ok := parseAddr(key)
	if !ok {
		return rec, fmt.Errorf("%w: %x is no address", ErrCorrupt, key)
	}
	rec, err = record.Decode(value)
	switch {
	case err != nil:
	case rec.Address.Addr() != a:
		err = fmt.Errorf("it is that of %s", rec.Address)
	case !slices.Contains([]ipam.State{ipam.Held, ipam.Cooling, ipam.Quarantined, ipam.Reserved, ipam.Lent}, rec.State):
		err = fmt.Errorf("state %q", rec.State)
	case rest.Rests(rec) == rec.Until.IsZero():
		err = fmt.Errorf("%s until %s", rec.State, rec.Until)
	}
	if err != nil {
		return ipam.Record{}, fmt.Errorf("%w: record of address %s: %w", ErrCorrupt, a, err)
	}
	return rec, nil
}

// attachment returns the record of an attachment.
func (t *tx) attachment(a ipam.Attachment) (rec ipam.AttachmentRecord, found bool, err error) {
	key := attachmentKey(a)
	v := t.get(bucketAttachment, key)
	if v == nil {
		return rec, false, nil
	}
	rec, err = decodeAttachment(key, v)
	return rec, err == nil, err
}

// decodeAttachment decodes a value of bucketAttachment.
func decodeAttachment(key, value []byte) (rec ipam.AttachmentRecord, err error) {
	rec, err = record.DecodeAttachment(value)
	switch {
	case err != nil:
	case !bytes.Equal(attachmentKey(rec.Attachment), key):
		err = fmt.Errorf("it is that of %s", rec.Attachment)
	}
	if err != nil {
		return ipam.AttachmentRecord{}, fmt.Errorf("%w: record of attachment %q: %w", ErrCorrupt, key, err)
	}
	return rec, nil
}

// setRecord replaces the record of an address, old by next, where the zero
// Record stands for a free address. This is the only way a state changes.
func (t *tx) setRecord(old, next ipam.Record) error {
	lent, err := t.lentWith(old)
	if lent.State != "" && (next.State == "" || next.State == ipam.Cooling) {
		next = lent
	}
	errs := []error{err}
	if rest.Rests(old) {
		errs = append(errs, t.unrest(old))
	}
	if rest.Rests(next) {
		errs = append(errs, t.rest(next))
	}
	errs = append(errs, t.moveFree(old, next))
	// A holder that takes up another namespace begins anew.
	if old.State == ipam.Held && (next.State != ipam.Held || !next.Since.Equal(old.Since)) {
		errs = append(errs, t.ended(old))
	}
	switch {
	case next.State == "":
		errs = append(errs, t.del(bucketAddress, addrKey(old.Address.Addr())), t.loosen(old.Address.Addr()))
	case old.State == "":
		errs = append(errs, t.take(next.Address.Addr()))
		fallthrough
	default:
		errs = append(errs, t.put(bucketAddress, addrKey(next.Address.Addr()), record.Encode(next)))
	}
	return errors.Join(errs...)
}

// ended writes down who held an address until now. What it says is worth less
// than the release that it is part of: where the disk or the history itself are
// in no state for it, it is left out.
func (t *tx) ended(rec ipam.Record) error {
	if t.unused || t.short != nil || t.bucket(bucketHistory) == nil {
		return nil
	}
	err := t.history().Add(rec.Hold(t.now))
	if errors.Is(err, history.ErrBroken) {
		return nil // Check says so
	}
	return err
}

// setAttachment replaces the record of an attachment in the same way. It is
// kept for as long as it has addresses or uses something.
func (t *tx) setAttachment(old, next ipam.AttachmentRecord) error {
	var errs []error
	for _, u := range usersOf(old) {
		errs = append(errs, t.del(bucketUser, u.key))
	}
	for _, u := range usersOf(next) {
		errs = append(errs, t.put(bucketUser, u.key, u.value))
	}
	if len(next.Addresses) > 0 || next.Uses.Any() {
		errs = append(errs, t.put(bucketAttachment, attachmentKey(next.Attachment), record.EncodeAttachment(next)))
	} else {
		errs = append(errs, t.del(bucketAttachment, attachmentKey(old.Attachment)))
	}
	return errors.Join(errs...)
}

// records calls fn with all records from the address from on, in order, until
// it returns false.
func (t *tx) records(from netip.Addr, fn func(ipam.Record) (more bool, err error)) error {
	c := t.bucket(bucketAddress).Cursor()
	for k, v := c.Seek(addrKey(from)); k != nil; k, v = c.Next() {
		rec, err := decodeRecord(k, v)
		if err != nil {
			return err
		}
		if more, err := fn(rec); err != nil || !more {
			return err
		}
	}
	return nil
}

// AttachmentsOf is Attachments for those of one network.
func (l *Ledger) AttachmentsOf(network string, fn func(ipam.AttachmentRecord) error) error {
	return l.view(func(t *tx) error { return t.attachments(join(network, ""), fn) })
}

// attachments calls fn with the records of attachments whose keys begin so.
func (t *tx) attachments(prefix []byte, fn func(ipam.AttachmentRecord) error) (err error) {
	c := t.bucket(bucketAttachment).Cursor()
	for k, v := c.Seek(prefix); k != nil && err == nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		var rec ipam.AttachmentRecord
		if rec, err = decodeAttachment(k, v); err == nil {
			err = fn(rec)
		}
	}
	return err
}

// pool returns the pool of an ID.
func (t *tx) pool(id string) (p ipam.Pool, known bool, err error) {
	if p, known = t.pools[id]; known {
		return p, true, nil
	}
	v := t.get(bucketPool, []byte(id))
	if v == nil {
		return p, false, nil
	}
	if p, err = record.DecodePool(v); err != nil {
		return ipam.Pool{}, false, fmt.Errorf("%w: pool %q: %w", ErrCorrupt, id, err)
	}
	t.pools[id] = p
	return p, true, nil
}

// keepPool stores a pool unless it is stored just so.
func (t *tx) keepPool(p ipam.Pool) error {
	v := record.EncodePool(p)
	if bytes.Equal(v, t.get(bucketPool, []byte(p.ID()))) {
		return nil
	}
	t.pools[p.ID()] = p
	return t.put(bucketPool, []byte(p.ID()), v)
}

// cluster returns the cluster pool of a name.
func (t *tx) cluster(name string) (ipam.Pool, error) {
	pools, err := t.allPools()
	if err != nil {
		return ipam.Pool{}, err
	}
	for _, p := range pools {
		if p.UUID != "" && p.Name == name {
			return p, nil
		}
	}
	return ipam.Pool{}, &ipam.FieldError{Place: "ipam.pool", Code: ipam.CodeTryAgainLater,
		Msg: fmt.Sprintf("this node knows no pool %q; it may be new, and underlayd has to tell of it", name)}
}

// Cluster returns the cluster pool of a name. That there is none is an
// *ipam.FieldError.
func (l *Ledger) Cluster(name string) (p ipam.Pool, err error) {
	err = l.view(func(t *tx) error {
		p, err = t.cluster(name)
		return err
	})
	return p, err
}

// SetPools replaces all cluster pools by what the registry says of them. One
// that is missing gives out nothing any more; what is held of it stays.
func (l *Ledger) SetPools(pools []ipam.Pool) error {
	for _, p := range pools {
		if p.UUID == "" || p.Name == "" {
			return fmt.Errorf("pool %q has no name or UUID, so it is none of a cluster", p.Name)
		}
		if err := checkNames([2]string{"name", p.Name}, [2]string{"uuid", p.UUID}); err != nil {
			return err
		}
	}
	return l.update(func(t *tx) error {
		old, err := t.allPools()
		if err != nil {
			return err
		}
		for _, p := range old {
			if p.UUID != "" && !slices.ContainsFunc(pools, func(n ipam.Pool) bool { return n.UUID == p.UUID }) {
				delete(t.pools, p.ID())
				if err := t.del(bucketPool, []byte(p.ID())); err != nil {
					return err
				}
			}
		}
		for _, p := range pools {
			if err := t.keepPool(p); err != nil {
				return err
			}
		}
		return nil
	})
}
