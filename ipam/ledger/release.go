package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/mark"
	"github.com/underlay-cni/underlay/ipam/ledger/spool"
	"github.com/underlay-cni/underlay/pkg/fault"
)

// What a pool says of these goes first. It is unknown after a rebuild, until
// the pool is used again.
const (
	defaultCoolDown   = 30 * time.Second
	defaultQuarantine = 10 * time.Minute
)

// Release gives back all that the attachment holds and uses. Where it holds
// nothing the disk is not touched.
func (l *Ledger) Release(req ipam.ReleaseRequest) (ipam.Released, error) {
	return l.ReleaseIf(func(ipam.AttachmentRecord) error { return nil }, req)
}

// ReleaseIf is Release on a condition: wanted is called with the record that is
// to end, the zero value if there is none, when nothing can change it any more.
// If it returns an error that is all that happens.
func (l *Ledger) ReleaseIf(wanted func(ipam.AttachmentRecord) error, req ipam.ReleaseRequest) (out ipam.Released, err error) {
	if err := checkAttachment(req.Attachment); err != nil {
		return out, err
	}
	err = l.update(func(t *tx) error {
		rec, _, err := t.attachment(req.Attachment)
		if err != nil {
			return err
		}
		if err := wanted(rec); err != nil {
			return err
		}
		out, err = t.releaseKnown(req)
		return err
	})
	if err != nil {
		return ipam.Released{}, err
	}
	return out, nil
}

func (t *tx) releaseKnown(req ipam.ReleaseRequest) (ipam.Released, error) {
	att, found, err := t.attachment(req.Attachment)
	if err != nil || !found || !req.Covers(att, precision) {
		return ipam.Released{}, err
	}
	out, err := t.release(att, req)
	if err != nil {
		return out, err
	}
	return out, t.expire()
}

// release ends an attachment.
func (t *tx) release(att ipam.AttachmentRecord, req ipam.ReleaseRequest) (out ipam.Released, err error) {
	t.unused = req.Undo
	defer func() { t.unused = false }()
	for _, a := range att.Addresses {
		rec, err := t.heldBy(att.Attachment, a)
		if err != nil {
			return out, err
		}
		next, err := t.released(rec, req)
		if err != nil {
			return out, err
		}
		if err := t.setRecord(rec, next); err != nil {
			return out, err
		}
		out.Records = append(out.Records, rec)
	}
	if err := t.setAttachment(att, ipam.AttachmentRecord{}); err != nil {
		return out, err
	}
	out.Uses = att.Uses
	return out, nil
}

// released returns what becomes of the record of a held address; the zero
// Record if the address is free at once.
func (t *tx) released(rec ipam.Record, req ipam.ReleaseRequest) (ipam.Record, error) {
	p, known, err := t.pool(rec.PoolID())
	if err != nil {
		return rec, err
	}
	if here, err := t.mine(ipam.Pool{UUID: rec.PoolUUID}, rec.Address.Addr()); err != nil || !here {
		return ipam.Record{}, err // whether it rests is up to the node that has it
	}
	if !known {
		p.CoolDown = defaultCoolDown
	}
	rec.Since, rec.MissedAt = t.now, time.Time{}
	conflict := slices.IndexFunc(req.Conflict, func(c ipam.Conflict) bool { return plain(c.Address) == rec.Address.Addr() })
	if conflict >= 0 {
		rest := p.Quarantine
		if rest <= 0 {
			rest = defaultQuarantine
		}
		rec.State, rec.Until, rec.Reason = ipam.Quarantined, t.after(rest), req.Conflict[conflict].Reason
		return rec, nil
	}
	// An address that its owner is to find again is parked even when this
	// attempt to use it has failed: the next attempt wants it.
	sticky := p.Sticky != ipam.NotSticky && rec.Owner != ""
	rest := p.Rest(rec.Owner)
	if t.tight || rest <= 0 || req.Undo && !sticky {
		return ipam.Record{}, nil
	}
	rec.State, rec.Until = ipam.Cooling, t.after(rest)
	rec.Strict = sticky && p.Sticky == ipam.StickyStrict
	return rec, nil
}

