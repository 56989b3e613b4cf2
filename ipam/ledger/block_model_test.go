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
)

// clusterUUID is that of the cluster pool of tests.
const clusterUUID = "c2a1f5a0-0000-4000-8000-000000000001"

// clusterRecord reports whether the cluster pool has a record of an address, and
// whether that keeps the address from being given away.
func (m *model) clusterRecord(a netip.Addr) (there, held bool) {
	r, ok := m.recs[a]
	there = ok && r.PoolUUID == clusterUUID
	return there, there && r.State != ipam.Cooling && !r.Over(m.now)
}

// inUse reports whether an address is in use by whatever pool.
func (m *model) inUse(a netip.Addr) bool {
	r, there := m.recs[a]
	return there && r.State != ipam.Cooling && !r.Over(m.now)
}

// block has the registry say something else of a block, or the ledger give
// something away, which arrives or does not.
func (m *model) block(t *rapid.T, l *Ledger) {
	me, err := l.Node()
	if err != nil {
		t.Fatal(err)
	}
	cidr := netip.MustParsePrefix(rapid.SampledFrom([]string{"10.0.0.4/30", "10.0.0.8/30"}).Draw(t, "block"))
	s, known := m.registry[cidr]
	if !known {
		s.Block.CIDR = cidr
	}
	if rapid.IntRange(0, 2).Draw(t, "give") == 0 {
		m.give(t, l, me, s)
		return
	}
	given := map[netip.Addr]lease.Entry{}
	next := lease.Block{CIDR: cidr, Owner: rapid.SampledFrom([]lease.Node{"", me, me, "other"}).Draw(t, "owner"), Given: given}
	next.Addrs(func(a netip.Addr) bool {
		if rapid.IntRange(0, 3).Draw(t, "given") == 0 {
			given[a] = lease.Entry{Node: rapid.SampledFrom([]lease.Node{"", me, "other"}).Draw(t, "to")}
		}
		return true
	})
	m.rev++
	s = lease.Seen{Block: next, Rev: m.rev}
	m.registry[cidr] = s
	lost, err := l.Learn(clusterUUID, s, true)
	if err != nil {
		t.Fatal(err)
	}
	if want := m.learn(me, s); !slices.Equal(lost, want) {
		t.Fatalf("lost %v, want %v", lost, want)
	}
}

// inBlock: of a routed pool an address comes with its block, and is none that the
// block has to itself. Here these are of four addresses.
func inBlock(t *rapid.T, p ipam.Pool, a ipam.Address) {
	if len(p.Sets) == 0 || p.Sets[0][0].BlockBits == 0 {
		return
	}
	last := a.Prefix.Addr().As4()[3]
	gateway := netip.AddrFrom4([4]byte{10, 0, 0, last&^3 + 1})
	if last%4 != 2 || a.Prefix.Bits() != 30 || a.Gateway != gateway {
		t.Fatalf("got %v of a routed pool", a)
	}
}

func (m *model) learn(me lease.Node, s lease.Seen) (lost []netip.Addr) {
	s.Block.Addrs(func(a netip.Addr) bool {
		there, held := m.clusterRecord(a)
		switch {
		case s.Block.Has(me, a):
			m.mine[a] = !m.giving[a]
		case m.inUse(a) && !m.giving[a]:
			lost = append(lost, a)
			fallthrough
		default:
			delete(m.mine, a)
			delete(m.giving, a)
			if there && !held {
				delete(m.recs, a)
			}
		}
		return true
	})
	return lost
}

func (m *model) give(t *rapid.T, l *Ledger, me lease.Node, s lease.Seen) {
	to := map[netip.Addr]lease.Entry{}
	all := true
	s.Block.Addrs(func(a netip.Addr) bool {
		if rapid.IntRange(0, 2).Draw(t, "this") == 0 {
			to[a] = lease.Entry{Node: "other"}
			all = all && m.mine[a] && !m.inUse(a)
		}
		return true
	})
	known := m.knows(l, s)
	err := l.Intend(clusterUUID, s, to)
	if (err == nil) != (all && known) {
		t.Fatalf("give %v: %v", to, err)
	}
	if err != nil {
		return
	}
	for a := range to {
		delete(m.mine, a)
		m.giving[a] = true
		if there, _ := m.clusterRecord(a); there {
			delete(m.recs, a)
		}
	}
	if rapid.Bool().Draw(t, "arrives") {
		if s.Block, err = s.Block.Give(me, to); err != nil {
			t.Fatal(err)
		}
		m.rev++
		s.Rev = m.rev
		m.registry[s.Block.CIDR] = s
	}
}

// knows reports whether the ledger's revision is that of the record.
func (m *model) knows(l *Ledger, s lease.Seen) bool {
	b, err := l.Book(clusterUUID, s.Block.CIDR)
	return err == nil && b.Rev == s.Rev
}

// inBlock reports whether the ledger knows a block that an address lies in.
func (m *model) inBlock(l *Ledger, a netip.Addr) bool {
	blocks, err := l.Blocks(clusterUUID)
	return err == nil && slices.ContainsFunc(blocks, func(b Block) bool { return b.CIDR.Contains(a) })
}

func (m *model) agreeBlocks(l *Ledger) {
	want := map[netip.Addr]lease.Status{}
	for _, marks := range []map[netip.Addr]bool{m.mine, m.giving} {
		for a, yes := range marks {
			if yes && m.giving[a] {
				want[a] = lease.Giving
			} else if yes {
				want[a] = lease.Free
			}
		}
	}
	for a := range m.recs {
		if m.inUse(a) && m.inBlock(l, a) && want[a] != lease.Giving {
			want[a] = lease.Held
		}
	}
	got := map[netip.Addr]lease.Status{}
	blocks, err := l.Blocks(clusterUUID)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, b := range blocks {
		for a, mark := range b.Marks {
			got[a] = mark.Status
		}
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		m.t.Fatalf("blocks (-model +ledger):\n%s", diff)
	}
	spares, err := l.Spares(clusterUUID, 100)
	if err != nil {
		m.t.Fatal(err)
	}
	var ends time.Time
	for _, s := range spares {
		_, held := m.clusterRecord(s.Address)
		_, usable := m.pools[ipam.Pool{UUID: clusterUUID}.ID()].Find(s.Address)
		if !usable || held || !m.mine[s.Address] || s.Until.Before(ends) {
			m.t.Fatalf("spare %+v after one until %s, held %v, mine %v", s, ends, held, slices.Collect(maps.Keys(m.mine)))
		}
		ends = s.Until
	}
}
