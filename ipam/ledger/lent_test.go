package ledger

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

const lentTo = "/run/flannel/subnet.env"

func lentBlocks(t testing.TB, l *Ledger) string {
	t.Helper()
	blocks, err := l.Blocks(clusterUUID)
	must(t, err)
	var out []string
	for _, b := range blocks {
		if b.Lent != "" {
			out = append(out, fmt.Sprintf("%s to %s", b.CIDR, b.Lent))
		}
	}
	return strings.Join(out, ", ")
}

// TestLend: of a block that is lent nothing is given out, by no way, nothing goes
// to other nodes or back, it counts as used, and that is so after a reboot.
func TestLend(t *testing.T) {
	t.Parallel()
	l, o := routedPool(t)
	four, six := netip.MustParsePrefix("10.5.0.8/29"), netip.MustParsePrefix("2001:db8::8/125")
	must(t, l.Lend(clusterUUID, four, lentTo, false))
	before := sequence(t, l)
	must(t, l.Lend(clusterUUID, four, lentTo, false))
	if sequence(t, l) != before {
		t.Error("lent twice, it was written twice")
	}
	shut(t, l)
	o.BootID = "boot-2"
	l = open(t, o)
	must(t, l.Confirm())
	if got := lentBlocks(t, l); got != "10.5.0.8/29 to "+lentTo {
		t.Errorf("lent: %s", got)
	}
	var full *ipam.ExhaustedError
	if _, err := l.Allocate(ofPods("a"), nil); !errors.As(err, &full) || full.Counts.Reserved != 5 {
		t.Errorf("any: %v", err)
	}
	for _, a := range []string{"10.5.0.10", "10.5.0.14"} {
		var taken *ipam.TakenError
		if _, err := l.Allocate(ofPods("a", a), nil); !errors.As(err, &taken) || err.Error() != "requested address "+a+" is lent: "+lentTo {
			t.Errorf("by name: %v", err)
		}
		if _, err := l.Reserve("pods", netip.MustParseAddr(a), ""); err == nil || !strings.Contains(err.Error(), a+" is lent: "+lentTo) {
			t.Errorf("reserved: %v", err)
		}
		for _, state := range []ipam.State{"", ipam.Lent} {
			if _, err := l.Clear(netip.MustParseAddr(a), state); err == nil || !strings.Contains(err.Error(), "a block comes back as a whole") {
				t.Errorf("released: %v", err)
			}
		}
		if done, err := l.Quarantine(ipam.Pool{UUID: clusterUUID}.ID(), netip.MustParseAddr(a), "answered"); done || err != nil {
			t.Errorf("in quarantine: %v, %v", done, err)
		}
	}
	spares, err := l.Spares(clusterUUID, 100)
	must(t, err)
	for _, s := range spares {
		if four.Contains(s.Address) {
			t.Errorf("%s is on offer", s.Address)
		}
	}
	b, err := l.Book(clusterUUID, four)
	must(t, err)
	s := lease.Seen{Block: lease.Block{CIDR: four, Owner: b.Node}, Rev: b.Rev}
	if step := lease.Next(b, s, lease.Goal{Return: true}); step.Do != lease.Rest {
		t.Errorf("to go back: %+v", step)
	}
	if err := l.Intend(clusterUUID, s, map[netip.Addr]lease.Entry{netip.MustParseAddr("10.5.0.10"): {}}); !errors.Is(err, lease.ErrInUse) {
		t.Errorf("to be given: %v", err)
	}
	must(t, l.Reclaim(clusterUUID, four))
	a, err := l.Allocate(ofPods("a"), nil)
	must(t, err)
	if got := addrs(a); got != "10.5.0.10 2001:db8::a" || lentBlocks(t, l) != "" {
		t.Errorf("in use again: %s, lent %s", got, lentBlocks(t, l))
	}
	// What is in use is lent to nobody, and what rests may be.
	for _, cidr := range []netip.Prefix{four, six, netip.MustParsePrefix("10.5.0.16/29")} {
		if err := l.Lend(clusterUUID, cidr, lentTo, false); !errors.Is(err, lease.ErrInUse) {
			t.Errorf("%s: %v", cidr, err)
		}
	}
	must(t, l.Lend(clusterUUID, six, lentTo, true))
	if rec, _, err := l.Record(netip.MustParseAddr("2001:db8::a")); err != nil || rec.State != ipam.Held {
		t.Errorf("of a block that was lent before: %+v, %v", rec, err)
	}
	del(t, l, "a")
	if rec, _, err := l.Record(netip.MustParseAddr("2001:db8::a")); err != nil || rec.State != ipam.Lent {
		t.Errorf("the same, released: %+v, %v", rec, err)
	}
	must(t, l.Lend(clusterUUID, four, lentTo, false))
	must(t, l.Lend(clusterUUID, six, lentTo, false))
	if got := lentBlocks(t, l); got != "10.5.0.8/29 to "+lentTo+", 2001:db8::8/125 to "+lentTo {
		t.Errorf("lent at last: %s", got)
	}
	// The node was removed: nothing is left of what it lent.
	_, err = l.Renew()
	must(t, err)
	must(t, l.Records(func(r ipam.Record) error { return fmt.Errorf("left: %+v", r) }))
}