// lentWith is what becomes of an address whose block was lent while somebody held
// it, as soon as it is free; the zero Record for any other. Nobody ever holds the
// first address of a block that is lent.
func (t *tx) lentWith(rec ipam.Record) (lent ipam.Record, err error) {
	if rec.PoolUUID == "" || rec.State == ipam.Lent {
		return lent, nil
	}
	b, found, err := t.blockOf(rec.PoolID(), rec.Address.Addr())
	if err == nil && found {
		lent, err = t.record(b.CIDR.Addr())
	}
	if lent.State != ipam.Lent || lent.PoolUUID != rec.PoolUUID {
		return ipam.Record{}, err
	}
	lent.Address = netip.PrefixFrom(rec.Address.Addr(), b.CIDR.Bits())
	return lent, err
}

func (t *tx) after(d time.Duration) time.Time { return t.now.Add(d).Truncate(time.Microsecond) }

// ReleaseAddress makes the ledger forget what it knows of one address, on the
// word of an operator, and returns what that was. A held address is taken
// from its attachment and rests like any other; one that rests, is
// quarantined or reserved is free at once.
func (l *Ledger) ReleaseAddress(a netip.Addr) (rec ipam.Record, err error) {
	return l.Clear(a, "")
}

// Clear is ReleaseAddress for an address that is in a state, and an error for
// any other; "" is any state.
func (l *Ledger) Clear(a netip.Addr, state ipam.State) (rec ipam.Record, err error) {
	a = plain(a)
	err = l.update(func(t *tx) (err error) {
		if rec, err = t.record(a); err != nil {
			return err
		}
		if state != "" && rec.State != state {
			return &ipam.FieldError{Place: "address", Msg: fmt.Sprintf("%s is not %s: it is %s", a, state, rec.Says())}
		}
		var next ipam.Record
		switch rec.State {
		case ipam.Lent:
			return &ipam.FieldError{Place: "address", Msg: fmt.Sprintf("%s is %s; a block comes back as a whole, when subnetFile is not in underlayd.json any more", a, rec.Says())}
		case "":
			return &ipam.FieldError{Place: "address", Msg: fmt.Sprintf("%s is free, there is nothing to release", a)}
		case ipam.Held:
			att, found, err := t.attachment(rec.Attachment)
			if err != nil || !found {
				return fmt.Errorf("%w: %s holds %s and has no record: %w", ErrCorrupt, rec.Attachment, a, err)
			}
			less := att
			less.Addresses = slices.DeleteFunc(slices.Clone(att.Addresses), func(b netip.Addr) bool { return a == b })
			if err := t.setAttachment(att, less); err != nil {
				return err
			}
			if next, err = t.released(rec, ipam.ReleaseRequest{}); err != nil {
				return err
			}
		}
		return t.setRecord(rec, next)
	})
	return rec, err
}

// absent refuses what is in the ledger already.
func (t *tx) absent(f Found) error {
	if _, known, err := t.attachment(f.Attachment); err != nil {
		return err
	} else if known {
		return &ipam.FieldError{Place: "attachment", Msg: fmt.Sprintf("%s is in the ledger already", f.Attachment)}
	}
	for _, a := range f.Addresses {
		if !a.Prefix.IsValid() {
			return &ipam.FieldError{Place: "address", Msg: "is required"}
		}
		rec, err := t.record(plain(a.Prefix.Addr()))
		if err != nil {
			return err
		}
		if rec.State != "" && !rec.Over(t.now) {
			return &ipam.FieldError{Place: "address", Msg: fmt.Sprintf("%s is not free: it is %s", a.Prefix.Addr(), rec.Says())}
		}
	}
	return nil
}

