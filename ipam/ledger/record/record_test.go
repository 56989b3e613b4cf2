package record

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

var (
	at  = time.Date(2025, 3, 1, 12, 0, 0, 123000, time.UTC)
	att = ipam.Attachment{Network: "lan", ContainerID: "4f1c2a", IfName: "eth0"}

	full = ipam.Record{
		Version: Version, Pool: "lan", Address: netip.MustParsePrefix("192.0.2.10/24"), Gateway: netip.MustParseAddr("192.0.2.1"),
		State: ipam.Cooling, Attachment: att, Runtime: "containerd", Netns: ipam.Netns{Path: "/run/netns/a", Dev: 4, Inode: 1 << 40},
		PoolUUID: "u", BootID: "b", MAC: "02:00:00:00:00:01", Owner: "default/web", Since: at, Until: at.Add(time.Hour), Strict: true,
		Reason: "because", MissedAt: at.Add(-time.Hour),
	}
	attached = ipam.AttachmentRecord{
		Version: withToken, Attachment: att, Runtime: "containerd", Netns: full.Netns, BootID: "b", MAC: full.MAC,
		Uses:      ipam.Uses{Parent: "eth1", VLAN: 4094, HostAccess: true, Port: "ipvlan l3 bridge", Network: "pods", Masquerade: true, Segment: ipam.Segment{VNI: 1<<24 - 1, Port: 1<<16 - 1}},
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")}, Since: at, MissedAt: at, Token: 1<<64 - 1,
	}
	hold = ipam.Hold{Attachment: att, Netns: "/run/netns/a", MAC: full.MAC, Owner: "default/web", BootID: "b", Since: at, Until: at.Add(time.Hour)}
	pool = ipam.Pool{
		Name: "lan", CoolDown: time.Second, Quarantine: time.Minute, Sticky: ipam.StickyStrict, StickyFor: time.Hour,
		Sets: []ipam.RangeSet{{{
			Subnet:   netip.MustParsePrefix("2001:db8::/64"),
			Interval: ipam.Interval{First: netip.MustParseAddr("2001:db8::1"), Last: netip.MustParseAddr("2001:db8::ffff:ffff:ffff:ffff")},
			Gateway:  netip.MustParseAddr("2001:db8::1"),
			Exclude:  []ipam.Interval{{First: netip.MustParseAddr("2001:db8::1"), Last: netip.MustParseAddr("2001:db8::2")}},
		}}},
	}
)

func block() Block {
	b := Block{CIDR: netip.MustParsePrefix("2001:db8::30/124"), Rev: 7, Giving: map[netip.Addr]lease.Entry{
		netip.MustParseAddr("2001:db8::3f"): {Key: "ns/web-0", Since: at},
		netip.MustParseAddr("2001:db8::31"): {Node: "n"},
	}}
	b.Set(netip.MustParseAddr("2001:db8::30"))
	b.Set(netip.MustParseAddr("2001:db8::39"))
	return b
}

func TestBlock(t *testing.T) {
	t.Parallel()
	b := block()
	var has []string
	b.Each(func(a netip.Addr) { has = append(has, a.String()) })
	if diff := cmp.Diff([]string{"2001:db8::30", "2001:db8::39"}, has); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	for addr, want := range map[string]bool{"2001:db8::39": true, "2001:db8::38": false, "2001:db8::3f": false, "2001:db8::49": false} {
		if got := b.Has(netip.MustParseAddr(addr)); got != want {
			t.Errorf("has %s: %v", addr, got)
		}
	}
	for name, change := range map[string]func(*Block){
		"no block":       func(b *Block) { b.CIDR = netip.MustParsePrefix("2001:db8::/64") },
		"host bits":      func(b *Block) { b.CIDR = netip.MustParsePrefix("2001:db8::31/124") },
		"too many marks": func(b *Block) { b.Mine = []byte{1, 2, 3} },
		"an empty byte":  func(b *Block) { b.Mine = []byte{1, 0} },
		"both":           func(b *Block) { b.Set(netip.MustParseAddr("2001:db8::3f")) },
	} {
		b := block()
		change(&b)
		if _, err := DecodeBlock(EncodeBlock(b)); err == nil {
			t.Errorf("%s: is decoded", name)
		}
	}
}

