package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
	"github.com/underlay-cni/underlay/ipam/ledger/history"
	"github.com/underlay-cni/underlay/ipam/ledger/mark"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
	"github.com/underlay-cni/underlay/ipam/ledger/rest"
	"github.com/underlay-cni/underlay/ipam/ledger/run"
	"github.com/underlay-cni/underlay/pkg/fault"
)

// Check reads the whole ledger and returns what is wrong with it, a sentence
// each: the pages of the file, then every record, and whether records and
// indexes say the same. None means that it is sound.
func (l *Ledger) Check() (findings []string, err error) {
	if err := l.Refused(); err != nil {
		findings = append(findings, err.Error())
	}
	if err := l.file.Verify(); err != nil {
		// bbolt's own check would come to harm on such a file.
		return append(findings, err.Error()), nil
	}
	err = l.view(func(t *tx) error {
		c := checker{tx: t}
		for err := range t.b.Check() {
			c.say("bbolt: %w", err)
		}
		c.check()
		findings = append(findings, c.findings...)
		return nil
	})
	return findings, err
}

// checker collects findings.
type checker struct {
	*tx
	findings []string
}

func (c *checker) say(format string, args ...any) {
	c.findings = append(c.findings, fmt.Errorf(format, args...).Error())
}

// each calls fn with all of a bucket and reports what it returns.
func (c *checker) each(bucket []byte, fn func(k, v []byte) error) {
	_ = c.bucket(bucket).ForEach(func(k, v []byte) error {
		if err := fn(k, v); err != nil {
			c.say("%w", err)
		}
		return nil
	})
}

// has reports an entry of an index that is not there.
func (c *checker) has(bucket, key, value []byte, of any) error {
	if !bytes.Equal(c.get(bucket, key), value) {
		return fmt.Errorf("%s should have %x in %q under %x, not %x", of, value, bucket, key, c.get(bucket, key))
	}
	return nil
}

func (c *checker) check() {
	if _, _, err := c.identity(); err != nil {
		c.say("%w", err)
		return
	}
	runs := c.addresses()
	c.each(bucketRun, func(k, v []byte) error {
		r, err := run.Decode(k, v)
		if err != nil {
			return err
		}
		at := slices.Index(runs, r)
		if at < 0 {
			return fmt.Errorf("run %s is not that of the records", r)
		}
		runs = slices.Delete(runs, at, at+1) // the first one, if both are in order
		return nil
	})
	for _, r := range runs {
		c.say("the run of addresses %s is missing", r)
	}
	c.each(bucketRest, func(k, v []byte) error {
		r, err := decodeRest(k, v)
		if err != nil {
			return err
		}
		rec, err := c.record(r.Addr)
		if err != nil {
			return nil // reported before
		}
		if key, value := rest.Of(rec); !rest.Rests(rec) || !bytes.Equal(key, k) || !bytes.Equal(value, v) {
			return fmt.Errorf("address %s rests until %s, and its record says %q until %s", r.Addr, r.Until, rec.State, rec.Until)
		}
		return nil
	})
	c.each(bucketParked, func(k, _ []byte) error {
		for _, n := range []int{5, 17} { // an address, with its family
			if len(k) <= n {
				break
			}
			if a, ok := parseAddr(k[len(k)-n:]); ok {
				if rec, err := c.record(a); err == nil && rec.State == ipam.Cooling && bytes.Equal(parkedKey(rec), k) {
					return nil
				}
			}
		}
		return fmt.Errorf("parked address %q is not that of a record", k)
	})
	c.attachmentsAndUsers()
	if c.bucket(bucketBlock) != nil {
		c.blocksAndFree()
	}
	if c.bucket(bucketHistory) != nil {
		c.holds()
	}
	c.each(bucketPool, func(k, _ []byte) error {
		p, _, err := c.pool(string(k))
		if err == nil && p.ID() != string(k) {
			err = fmt.Errorf("pool %q says it is %q", k, p.ID())
		}
		return err
	})
	c.each(bucketCursor, func(k, v []byte) error {
		if _, ok := parseAddr(v); !ok {
			return fmt.Errorf("cursor %q is %x, no address", k, v)
		}
		return nil
	})
}

