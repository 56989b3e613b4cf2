package ledger

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
)

// model is the ledger as its documentation has it: two maps, and rules that
// look at all of them. It does not choose addresses; it says whether the
// ledger's choice is right.
type model struct {
	t     *rapid.T
	now   time.Time
	boot  string
	recs  map[netip.Addr]ipam.Record
	atts  map[ipam.Attachment]ipam.AttachmentRecord
	pools map[string]ipam.Pool
	past  []ipam.Hold
	// mine has the addresses of the cluster pool that may be given out.
	mine map[netip.Addr]bool
	// giving are those on their way out.
	giving map[netip.Addr]bool
	// registry has the records of its blocks.
	registry map[netip.Prefix]lease.Seen
	rev      lease.Rev
}

// here reports whether the node may give out an address of a pool.
func (m *model) here(uuid string, a netip.Addr) bool { return uuid == "" || m.mine[a] }

func (m *model) clone() *model {
	c := *m
	c.recs, c.atts, c.pools, c.mine = maps.Clone(m.recs), maps.Clone(m.atts), maps.Clone(m.pools), maps.Clone(m.mine)
	c.giving, c.registry, c.past = maps.Clone(m.giving), maps.Clone(m.registry), slices.Clone(m.past)
	return &c
}

func (m *model) release(att ipam.AttachmentRecord, req ipam.ReleaseRequest) {
	for _, a := range att.Addresses {
		r := m.recs[a]
		p := m.pools[r.PoolID()]
		if !req.Undo {
			m.past = append(m.past, r.Hold(m.now))
		}
		r.Since, r.MissedAt = m.now, time.Time{}
		sticky := p.Sticky != "" && r.Owner != ""
		c := slices.IndexFunc(req.Conflict, func(c ipam.Conflict) bool { return c.Address == a })
		switch {
		case !m.here(r.PoolUUID, a):
			delete(m.recs, a)
			continue
		case c >= 0:
			r.State, r.Until, r.Reason = ipam.Quarantined, m.now.Add(p.Quarantine), req.Conflict[c].Reason
		case p.Rest(r.Owner) == 0 || req.Undo && !sticky:
			delete(m.recs, a)
			continue
		default:
			r.State, r.Until, r.Strict = ipam.Cooling, m.now.Add(p.Rest(r.Owner)), sticky && p.Sticky == ipam.StickyStrict
		}
		m.recs[a] = r
	}
	delete(m.atts, att.Attachment)
}

// ownerOf is who may have a cooling address back.
func ownerOf(owner string, a ipam.Attachment) string {
	if owner != "" {
		return "key " + owner
	}
	return "container " + a.ContainerID + " " + a.IfName
}

// allocate returns the set of addresses that may be given for each range set,
// or the kind of error that must come. known: nothing may be given but these.
func (m *model) allocate(req ipam.AllocateRequest) (may [][]netip.Addr, known bool, wantErr error) {
	if old, ok := m.atts[req.Attachment]; ok {
		fits := len(old.Addresses) == len(req.Pool.Sets)
		for i, a := range old.Addresses {
			if fits {
				_, usable := req.Pool.Sets[i].Find(a)
				fits = usable && m.recs[a].PoolID() == req.Pool.ID()
			}
		}
		for _, a := range req.Addresses {
			fits = fits && slices.Contains(old.Addresses, a)
		}
		if fits {
			for _, a := range old.Addresses {
				may = append(may, []netip.Addr{a})
			}
			return may, true, nil
		}
		m.release(old, ipam.ReleaseRequest{})
	}
	may = make([][]netip.Addr, len(req.Pool.Sets))
	for _, a := range req.Addresses {
		i := slices.IndexFunc(req.Pool.Sets, func(s ipam.RangeSet) bool { _, ok := s.Find(a); return ok })
		if i < 0 || may[i] != nil {
			return nil, false, &ipam.FieldError{}
		}
		r, taken := m.recs[a]
		free := !taken || r.Over(m.now) || r.State == ipam.Cooling && (!r.Strict || r.Owner == req.Owner)
		if !free || slices.Contains(req.Avoid, a) || !m.here(req.Pool.UUID, a) {
			return nil, false, &ipam.TakenError{}
		}
		may[i] = []netip.Addr{a}
	}
	for i, s := range req.Pool.Sets {
		if may[i] == nil {
			if may[i] = m.choices(req, s); may[i] == nil {
				return nil, false, &ipam.ExhaustedError{}
			}
		}
	}
	return may, false, nil
}

func (m *model) choices(req ipam.AllocateRequest, s ipam.RangeSet) []netip.Addr {
	var parked, free, oldest []netip.Addr
	for _, r := range s {
		for a := r.First; r.Contains(a); a = a.Next() {
			if !r.Usable(a) || slices.Contains(req.Avoid, a) || !m.here(req.Pool.UUID, a) {
				continue
			}
			rec, taken := m.recs[a]
			if !taken {
				free = append(free, a)
				continue
			}
			if rec.State == ipam.Cooling && rec.PoolID() == req.Pool.ID() &&
				ownerOf(rec.Owner, rec.Attachment) == ownerOf(req.Owner, req.Attachment) {
				parked = append(parked, a)
			}
			if rec.Over(m.now) || rec.State == ipam.Cooling && !rec.Strict {
				if len(oldest) > 0 && rec.Until.Before(m.recs[oldest[0]].Until) {
					oldest = nil
				}
				if len(oldest) == 0 || rec.Until.Equal(m.recs[oldest[0]].Until) {
					oldest = append(oldest, a)
				}
			}
		}
	}
	switch {
	case parked != nil:
		return parked
	case free != nil:
		return free
	}
	return oldest
}