// Missed tells the ledger that nothing is left of these attachments. The
// first time, that is only noted; those of which it was said before, at least
// minAge ago, are released and returned.
func (l *Ledger) Missed(attachments []ipam.Attachment, minAge time.Duration) (released []ipam.Attachment, err error) {
	err = l.update(func(t *tx) error {
		released = nil
		for _, a := range attachments {
			att, found, err := t.attachment(a)
			if err != nil {
				return err
			}
			age := t.now.Sub(att.MissedAt)
			switch {
			case !found:
			case att.MissedAt.IsZero() || age < 0: // the clock was set back
				err = t.setMissed(att, t.now)
			case age >= minAge:
				_, err = t.release(att, ipam.ReleaseRequest{})
				released = append(released, a)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return released, nil
}

// Seen takes back what Missed has noted of these attachments.
func (l *Ledger) Seen(attachments []ipam.Attachment) error {
	return l.update(func(t *tx) error {
		for _, a := range attachments {
			att, found, err := t.attachment(a)
			if err != nil {
				return err
			}
			if !found || att.MissedAt.IsZero() {
				continue
			}
			if err := t.setMissed(att, time.Time{}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *tx) setMissed(att ipam.AttachmentRecord, at time.Time) error {
	for _, a := range att.Addresses {
		rec, err := t.heldBy(att.Attachment, a)
		if err != nil {
			return err
		}
		noted := rec
		noted.MissedAt = at
		if err := t.setRecord(rec, noted); err != nil {
			return err
		}
	}
	noted := att
	noted.MissedAt = at
	return t.setAttachment(att, noted)
}

// sweepBoot releases what was held before the last reboot: its namespaces
// went with the kernel that had them.
func (l *Ledger) sweepBoot() error {
	return l.update(func(t *tx) error {
		if string(t.get(bucketMeta, keyBoot)) == t.boot {
			return nil
		}
		var gone []ipam.AttachmentRecord
		err := t.attachments(nil, func(att ipam.AttachmentRecord) error {
			if att.BootID != t.boot {
				gone = append(gone, att)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if len(gone) > 0 {
			// This may change every page: better to take the room at once than
			// to run out of it again and again. Update says if there is none.
			_ = l.file.Reserve(t.b.Size())
		}
		for _, att := range gone {
			if _, err := t.release(att, ipam.ReleaseRequest{}); err != nil {
				return err
			}
		}
		return t.put(bucketMeta, keyBoot, []byte(t.boot))
	})
}

// Spool writes a release down for the next one who opens the ledger for
// writing, in the folder released.d of the first of dirs that takes it: the
// data folder, then the run folder. It needs no lock.
//
// Records made after the call are spared, without a clock that may have been set
// back since they were made: nobody allocates before what was spooled is applied.
// That does not hold for a ledger that was rebuilt, since its records are of what
// is alive; so there the clock has to do (ReleaseRequest.Before).
func Spool(dirs []string, req ipam.ReleaseRequest) error {
	if err := checkRelease(req); err != nil {
		return err
	}
	if req.Before.IsZero() {
		for _, dir := range dirs {
			if m, err := mark.Read(filepath.Join(dir, markName)); err == nil && m.ID != "" {
				req.Ledger, req.Seq = m.ID, m.Seq
			}
		}
	}
	if err := spool.Write(dirs, req); err != nil {
		return fmt.Errorf("spool the release of %s: %w", req.Attachment, err)
	}
	return nil
}

// rebuilt is the number of the transaction that made the ledger anew, 0 for none.
func (t *tx) rebuilt() uint64 {
	if v := t.get(bucketMeta, keyRebuilt); len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func checkRelease(req ipam.ReleaseRequest) error { return checkAttachment(req.Attachment) }

// Drain applies what was spooled while the ledger is open, by callers whom it
// had no time to answer. An Allocate that begins after theirs must come after
// it, too.
func (l *Ledger) Drain() error { return l.o.explain(l.drain()) }

// drain applies the spooled releases in one transaction and removes their
// files. If it dies in between they are applied again, to the same effect:
// nobody allocates before they are gone.
func (l *Ledger) drain() error {
	l.spool.Lock()
	defer l.spool.Unlock()
	var files []string
	var reqs []ipam.ReleaseRequest
	for _, dir := range []string{l.o.DataDir, l.o.RunDir} {
		err := spool.Read(dir, l.o.Now(), checkRelease, func(file string, req ipam.ReleaseRequest) {
			files, reqs = append(files, file), append(reqs, req)
		})
		if err != nil {
			return err
		}
	}
	if len(files) == 0 {
		return nil
	}
	err := l.update(func(t *tx) error {
		for _, req := range reqs {
			if req.Ledger == string(t.node()) && req.Seq >= t.rebuilt() {
				req.Before = time.Time{}
			}
			if _, err := t.releaseKnown(req); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, file := range files {
		fault.Point("ledger.drain.applied")
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
