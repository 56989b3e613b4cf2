package ledger

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
)

// Allocate gives the attachment one address from each range set of the pool,
// or nothing, and records what else it uses.
//
// An attachment that is known keeps its addresses if they fit the request,
// and gives them back first if they do not. Of each range set it gets the
// address that it asked for, or else one that is parked for its owner, or the
// next free one after the one given out last, or the one that ends its rest
// first.
//
// decided, unless nil, is called with the answer before the transaction is
// committed, once at most: not where the commit may have to be tried again for
// want of space.
//
// Errors: *ipam.FieldError and *ipam.TakenError for what was asked for,
// *ipam.ExhaustedError, and *ipam.LedgerError.
func (l *Ledger) Allocate(req ipam.AllocateRequest, decided func(ipam.Allocation)) (ipam.Allocation, error) {
	return l.AllocateIf(func() error { return nil }, req, decided)
}

// AllocateIf is Allocate for a caller who may be gone when the turn comes:
// wanted is asked then, and if it returns an error that is all that happens.
func (l *Ledger) AllocateIf(wanted func() error, req ipam.AllocateRequest, decided func(ipam.Allocation)) (out ipam.Allocation, err error) {
	if err := check(req); err != nil {
		return out, err
	}
	if err := l.Refused(); err != nil {
		return out, err
	}
	var unconfirmed error
	if req.Cluster != "" || req.Pool.UUID != "" {
		unconfirmed = l.Unconfirmed()
	}
	pool := ""
	err = l.update(func(t *tx) (err error) {
		if err := wanted(); err != nil {
			return err
		}
		t.unconfirmed = unconfirmed
		out, pool, err = t.allocateFrom(req)
		if err == nil && decided != nil && t.short == nil {
			decided(out)
			decided = nil // should this run again all the same
		}
		return err
	})
	if err != nil {
		return ipam.Allocation{}, err
	}
	if pool != "" && !out.Known {
		l.demand.Add(pool, l.o.Now())
	}
	return out, nil
}

// check refuses names that cannot be parts of a key.
func check(req ipam.AllocateRequest) error {
	if err := checkAttachment(req.Attachment); err != nil {
		return err
	}
	if req.Cluster != "" && len(req.Pool.Sets) > 0 {
		return &ipam.FieldError{Place: "ipam.pool", Msg: "excludes ranges of the configuration's own"}
	}
	if len(req.Pool.Sets) > 0 && req.Pool.Name == "" {
		return &ipam.FieldError{Place: "name", Msg: "a pool needs a name"}
	}
	for _, r := range slices.Concat(req.Pool.Sets...) {
		if r.First.Is4In6() || r.Last.Is4In6() {
			return &ipam.FieldError{Place: "ranges", Msg: fmt.Sprintf("%s is IPv4 written as IPv6", r.Interval)}
		}
	}
	if s := req.Uses.Segment; s.VNI < 0 || s.VNI >= 1<<24 || s.Port < 0 || s.Port >= 1<<16 || s.VNI == 0 && s.Port != 0 {
		return &ipam.FieldError{Place: "vni", Msg: fmt.Sprintf("%d with port %d is no VXLAN segment", s.VNI, s.Port)}
	}
	return checkNames(
		[2]string{"name", req.Pool.Name},
		[2]string{"ipam.pool", req.Cluster},
		[2]string{"ipam.pool", req.Pool.UUID},
		[2]string{"owner", req.Owner},
		[2]string{"master", req.Uses.Parent},
		[2]string{"network", req.Uses.Network})
}

func checkAttachment(a ipam.Attachment) error {
	names := [][2]string{{"name", a.Network}, {"CNI_CONTAINERID", a.ContainerID}, {"CNI_IFNAME", a.IfName}}
	for _, n := range names {
		if n[1] == "" {
			return &ipam.FieldError{Place: n[0], Msg: "is required"}
		}
	}
	return checkNames(names...)
}

func checkNames(names ...[2]string) error {
	const longest = 1024 // keys have a limit, and nothing real comes near
	for _, n := range names {
		if strings.ContainsRune(n[1], 0) || len(n[1]) > longest {
			return &ipam.FieldError{Place: n[0], Msg: fmt.Sprintf("%.40q is longer than %d bytes or has a zero byte", n[1], longest)}
		}
	}
	return nil
}

// allocateFrom is allocate with the pool that the ledger knows, if it is a
// cluster pool, whose UUID it returns.
func (t *tx) allocateFrom(req ipam.AllocateRequest) (out ipam.Allocation, pool string, err error) {
	var routes []ipam.Route
	if req.Cluster != "" {
		if req.Pool, err = t.cluster(req.Cluster); err != nil {
			return out, "", err
		}
		if routes, err = req.Pool.RoutesOf(req.Routes); err != nil {
			return out, "", err
		}
	} else if req.Pool.UUID != "" {
		p, known, err := t.pool(req.Pool.ID())
		if err != nil {
			return out, "", err
		}
		if known {
			req.Pool = p
		}
	}
	out, err = t.allocate(req)
	out.Routes = routes
	return out, req.Pool.UUID, err
}