// TestLentNever has a ledger of some blocks take random steps. Whatever they are,
// nothing is given out of a block while it is lent, and it does not leave.
func TestLentNever(t *testing.T) {
	dirs := t
	rapid.Check(t, func(t *rapid.T) {
		o := testOptions(dirs, newClock())
		l, err := Open(dirs.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		p := pool("pods", set(dirs, "10.5.0.0/27 10.5.0.0-10.5.0.31").Cut(30))
		p.UUID = clusterUUID
		me, err := l.Node()
		if err := errors.Join(err, l.SetPools([]ipam.Pool{p}), l.Confirm()); err != nil {
			t.Fatal(err)
		}
		record := map[netip.Prefix]lease.Seen{}
		lent := map[netip.Prefix]bool{}
		rev := lease.Rev(1)
		aBlock := rapid.Custom(func(t *rapid.T) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, 0, byte(rapid.IntRange(0, 7).Draw(t, "block") * 4)}), 30)
		})
		inLent := func(a netip.Addr) bool { return lent[netip.PrefixFrom(a, 30).Masked()] }
		anID := rapid.StringMatching(`[a-f]`)
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if findings, err := l.Check(); err != nil || len(findings) > 0 {
					t.Fatal(err, findings)
				}
				blocks, err := l.Blocks(clusterUUID)
				if err != nil {
					t.Fatal(err)
				}
				got := map[netip.Prefix]bool{}
				for _, b := range blocks {
					if b.Lent != "" {
						got[b.CIDR] = true
					}
				}
				if !maps.Equal(got, lent) {
					t.Fatalf("lent are %v, want %v", got, lent)
				}
			},
			"lease": func(t *rapid.T) {
				cidr := aBlock.Draw(t, "cidr")
				if record[cidr].Block.Owner != "" {
					return
				}
				rev++
				record[cidr] = lease.Seen{Block: lease.Block{CIDR: cidr, Owner: me}, Rev: rev}
				if _, err := l.Learn(clusterUUID, record[cidr], true); err != nil {
					t.Fatal(err)
				}
			},
			"return": func(t *rapid.T) {
				cidr := aBlock.Draw(t, "cidr")
				b, err := l.Book(clusterUUID, cidr)
				if err != nil {
					t.Fatal(err)
				}
				step := lease.Next(b, record[cidr], lease.Goal{Return: true})
				if step.Do == lease.Rest {
					return
				}
				if lent[cidr] || step.Do != lease.Intend {
					t.Fatalf("%s, lent %v: %+v", cidr, lent[cidr], step)
				}
				if err := l.Intend(clusterUUID, record[cidr], step.To); err != nil {
					t.Fatal(err)
				}
				rev++
				record[cidr] = lease.Seen{Block: lease.Block{CIDR: cidr}, Rev: rev}
				if _, err := l.Learn(clusterUUID, record[cidr], true); err != nil {
					t.Fatal(err)
				}
			},
			"lend": func(t *rapid.T) {
				cidr := aBlock.Draw(t, "cidr")
				again := rapid.Bool().Draw(t, "again")
				err := l.Lend(clusterUUID, cidr, lentTo, again)
				if err == nil {
					lent[cidr] = true
				} else if !errors.Is(err, lease.ErrInUse) {
					t.Fatal(err)
				}
			},
			"reclaim": func(t *rapid.T) {
				cidr := aBlock.Draw(t, "cidr")
				if err := l.Reclaim(clusterUUID, cidr); err != nil {
					t.Fatal(err)
				}
				delete(lent, cidr)
			},
			"allocate": func(t *rapid.T) {
				req := ipam.AllocateRequest{Attachment: att(anID.Draw(t, "id")), Cluster: "pods"}
				if rapid.Bool().Draw(t, "named") {
					req.Addresses = []netip.Addr{aBlock.Draw(t, "of").Addr().Next().Next()}
				}
				got, err := l.Allocate(req, nil)
				if err == nil && !got.Known && slices.ContainsFunc(got.Addresses, func(a ipam.Address) bool { return inLent(a.Prefix.Addr()) }) {
					t.Fatalf("%v is of a block that is lent", got.Addresses)
				}
			},
			"release": func(t *rapid.T) {
				if _, err := l.Release(ipam.ReleaseRequest{Attachment: att(anID.Draw(t, "id"))}); err != nil {
					t.Fatal(err)
				}
			},
			"operator": func(t *rapid.T) {
				a := aBlock.Draw(t, "of").Addr().Next().Next()
				if rapid.Bool().Draw(t, "clear") {
					_, _ = l.Clear(a, "")
				} else {
					_, _ = l.Reserve("pods", a, "because")
				}
			},
			"reopen": func(t *rapid.T) {
				o.BootID += rapid.SampledFrom([]string{"", "+"}).Draw(t, "boot")
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				if l, err = Open(dirs.Context(), o); err != nil {
					t.Fatal(err)
				}
				if err := l.Confirm(); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
}