// addresses checks the records of addresses, and returns their runs.
func (c *checker) addresses() (runs []ipam.Interval) {
	c.each(bucketAddress, func(k, v []byte) error {
		if a, ok := parseAddr(k); ok {
			if n := len(runs) - 1; n >= 0 && runs[n].Last.Next() == a {
				runs[n].Last = a
			} else {
				runs = append(runs, ipam.Interval{First: a, Last: a})
			}
		}
		rec, err := decodeRecord(k, v)
		if err != nil {
			return err
		}
		switch rec.State {
		case ipam.Held:
			att, found, err := c.attachment(rec.Attachment)
			if err == nil && (!found || !slices.Contains(att.Addresses, rec.Address.Addr())) {
				return fmt.Errorf("address %s is held by %s, whose record does not say so", rec.Address, rec.Attachment)
			}
		case ipam.Cooling:
			if err := c.has(bucketParked, parkedKey(rec), []byte{1}, rec.Address); err != nil {
				return err
			}
			fallthrough
		case ipam.Quarantined:
			key, value := rest.Of(rec)
			return c.has(bucketRest, key, value, rec.Address)
		}
		return nil
	})
	return runs
}

func (c *checker) attachmentsAndUsers() {
	c.each(bucketAttachment, func(k, v []byte) error {
		att, err := decodeAttachment(k, v)
		if err != nil {
			return err
		}
		if len(att.Addresses) == 0 && !att.Uses.Any() {
			return fmt.Errorf("attachment %s holds nothing", att.Attachment)
		}
		for i, a := range att.Addresses {
			if slices.Contains(att.Addresses[:i], a) {
				return fmt.Errorf("attachment %s holds %s twice", att.Attachment, a)
			}
			if _, err := c.heldBy(att.Attachment, a); err != nil {
				return err
			}
		}
		var errs []error
		for _, u := range usersOf(att) {
			errs = append(errs, c.has(bucketUser, u.key, u.value, att.Attachment))
		}
		return errors.Join(errs...)
	})
	c.each(bucketUser, func(k, _ []byte) error {
		parts := bytes.SplitN(k, []byte{0}, 3)
		if len(parts) == 3 && bytes.HasPrefix(parts[2], []byte{0}) { // of a port
			parts = bytes.SplitN(k, []byte{0}, 5)[2:]
		}
		if len(parts) == 3 {
			att, err := decodeAttachment(parts[2], c.get(bucketAttachment, parts[2]))
			if err == nil && slices.ContainsFunc(usersOf(att), func(u user) bool { return bytes.Equal(u.key, k) }) {
				return nil
			}
		}
		return fmt.Errorf("user %q is not that of an attachment", k)
	})
}

// holds checks the history: the numbers have no gaps.
func (c *checker) holds() {
	before := uint64(0)
	c.each(bucketHistory, func(k, v []byte) error {
		n, _, err := history.Decode(k, v)
		if err == nil && before != 0 && n != before+1 {
			err = fmt.Errorf("the history goes on with number %d after %d", n, before)
		}
		before = n
		return err
	})
}

