package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.etcd.io/bbolt"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
)

// The buckets of schema 1. Keys of several parts have a zero byte after each
// but the last; an address in a key is '4' or '6' and its 4 or 16 bytes.
var (
	// bucketMeta: what the ledger is; its sequence counts the transactions.
	bucketMeta = []byte("meta")
	// bucketAddress: address -> ipam.Record, for each address that is not free.
	bucketAddress = []byte("address")
	// bucketAttachment: network, container, interface -> ipam.AttachmentRecord.
	bucketAttachment = []byte("attachment")
	// bucketPool: pool -> ipam.Pool as last used.
	bucketPool = []byte("pool")
	// bucketCursor: pool, range set -> the address given out last.
	bucketCursor = []byte("cursor")
	// bucketRun, bucketRest, bucketParked, bucketUser: see index.go.
	bucketRun    = []byte("run")
	bucketRest   = []byte("rest")
	bucketParked = []byte("parked")
	bucketUser   = []byte("user")

	buckets = [][]byte{bucketMeta, bucketAddress, bucketAttachment, bucketPool,
		bucketCursor, bucketRun, bucketRest, bucketParked, bucketUser}

	keySchema  = []byte("schema")
	keyID      = []byte("id")
	keyMachine = []byte("machine")
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
	v := t.get(bucketMeta, keySchema)
	if len(v) != 4 || binary.BigEndian.Uint32(v) < schema {
		return "", 0, fmt.Errorf("%w: its schema %x is none", ErrCorrupt, v)
	}
	if got := binary.BigEndian.Uint32(v); got > schema {
		return "", 0, fmt.Errorf("%w: schema %d, and this one knows %d", ErrNewerSchema, got, schema)
	}
	if id = string(t.get(bucketMeta, keyID)); id == "" {
		return "", 0, fmt.Errorf("%w: it has no ID", ErrCorrupt)
	}
	return id, t.bucket(bucketMeta).Sequence(), nil
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

func addrKey(a netip.Addr) []byte {
	if a.Is4() {
		return append([]byte{'4'}, a.AsSlice()...)
	}
	return append([]byte{'6'}, a.AsSlice()...)
}

// parseAddr is the inverse of addrKey; ok is false for anything else.
func parseAddr(key []byte) (a netip.Addr, ok bool) {
	if len(key) == 0 {
		return a, false
	}
	a, ok = netip.AddrFromSlice(key[1:])
	return a, ok && !a.Is4In6() && bytes.Equal(addrKey(a), key)
}

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
	case rec.State != ipam.Held && rec.State != ipam.Cooling && rec.State != ipam.Quarantined && rec.State != ipam.Reserved:
		err = fmt.Errorf("state %q", rec.State)
	case rests(rec) == rec.Until.IsZero():
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
	var errs []error
	if rests(old) {
		errs = append(errs, t.unrest(old))
	}
	if rests(next) {
		errs = append(errs, t.rest(next))
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

// setAttachment replaces the record of an attachment in the same way. It is
// kept for as long as it has addresses or uses something.
func (t *tx) setAttachment(old, next ipam.AttachmentRecord) error {
	var errs []error
	if old.Uses.Shared() {
		errs = append(errs, t.del(bucketUser, userKey(old)))
	}
	if old.Uses.Port != "" {
		errs = append(errs, t.del(bucketUser, portKey(old)))
	}
	if next.Uses.Shared() {
		errs = append(errs, t.put(bucketUser, userKey(next), userValue(next.Uses)))
	}
	if next.Uses.Port != "" {
		errs = append(errs, t.put(bucketUser, portKey(next), []byte{}))
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

// attachments calls fn with the records of all attachments.
func (t *tx) attachments(fn func(ipam.AttachmentRecord) error) error {
	return t.bucket(bucketAttachment).ForEach(func(k, v []byte) error {
		rec, err := decodeAttachment(k, v)
		if err != nil {
			return err
		}
		return fn(rec)
	})
}

// pool returns the pool of that name as last used.
func (t *tx) pool(name string) (p ipam.Pool, known bool, err error) {
	if p, known = t.pools[name]; known {
		return p, true, nil
	}
	v := t.get(bucketPool, []byte(name))
	if v == nil {
		return p, false, nil
	}
	if p, err = record.DecodePool(v); err != nil {
		return ipam.Pool{}, false, fmt.Errorf("%w: pool %q: %w", ErrCorrupt, name, err)
	}
	t.pools[name] = p
	return p, true, nil
}

// keepPool stores a pool unless it is stored just so.
func (t *tx) keepPool(p ipam.Pool) error {
	v := record.EncodePool(p)
	if bytes.Equal(v, t.get(bucketPool, []byte(p.Name))) {
		return nil
	}
	t.pools[p.Name] = p
	return t.put(bucketPool, []byte(p.Name), v)
}