// given writes down what the ledger has chosen.
func (m *model) given(req ipam.AllocateRequest, out ipam.Allocation, known bool) {
	att := ipam.AttachmentRecord{Version: record.AttachmentVersion(req.Uses, 0), Attachment: req.Attachment, Netns: req.Netns, BootID: m.boot, MAC: out.MAC, Uses: req.Uses, Since: m.now}
	recs := map[netip.Addr]ipam.Record{}
	same := known
	for _, a := range out.Addresses {
		addr := a.Prefix.Addr()
		att.Addresses = append(att.Addresses, addr)
		recs[addr] = ipam.Record{Version: record.Version, Pool: req.Pool.Name, PoolUUID: req.Pool.UUID, Address: a.Prefix, Gateway: a.Gateway, State: ipam.Held,
			Attachment: req.Attachment, Netns: req.Netns, BootID: m.boot, MAC: out.MAC, Owner: req.Owner, Since: m.now}
		old := m.recs[addr]
		same = same && old.Owner == req.Owner && old.Netns == req.Netns && old.MissedAt.IsZero()
	}
	if old := m.atts[req.Attachment]; same && old.Uses == req.Uses && old.MissedAt.IsZero() && old.Netns == req.Netns {
		return
	}
	for _, a := range att.Addresses {
		if old := m.recs[a]; old.State == ipam.Held && !old.Since.Equal(m.now) {
			m.past = append(m.past, old.Hold(m.now))
		}
	}
	maps.Copy(m.recs, recs)
	if len(att.Addresses) > 0 || att.Uses.Any() {
		m.atts[req.Attachment] = att
	} else {
		delete(m.atts, req.Attachment)
	}
}

// agree compares the ledger with the model. Records whose time is over may
// have gone already.
func (m *model) agree(l *Ledger) {
	got := map[netip.Addr]ipam.Record{}
	if err := l.Records(func(r ipam.Record) error { got[r.Address.Addr()] = r; return nil }); err != nil {
		m.t.Fatal(err)
	}
	for a, r := range m.recs {
		if _, there := got[a]; !there && r.Over(m.now) {
			delete(m.recs, a)
		}
	}
	atts := map[ipam.Attachment]ipam.AttachmentRecord{}
	if err := l.Attachments(func(r ipam.AttachmentRecord) error { atts[r.Attachment] = r; return nil }); err != nil {
		m.t.Fatal(err)
	}
	opts := cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	if diff := cmp.Diff(m.recs, got, opts); diff != "" {
		m.t.Fatalf("records (-model +ledger):\n%s", diff)
	}
	if diff := cmp.Diff(m.atts, atts, opts); diff != "" {
		m.t.Fatalf("attachments (-model +ledger):\n%s", diff)
	}
	for u := range map[ipam.Uses]bool{{Parent: "eth1", VLAN: 5}: true, {Parent: "eth1"}: true} {
		vlan, host, err := l.Users(u, 0)
		if err != nil {
			m.t.Fatal(err)
		}
		wantVLAN, wantHost := m.users(u)
		if len(vlan) != wantVLAN || len(host) != wantHost {
			m.t.Fatalf("users of %+v: %v and %v, want %d and %d", u, vlan, host, wantVLAN, wantHost)
		}
	}
	segment := 0
	for _, a := range m.atts {
		if a.Uses.Segment.Port != 0 {
			segment++
		}
	}
	if got, err := l.SegmentUsers(5, 0); err != nil || len(got) != segment {
		m.t.Fatalf("users of the segment: %v, %v, want %d", got, err, segment)
	}
	m.agreeBlocks(l)
	m.agreeHistory(l)
	if findings, err := l.Check(); err != nil || len(findings) > 0 {
		m.t.Fatalf("check: %q, %v", findings, err)
	}
}

func (m *model) agreeHistory(l *Ledger) {
	want, got := map[netip.Addr][]ipam.Hold{}, map[netip.Addr][]ipam.Hold{}
	for _, h := range m.past {
		want[h.Address] = append(want[h.Address], h)
	}
	for a, r := range m.recs {
		if r.State == ipam.Held {
			want[a] = append(want[a], r.Hold(time.Time{}))
		}
	}
	for a := range want {
		if err := l.History(a, func(h ipam.Hold) error { got[a] = append(got[a], h); return nil }); err != nil {
			m.t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		m.t.Fatalf("history (-model +ledger):\n%s", diff)
	}
}

func (m *model) users(u ipam.Uses) (vlan, host int) {
	for _, a := range m.atts {
		if a.Uses.Parent == u.Parent && a.Uses.VLAN == u.VLAN {
			if u.VLAN != 0 {
				vlan++
			}
			if a.Uses.HostAccess {
				host++
			}
		}
	}
	return vlan, host
}

// company counts the others that share a parent with req, and have the same
// port, or another.
func (m *model) company(req ipam.AllocateRequest) (peers, rivals int) {
	for _, a := range m.atts {
		u := a.Uses
		switch {
		case req.Uses.Port == "" || u.Parent != req.Uses.Parent || u.VLAN != req.Uses.VLAN || u.Port == "" || a.Attachment == req.Attachment:
		case u.Port == req.Uses.Port:
			peers++
		default:
			rivals++
		}
	}
	return peers, rivals
}

func (m *model) setMissed(att ipam.AttachmentRecord, at time.Time) {
	for _, a := range att.Addresses {
		r := m.recs[a]
		r.MissedAt = at
		m.recs[a] = r
	}
	att.MissedAt = at
	m.atts[att.Attachment] = att
}