// Compact makes the file shorter if more than half of it is free, and returns by
// how many bytes. It waits for the lock until ctx ends. Where there is no ledger
// there is nothing to do.
func Compact(ctx context.Context, o Options) (saved int64, err error) {
	if err := o.setDefaults(); err != nil {
		return 0, err
	}
	l := &Ledger{o: o}
	if err := l.acquire(ctx); err != nil {
		return 0, o.explain(err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	saved, err = boltfile.Compact(o.dbPath())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return saved, o.explain(err)
}

// Rebuild makes a new ledger of what was found alive, whatever state the old
// one is in; that one stays beside it as ledger.db.<time>.bad. It waits for
// the lock until ctx ends.
//
// An address that was found more than once becomes reserved: no record can
// tell which of its users is right. What the old one can still say of an
// attachment that was found is kept where no link tells: the cluster pool that an
// address is from, and the owner; and so is who had which address.
func Rebuild(ctx context.Context, o Options, found []Found) (err error) {
	if err := o.setDefaults(); err != nil {
		return err
	}
	defer func() { err = o.explain(err) }()
	if err := boltfile.MakeDir(o.DataDir, 0o700); err != nil {
		return err
	}
	lock, err := boltfile.Acquire(ctx, filepath.Join(o.DataDir, lockName), false)
	if err != nil {
		return err
	}
	defer lock.Close()
	id, seq, err := o.succeed()
	if err != nil {
		return err
	}
	now, old := o.Now().UTC(), o.salvage()
	kept := fmt.Sprintf("%s.%s.bad", o.dbPath(), now.Format("20060102T150405.000000000Z"))
	err = boltfile.Create(o.dbPath(), kept, func(b *bbolt.Tx) error {
		if err := o.layOut(b, id); err != nil {
			return err
		}
		t := newTx(b, &o)
		return errors.Join(b.Bucket(bucketMeta).SetSequence(seq), t.put(bucketMeta, keyRebuilt, binary.BigEndian.AppendUint64(nil, seq)), t.fill(found, old))
	})
	if err != nil {
		return err
	}
	fault.Point("ledger.rebuild.placed")
	f, err := mark.Open(o.markPath())
	if err != nil {
		return err
	}
	return errors.Join(mark.Mark{Boot: o.BootID, ID: id, Seq: seq}.WriteTo(f), f.Close())
}

// fill writes what was found into an empty ledger, and who had addresses in the
// old one, all of whom end here.
func (t *tx) fill(found []Found, old remains) error {
	for _, h := range old.past {
		if err := t.history().Add(h); err != nil {
			return err
		}
	}
	users := map[netip.Addr][]string{}
	for _, f := range found {
		for _, a := range f.Addresses {
			users[plain(a.Prefix.Addr())] = append(users[plain(a.Prefix.Addr())], holder(f))
		}
	}
	for _, f := range found {
		unclear := func(a netip.Addr) string {
			if f.Attachment != (ipam.Attachment{}) && len(users[a]) == 1 {
				return ""
			}
			return "found in use by " + strings.Join(users[a], " and ")
		}
		if err := t.fillOne(f, unclear, old.held); err != nil {
			return err
		}
	}
	return nil
}

// Import takes in what another address manager gave out, all of it or nothing:
// what is found here already stands in its way.
func (l *Ledger) Import(found []Found) error {
	if err := l.Refused(); err != nil {
		return err
	}
	return l.update(func(t *tx) error {
		if t.short != nil {
			return t.short
		}
		for _, f := range found {
			if err := t.absent(f); err != nil {
				return err
			}
			reserve := func(netip.Addr) string { return f.Reason }
			if err := t.fillOne(f, reserve, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

func holder(f Found) string {
	switch {
	case f.Attachment != (ipam.Attachment{}):
		return f.Attachment.String()
	case f.Reason != "":
		return f.Reason
	}
	return "an unknown container"
}

// fillOne writes what was found. unclear says why an address becomes reserved, if
// it does; before is what was known of those held.
func (t *tx) fillOne(f Found, unclear func(netip.Addr) string, before map[netip.Addr]ipam.Record) error {
	known := f.Attachment != (ipam.Attachment{})
	if known {
		if err := checkAttachment(f.Attachment); err != nil {
			return err
		}
	}
	att := ipam.AttachmentRecord{Version: record.AttachmentVersion(f.Uses, 0), Attachment: f.Attachment, Runtime: f.Runtime,
		Netns: f.Netns, BootID: t.boot, MAC: f.MAC, Uses: f.Uses, Since: t.now}
	for _, a := range f.Addresses {
		addr := plain(a.Prefix.Addr())
		rec := ipam.Record{Version: record.Version, Pool: f.Pool, Address: netip.PrefixFrom(addr, a.Prefix.Bits()),
			Gateway: a.Gateway, State: ipam.Held, Attachment: f.Attachment, Runtime: f.Runtime, Netns: f.Netns,
			BootID: t.boot, MAC: f.MAC, Owner: f.Owner, Since: t.now}
		if why := unclear(addr); why != "" || !known {
			rec.State, rec.Reason, rec.Attachment, rec.Owner = ipam.Reserved, why, ipam.Attachment{}, ""
		} else {
			att.Addresses = append(att.Addresses, addr)
			if was := before[addr]; was.Attachment == f.Attachment {
				rec.Pool, rec.PoolUUID, rec.Owner = was.Pool, was.PoolUUID, was.Owner
			}
		}
		old, err := t.record(addr)
		if err != nil {
			return err
		}
		if err := t.setRecord(old, rec); err != nil {
			return err
		}
	}
	if !known || len(att.Addresses) == 0 && !att.Uses.Any() {
		return nil
	}
	return t.setAttachment(ipam.AttachmentRecord{}, att)
}