func (t *tx) allocate(req ipam.AllocateRequest) (ipam.Allocation, error) {
	before, _, err := t.attachment(req.Attachment)
	if err != nil {
		return ipam.Allocation{}, err
	}
	g, err := t.held(req)
	if err != nil {
		return ipam.Allocation{}, err
	}
	var replaced ipam.AttachmentRecord
	if before.Uses.Shared() && before.Uses != req.Uses {
		replaced = before
	}
	if g == nil {
		if len(req.Pool.Sets)+len(req.Addresses) == 0 && !req.Uses.Any() {
			return ipam.Allocation{MAC: req.MAC, Replaced: replaced}, nil // nothing to be recorded
		}
		if t.short != nil {
			return ipam.Allocation{}, t.short
		}
		if t.unconfirmed != nil {
			return ipam.Allocation{}, t.unconfirmed
		}
		if g, err = t.fresh(req); err != nil {
			return ipam.Allocation{}, err
		}
	}
	if len(req.Pool.Sets) > 0 {
		if err := t.keepPool(req.Pool); err != nil {
			return ipam.Allocation{}, err
		}
	}
	if t.dirty {
		if err := t.expire(); err != nil {
			return ipam.Allocation{}, err
		}
	}
	out := g.answer()
	out.Replaced = replaced
	if req.Uses.Port != "" {
		out.Peers, out.Rivals, err = t.company(req)
	}
	return out, err
}

// grant is what an attachment holds: its own record and those of its
// addresses.
type grant struct {
	attachment ipam.AttachmentRecord
	records    []ipam.Record
	known      bool
}

func (g *grant) answer() ipam.Allocation {
	out := ipam.Allocation{MAC: g.attachment.MAC, Known: g.known}
	for _, r := range g.records {
		out.Addresses = append(out.Addresses, ipam.Address{Prefix: r.Address, Gateway: r.Gateway})
	}
	return out
}

// newGrant is what req makes of the addresses chosen for it.
func (t *tx) newGrant(req ipam.AllocateRequest, choices []choice, since time.Time, token uint64) (*grant, error) {
	mac := req.MAC
	if mac == "" && req.MACPrefix != "" && len(choices) > 0 {
		var err error
		giver := req.Pool.UUID
		if giver == "" {
			giver = string(t.get(bucketMeta, keyID))
		}
		if mac, err = ipam.DeriveMAC(req.MACPrefix, req.Attachment.Network, giver, choices[0].addr); err != nil {
			return nil, err
		}
	}
	g := &grant{attachment: ipam.AttachmentRecord{
		Version: record.AttachmentVersion(req.Uses, token), Attachment: req.Attachment, Runtime: req.Runtime, Netns: req.Netns,
		BootID: t.boot, MAC: mac, Uses: req.Uses, Since: since, Token: token,
	}}
	for _, c := range choices {
		at := c.from.Address(c.addr)
		g.attachment.Addresses = append(g.attachment.Addresses, c.addr)
		g.records = append(g.records, ipam.Record{
			Version: record.Version, Pool: req.Pool.Name, PoolUUID: req.Pool.UUID,
			Address: at.Prefix, Gateway: at.Gateway, State: ipam.Held, Attachment: req.Attachment, Runtime: req.Runtime,
			Netns: req.Netns, BootID: t.boot, MAC: mac, Owner: req.Owner, Since: since,
		})
	}
	return g, nil
}

// store writes a grant in place of what was there before.
func (t *tx) store(g *grant, old ipam.AttachmentRecord, choices []choice) error {
	for i, c := range choices {
		if err := t.setRecord(c.record, g.records[i]); err != nil {
			return err
		}
	}
	return t.setAttachment(old, g.attachment)
}

// held returns what the attachment holds already if that is what it asks for;
// if not, it gives it all back and returns nil. Records in which nothing but
// the namespace or the like has changed are made anew.
func (t *tx) held(req ipam.AllocateRequest) (*grant, error) {
	old, found, err := t.attachment(req.Attachment)
	if err != nil || !found {
		return nil, err
	}
	choices, fits, err := t.fits(old, req)
	if err != nil {
		return nil, err
	}
	if !fits {
		_, err := t.release(old, ipam.ReleaseRequest{})
		return nil, err
	}
	g, err := t.newGrant(req, choices, old.Since, old.Token)
	if err != nil {
		return nil, err
	}
	same := bytes.Equal(record.EncodeAttachment(g.attachment), record.EncodeAttachment(old))
	for i, c := range choices {
		same = same && bytes.Equal(record.Encode(g.records[i]), record.Encode(c.record))
	}
	if !same {
		if g, err = t.newGrant(req, choices, t.now, old.Token); err != nil {
			return nil, err
		}
		if err := t.store(g, old, choices); err != nil {
			return nil, err
		}
	}
	g.known = req.Token == 0 || req.Token != old.Token
	return g, nil
}