// cycle encodes and decodes, and sees that nothing but the whole is accepted.
func cycle[T any](encode func(T) []byte, decode func([]byte) (T, error)) func(*testing.T, T) {
	return func(t *testing.T, want T) {
		t.Helper()
		value := encode(want)
		got, err := decode(value)
		if err != nil {
			t.Fatalf("decode %x: %v", value, err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Errorf("comes back different (-want +got):\n%s", diff)
		}
		for n := range value {
			if _, err := decode(value[:n]); err == nil {
				t.Errorf("decoded from %d of %d bytes", n, len(value))
			}
		}
		if _, err := decode(append(value, 0)); err == nil {
			t.Error("decoded with a byte too many")
		}
		if _, err := decode(append([]byte{100}, value[1:]...)); err == nil {
			t.Error("decoded another version")
		}
	}
}

func TestCycle(t *testing.T) {
	t.Parallel()
	address, attachment, ranges := cycle(Encode, Decode), cycle(EncodeAttachment, DecodeAttachment), cycle(EncodePool, DecodePool)
	address(t, full)
	address(t, ipam.Record{Version: Version})
	attachment(t, attached)
	attachment(t, ipam.AttachmentRecord{Version: withToken})
	attachment(t, ipam.AttachmentRecord{Version: withNetwork, Attachment: att, Uses: ipam.Uses{Network: "pods", Masquerade: true}, Since: at})
	attachment(t, ipam.AttachmentRecord{Version: withPort, Attachment: att, Uses: ipam.Uses{Parent: "eth1", Port: "ipvlan l3 bridge"}, Since: at})
	attachment(t, ipam.AttachmentRecord{Version: 1, Attachment: att, Uses: ipam.Uses{Parent: "eth1", VLAN: 5}, Since: at})
	ranges(t, pool)
	address(t, ipam.Record{Version: 1, Pool: "lan", State: ipam.Held})
	cycle(EncodeBlock, DecodeBlock)(t, block())
	cycle(EncodeBlock, DecodeBlock)(t, Block{CIDR: netip.MustParsePrefix("10.0.0.4/30")})
	cycle(EncodeHold, DecodeHold)(t, hold)
	cycle(EncodePast, DecodePast)(t, lease.Past{Cluster: "c", Epoch: lease.Epoch{Number: 3, ID: "e"}, Rev: 1 << 40})
	long := ipam.Range{Subnet: netip.MustParsePrefix("10.0.0.0/8")}
	for i := range 70_000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 15), byte(i >> 7), byte(i << 1)})
		long.Exclude = append(long.Exclude, ipam.Interval{First: a, Last: a})
	}
	many := ipam.Pool{Sets: []ipam.RangeSet{{long}}}
	if got, err := DecodePool(EncodePool(many)); err != nil || len(got.Sets[0][0].Exclude) != len(long.Exclude) {
		t.Errorf("a pool with %d exclusions: %v", len(long.Exclude), err)
	}
	ranges(t, ipam.Pool{})
	main, link := 254, 253
	routed := pool
	routed.UUID = "u"
	routed.Routes = []ipam.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: netip.MustParseAddr("192.0.2.1"), MTU: 1400, AdvMSS: 1360, Priority: 1 << 31, Table: &main, Scope: &link},
		{Dst: netip.MustParsePrefix("2001:db8::/32"), Scope: new(int)},
	}
	ranges(t, routed)
	blocks := pool
	blocks.Sets = []ipam.RangeSet{pool.Sets[0].Cut(122)}
	ranges(t, blocks)
	// What has no routes, or no blocks, is as it was before there were any.
	if a, b, c := EncodePool(pool)[0], EncodePool(routed)[0], EncodePool(blocks)[0]; a != 2 || b != 3 || c != 4 {
		t.Errorf("versions %d, %d and %d", a, b, c)
	}
}

// FuzzDecode: whatever can be decoded is encoded to something that says the
// same.
func FuzzDecode(f *testing.F) {
	f.Add(Encode(full))
	f.Add(EncodeAttachment(attached))
	f.Add(EncodePool(pool))
	f.Add(EncodePool(ipam.Pool{Name: "lan", UUID: "u", Routes: []ipam.Route{{Dst: netip.MustParsePrefix("::/0"), Table: new(int)}}}))
	f.Add(EncodeBlock(block()))
	f.Add(EncodeHold(hold))
	f.Fuzz(func(t *testing.T, value []byte) {
		again(t, value, Encode, Decode)
		again(t, value, EncodeAttachment, DecodeAttachment)
		again(t, value, EncodePool, DecodePool)
		again(t, value, EncodeBlock, DecodeBlock)
		again(t, value, EncodePast, DecodePast)
		again(t, value, EncodeHold, DecodeHold)
	})
}

func again[T any](t *testing.T, value []byte, encode func(T) []byte, decode func([]byte) (T, error)) {
	t.Helper()
	first, err := decode(value)
	if err != nil {
		return
	}
	second, err := decode(encode(first))
	if err != nil || !bytes.Equal(encode(first), encode(second)) {
		t.Errorf("%x decodes to %+v, then to %+v, %v", value, first, second, err)
	}
}
