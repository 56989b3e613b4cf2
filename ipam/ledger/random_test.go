package ledger

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

// TestModel has the ledger and the model take the same random steps. The
// pools are small and overlap, so that they are full most of the time.
func TestModel(t *testing.T) {
	v4, v4b, v6 := set(t, "10.0.0.0/29", "10.0.1.0/24 10.0.1.250-10.0.1.251"), set(t, "10.0.0.0/28 10.0.0.4-10.0.0.9"), set(t, "2001:db8::/125")
	pools := []ipam.Pool{pool("lan", v4), pool("dual", v4b, v6), pool("soft", v4), pool("strict", v4b), pool("quick", v4b), {}}
	pools[2].Sticky, pools[2].StickyFor = ipam.StickySoft, 5*time.Minute
	pools[3].Sticky, pools[3].StickyFor = ipam.StickyStrict, 5*time.Minute
	pools[4].CoolDown = 0
	cluster := pool("shared", v4b)
	cluster.UUID = clusterUUID
	// What it is instead where it was made to be routed.
	routed := pool("shared", set(t, "10.0.0.0/28 10.0.0.4-10.0.0.11").Cut(30))
	routed.UUID = clusterUUID
	someAddrs := func(t *rapid.T, name string, n int) (out []netip.Addr) {
		for _, s := range rapid.SliceOfN(rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.9", "10.0.1.250", "2001:db8::2", "2001:db8::4"}), 0, n).Draw(t, name) {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	dirs := t
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]ipam.Pool{cluster, routed}).Draw(t, "kind")
		pools := append(slices.Clone(pools), kind, kind)
		c := newClock()
		o := testOptions(dirs, c)
		l, err := Open(dirs.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		m := &model{t: t, now: c.now, boot: o.BootID, recs: map[netip.Addr]ipam.Record{}, atts: map[ipam.Attachment]ipam.AttachmentRecord{}, pools: map[string]ipam.Pool{}, mine: map[netip.Addr]bool{}, giving: map[netip.Addr]bool{}, registry: map[netip.Prefix]lease.Seen{}}
		anAttachment := rapid.Custom(func(t *rapid.T) ipam.Attachment {
			return ipam.Attachment{Network: "lan", ContainerID: rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g"}).Draw(t, "id"), IfName: rapid.SampledFrom([]string{"eth0", "net1"}).Draw(t, "ifname")}
		})
		reopen := func() {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if l, err = Open(dirs.Context(), o); err != nil {
				t.Fatal(err)
			}
			if err := l.Confirm(); err != nil {
				t.Fatal(err)
			}
		}
		reopen()
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) { m.t = t; m.agree(l) },
			"allocate": func(t *rapid.T) {
				req := ipam.AllocateRequest{
					Attachment: anAttachment.Draw(t, "attachment"),
					Pool:       rapid.SampledFrom(pools).Draw(t, "pool"),
					Owner:      rapid.SampledFrom([]string{"", "", "ns/x", "ns/y"}).Draw(t, "owner"),
					Netns:      ipam.Netns{Inode: rapid.Uint64Range(1, 2).Draw(t, "netns")},
					Uses:       rapid.SampledFrom([]ipam.Uses{{}, {}, {Parent: "eth1", VLAN: 5}, {Parent: "eth1", VLAN: 5, HostAccess: true}, {Parent: "eth1", HostAccess: true}, {Parent: "eth1", Port: "l2"}, {Parent: "eth1", Port: "l3"}, {Parent: "eth1", Segment: ipam.Segment{VNI: 5, Port: 8472}}, {Parent: "lg5", Segment: ipam.Segment{VNI: 5}}}).Draw(t, "uses"),
				}
				if rapid.IntRange(0, 3).Draw(t, "special") == 0 {
					req.Addresses, req.Avoid = someAddrs(t, "ips", 2), someAddrs(t, "avoid", 3)
				}
				before, seq := m.clone(), sequence(dirs, l)
				may, known, wantErr := m.allocate(req)
				got, err := l.Allocate(req, nil)
				if wantErr != nil {
					if fmt.Sprintf("%T", err) != fmt.Sprintf("%T", wantErr) {
						t.Fatalf("error %v, want a %T", err, wantErr)
					}
					if full := (*ipam.ExhaustedError)(nil); errors.As(err, &full) {
						if n := full.Counts; n.Usable != n.Held+n.Cooling+n.Quarantined+n.Reserved+n.Other+n.Giving+n.Elsewhere {
							t.Fatalf("counts do not add up: %v", err)
						}
					}
					if sequence(dirs, l) != seq {
						t.Fatal("a refusal has written something")
					}
					now := m.now
					*m = *before
					m.now = now
					return
				}
				if err != nil {
					t.Fatalf("error %v, want some of %v", err, may)
				}
				if got.Known != known || len(got.Addresses) != len(may) {
					t.Fatalf("got %+v, want known %v, some of %v", got, known, may)
				}
				for i, a := range got.Addresses {
					if !slices.Contains(may[i], a.Prefix.Addr()) {
						t.Fatalf("got %v, want one of %v", a, may[i])
					}
					inBlock(t, req.Pool, a)
				}
				m.given(req, got, known)
				peers, rivals := m.company(req)
				if len(got.Peers) != min(peers, 4) || len(got.Rivals) != min(rivals, 4) { // one other port
					t.Fatalf("peers %v and rivals %v, want %d and %d", got.Peers, got.Rivals, peers, rivals)
				}
				old := before.atts[req.Attachment].Uses
				if replaced := old.Shared() && old != req.Uses; replaced != got.Replaced.Uses.Shared() || replaced && got.Replaced.Uses != old {
					t.Fatalf("replaced %v, had %v and wants %v", got.Replaced, old, req.Uses)
				}
				if len(req.Pool.Sets) > 0 {
					m.pools[req.Pool.ID()] = req.Pool
				}
			},
			"release": func(t *rapid.T) {
				req := ipam.ReleaseRequest{Attachment: anAttachment.Draw(t, "attachment"), Undo: rapid.Bool().Draw(t, "undo")}
				if rapid.IntRange(0, 4).Draw(t, "conflict") == 0 {
					for _, a := range someAddrs(t, "conflicts", 3) {
						req.Conflict = append(req.Conflict, ipam.Conflict{Address: a, Reason: "answered"})
					}
				}
				if rapid.IntRange(0, 4).Draw(t, "before") == 0 {
					req.Before = c.now.Add(-time.Minute)
				}
				var want ipam.Released
				old, found := m.atts[req.Attachment]
				if found && (req.Before.IsZero() || old.Since.Before(req.Before)) {
					m.release(old, req)
					want.Uses = old.Uses
				}
				got, err := l.Release(req)
				if err != nil || got.Uses != want.Uses {
					t.Fatalf("release: %+v, %v; want %+v", got, err, want)
				}
			},
			"time": func(t *rapid.T) {
				c.add(rapid.SampledFrom([]time.Duration{time.Second, 29 * time.Second, time.Minute, 6 * time.Minute, time.Hour, -time.Minute, -time.Hour}).Draw(t, "by"))
				m.now = c.now
			},
			"operator": func(t *rapid.T) {
				for _, a := range someAddrs(t, "address", 1) {
					r, found := m.recs[a]
					if _, err := l.ReleaseAddress(a); (err == nil) != found {
						t.Fatalf("release of %s: %v, found %v", a, err, found)
					}
					if r.State == ipam.Held {
						whole := m.atts[r.Attachment]
						part := whole
						part.Addresses = []netip.Addr{a}
						m.release(part, ipam.ReleaseRequest{})
						whole.Addresses = slices.DeleteFunc(slices.Clone(whole.Addresses), func(b netip.Addr) bool { return b == a })
						if len(whole.Addresses) > 0 || whole.Uses.Any() {
							m.atts[whole.Attachment] = whole
						}
					} else {
						delete(m.recs, a)
					}
				}
			},
			"missed": func(t *rapid.T) {
				a := anAttachment.Draw(t, "attachment")
				old, found := m.atts[a]
				released, err := l.Missed([]ipam.Attachment{a}, time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				age := m.now.Sub(old.MissedAt)
				gone := found && !old.MissedAt.IsZero() && age >= time.Minute
				if gone != (len(released) == 1) {
					t.Fatalf("missed: %v, since %s", released, old.MissedAt)
				}
				if gone {
					m.release(old, ipam.ReleaseRequest{})
				} else if found && (old.MissedAt.IsZero() || age < 0) {
					m.setMissed(old, m.now)
				}
			},
			"block": func(t *rapid.T) { m.block(t, l) },
			"seen": func(t *rapid.T) {
				a := anAttachment.Draw(t, "attachment")
				if err := l.Seen([]ipam.Attachment{a}); err != nil {
					t.Fatal(err)
				}
				if old, found := m.atts[a]; found {
					m.setMissed(old, time.Time{})
				}
			},
			"reopen": func(*rapid.T) { reopen() },
			"reboot": func(t *rapid.T) {
				if rapid.IntRange(0, 3).Draw(t, "really") > 0 {
					return
				}
				o.BootID += "+"
				m.boot = o.BootID
				reopen()
				for _, a := range maps.Clone(m.atts) {
					m.release(a, ipam.ReleaseRequest{})
				}
			},
			"spool": func(t *rapid.T) {
				req := ipam.ReleaseRequest{Attachment: anAttachment.Draw(t, "attachment"), Before: c.now}
				if err := Spool([]string{rapid.SampledFrom([]string{o.DataDir, o.RunDir}).Draw(t, "dir")}, req); err != nil {
					t.Fatal(err)
				}
				reopen()
				if old, found := m.atts[req.Attachment]; found && old.Since.Before(c.now) {
					m.release(old, req)
				}
			},
		})
	})
}