// fits reports whether what an attachment holds answers req.
func (t *tx) fits(old ipam.AttachmentRecord, req ipam.AllocateRequest) (choices []choice, ok bool, err error) {
	ok = len(old.Addresses) == len(req.Pool.Sets)
	for i, a := range old.Addresses {
		rec, err := t.heldBy(old.Attachment, a)
		if err != nil {
			return nil, false, err
		}
		if ok {
			from, usable := req.Pool.Sets[i].Find(a)
			ok = usable && rec.PoolID() == req.Pool.ID()
			choices = append(choices, choice{addr: a, from: from, record: rec})
		}
	}
	for _, a := range req.Addresses {
		ok = ok && slices.Contains(old.Addresses, plain(a))
	}
	return choices, ok, nil
}

// heldBy returns the record of an address that an attachment holds.
func (t *tx) heldBy(att ipam.Attachment, a netip.Addr) (ipam.Record, error) {
	rec, err := t.record(a)
	if err == nil && (rec.State != ipam.Held || rec.Attachment != att) {
		err = fmt.Errorf("%w: attachment %s holds %s, whose record says %q, %s",
			ErrCorrupt, att, a, rec.State, rec.Attachment)
	}
	return rec, err
}

// fresh makes a grant of addresses that the attachment does not hold yet.
func (t *tx) fresh(req ipam.AllocateRequest) (*grant, error) {
	choices, err := t.choose(req)
	if err != nil {
		return nil, err
	}
	g, err := t.newGrant(req, choices, t.now, req.Token)
	if err != nil {
		return nil, err
	}
	return g, t.store(g, ipam.AttachmentRecord{}, choices)
}

// Quarantine keeps an address of a pool, which is given by its ID, out of use for
// a while, since somebody else on the wire has it. done is false, and nothing has
// happened, where it is not free to be given out: its holder has found out, or
// will.
func (l *Ledger) Quarantine(id string, a netip.Addr, reason string) (done bool, err error) {
	a = plain(a)
	if err := l.Refused(); err != nil {
		return false, err
	}
	err = l.update(func(t *tx) error {
		done = false
		p, known, err := t.pool(id)
		from, usable := p.Find(a)
		if err != nil || !known || !usable || t.short != nil {
			return err
		}
		mine, err := t.mine(p, a)
		if err != nil || !mine {
			return err
		}
		old, err := t.record(a)
		if err != nil || old.State != "" {
			return err
		}
		rest := p.Quarantine
		if rest <= 0 {
			rest = defaultQuarantine
		}
		done = true
		at := from.Address(a)
		return t.setRecord(old, ipam.Record{
			Version: record.Version, Pool: p.Name, PoolUUID: p.UUID, Address: at.Prefix, Gateway: at.Gateway,
			State: ipam.Quarantined, BootID: t.boot, Since: t.now, Until: t.after(rest), Reason: reason,
		})
	})
	return done && err == nil, err
}

// Demand returns how many attachments this open ledger has given addresses of a
// cluster pool, which is a UUID, in the last two seconds.
func (l *Ledger) Demand(pool string) int { return l.demand.Recent(pool, l.o.Now()) }

// Reserve keeps an address of a pool, which is given by its name, out of use
// until Clear, and returns its record. One that is held is not taken from its
// holder; what rests there or is quarantined is not kept any longer.
func (l *Ledger) Reserve(pool string, a netip.Addr, reason string) (rec ipam.Record, err error) {
	a = plain(a)
	if err := l.Refused(); err != nil {
		return rec, err
	}
	if err := checkNames([2]string{"reason", reason}); err != nil {
		return rec, err
	}
	err = l.update(func(t *tx) error {
		if t.short != nil {
			return t.short
		}
		p, from, err := t.poolOf(pool, a)
		if err != nil {
			return err
		}
		old, err := t.record(a)
		if err != nil {
			return err
		}
		if old.State == ipam.Held || old.State == ipam.Lent {
			return &ipam.FieldError{Place: "address", Msg: fmt.Sprintf("%s is %s", a, old.Says())}
		}
		at := from.Address(a)
		rec = ipam.Record{Version: record.Version, Pool: p.Name, PoolUUID: p.UUID, Address: at.Prefix, Gateway: at.Gateway, State: ipam.Reserved, BootID: t.boot, Since: t.now, Reason: reason}
		return t.setRecord(old, rec)
	})
	if err != nil {
		return ipam.Record{}, err
	}
	return rec, nil
}
