package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger/mark"
)

// asSchema1 makes a ledger what an older version would have left. One that has
// blocks stays as it is.
func asSchema1(l *Ledger) error {
	return l.file.Update(func(b *bbolt.Tx) (bool, error) {
		if k, _ := b.Bucket(bucketBlock).Cursor().First(); k != nil {
			return false, nil
		}
		old := binary.BigEndian.AppendUint32(nil, 1)
		for _, name := range since2 {
			if err := b.DeleteBucket(name); err != nil {
				return false, err
			}
		}
		return true, b.Bucket(bucketMeta).Put(keySchema, old)
	})
}

// crashCluster is the pool of crashBlock.
var (
	crashCluster = ipam.Pool{Name: "lan", UUID: clusterUUID, CoolDown: 20 * time.Millisecond, Sets: []ipam.RangeSet{{{
		Subnet:   netip.MustParsePrefix("10.9.0.0/24"),
		Interval: ipam.Interval{First: netip.MustParseAddr("10.9.0.1"), Last: netip.MustParseAddr("10.9.0.254")},
	}}}}
	crashBlock = netip.MustParsePrefix("10.9.0.8/29")
)

// leased is a record of crashBlock that gives all of it to the ledger.
func leased(l *Ledger) (lease.Seen, error) {
	me, err := l.Node()
	return lease.Seen{Block: lease.Block{CIDR: crashBlock, Owner: me}, Rev: 5}, err
}

func leaseCrashBlock(l *Ledger) error {
	s, err := leased(l)
	if err != nil {
		return err
	}
	if err := l.SetPools([]ipam.Pool{crashCluster}); err != nil {
		return err
	}
	if _, err := l.Learn(clusterUUID, s, true); err != nil {
		return err
	}
	return l.Confirm()
}

// tryGive gives two addresses away, unless they are on their way already.
func tryGive(l *Ledger) error {
	s, err := leased(l)
	if err != nil {
		return err
	}
	to := lease.Entry{Node: "other"}
	for _, a := range []netip.Addr{netip.MustParseAddr("10.9.0.14"), netip.MustParseAddr("10.9.0.15")} {
		err := l.Intend(clusterUUID, s, map[netip.Addr]lease.Entry{a: to})
		if err != nil && !errors.Is(err, lease.ErrInUse) {
			return err
		}
		fmt.Println("gave", a)
	}
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// clusterPool opens a ledger that leases crashBlock of the pool.
func clusterPool(t *testing.T, c *clock, change ...func(*ipam.Pool)) (*Ledger, Options, ipam.Pool) {
	t.Helper()
	o := testOptions(t, c)
	l := open(t, o)
	p := crashCluster
	p.CoolDown = 30 * time.Second
	for _, f := range change {
		f(&p)
	}
	must(t, leaseCrashBlock(l))
	must(t, l.SetPools([]ipam.Pool{p}))
	return l, o, p
}

func named(id string) ipam.AllocateRequest {
	return ipam.AllocateRequest{Attachment: att(id), Cluster: "lan", Owner: "ns/" + id}
}

func TestClusterPool(t *testing.T) {
	t.Parallel()
	c := newClock()
	l, _, _ := clusterPool(t, c)
	for i := range 8 {
		if got, want := add(t, l, named(fmt.Sprint(i))), fmt.Sprintf("10.9.0.%d", 8+i); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if n := l.Demand(clusterUUID); n != 8 {
		t.Errorf("demand %d", n)
	}
	c.add(2 * time.Second)
	if n := l.Demand(clusterUUID); n != 0 {
		t.Errorf("demand %d after two seconds", n)
	}
	_, err := l.Allocate(named("9"), nil)
	var full *ipam.ExhaustedError
	if want := (ipam.Counts{Usable: 254, Held: 8, Elsewhere: 246}); !errors.As(err, &full) || full.Counts != want || !full.More() {
		t.Errorf("exhausted: %v", err)
	}
	// A local pool of the same name, with the same addresses, has nothing to do
	// with it but what is in use.
	local := crashCluster
	local.UUID = ""
	req := request(local, "local")
	ips("10.9.0.8")(&req)
	if _, err := l.Allocate(req, nil); !errors.As(err, new(*ipam.TakenError)) {
		t.Errorf("an address of another pool: %v", err)
	}
	add(t, l, request(local, "local"))
	for state, addr := range map[ipam.State]string{ipam.Elsewhere: "10.9.0.77", ipam.Held: "10.9.0.9"} {
		req := named("x")
		ips(addr)(&req)
		var taken *ipam.TakenError
		if _, err := l.Allocate(req, nil); !errors.As(err, &taken) || taken.State != state {
			t.Errorf("%s: %v, want %s", addr, err, state)
		}
	}
	if _, err := l.Allocate(ipam.AllocateRequest{Attachment: att("x"), Cluster: "wan"}, nil); code(err) != ipam.CodeTryAgainLater {
		t.Errorf("a pool that nobody knows: %v", err)
	}
	// What an operator has taken away in the registry stays with its holder, and
	// goes to nobody after it.
	s, err := leased(l)
	must(t, err)
	s.Block.Owner, s.Rev = "other", 6
	lost, err := l.Learn(clusterUUID, s, true)
	if err != nil || len(lost) != 8 {
		t.Errorf("lost %v, %v", lost, err)
	}
	del(t, l, "3")
	if _, err := l.Allocate(named("3"), nil); !errors.As(err, &full) {
		t.Errorf("after the block was taken: %v", err)
	}
	if _, err := l.Learn(clusterUUID, lease.Seen{Block: s.Block, Rev: 5}, true); !errors.Is(err, lease.ErrStale) {
		t.Errorf("an old record: %v", err)
	}
	must(t, l.Prune(clusterUUID, 6))
}

func code(err error) uint {
	var c interface{ CNICode() uint }
	if !errors.As(err, &c) {
		return 0
	}
	return c.CNICode()
}

func TestGiving(t *testing.T) {
	t.Parallel()
	c := newClock()
	l, o, _ := clusterPool(t, c, func(p *ipam.Pool) { p.Sticky, p.StickyFor = ipam.StickyStrict, time.Hour })
	a := netip.MustParseAddr(add(t, l, named("a")))
	b := netip.MustParseAddr(add(t, l, named("b")))
	del(t, l, "b")
	blocks, err := l.Blocks(clusterUUID)
	must(t, err)
	if diff := cmp.Diff(map[netip.Addr]string{a: "ns/a"}, blocks[0].Keys, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	spares, err := l.Spares(clusterUUID, 100)
	must(t, err)
	if last := spares[len(spares)-1]; len(spares) != 7 || last.Address != b || last.Owner != "ns/b" || !last.Strict || spares[0].Owner != "" {
		t.Errorf("spares %+v", spares)
	}
	s, err := leased(l)
	must(t, err)
	if err := l.Intend(clusterUUID, s, map[netip.Addr]lease.Entry{a: {Node: "other"}}); !errors.Is(err, lease.ErrInUse) {
		t.Errorf("to give what is held: %v", err)
	}
	to := lease.Entry{Key: "ns/b", Since: c.now}
	must(t, l.Intend(clusterUUID, s, map[netip.Addr]lease.Entry{b: to}))
	shut(t, l)
	l = open(t, o)
	book, err := l.Book(clusterUUID, crashBlock)
	must(t, err)
	if m := book.Marks[b]; m.Status != lease.Giving || m.To.Key != "ns/b" || !m.To.Since.Equal(c.now) || book.Rev != 5 {
		t.Errorf("after it was opened again: %+v of revision %d", m, book.Rev)
	}
	req := named("b")
	ips(b.String())(&req)
	var taken *ipam.TakenError
	if _, err := l.Allocate(req, nil); !errors.As(err, &taken) || taken.State != ipam.Giving {
		t.Errorf("what is on its way: %v", err)
	}
	// It lands, and comes back for its owner.
	s.Block, err = s.Block.Give(book.Node, map[netip.Addr]lease.Entry{b: to})
	must(t, err)
	s.Rev = 6
	_, err = l.Learn(clusterUUID, s, true)
	must(t, err)
	s.Block, err = s.Block.Claim(book.Node, map[netip.Addr]string{b: "ns/b"})
	must(t, err)
	s.Rev = 7
	_, err = l.Learn(clusterUUID, s, true)
	must(t, err)
	for range 6 {
		if got := add(t, l, named(fmt.Sprint("x", l.Demand(clusterUUID)))); got == b.String() {
			t.Error("somebody else got the address of ns/b")
		}
	}
	if got := add(t, l, named("b")); got != b.String() {
		t.Errorf("ns/b got %s, want %s", got, b)
	}
}

func TestConfirm(t *testing.T) {
	t.Parallel()
	l, o, _ := clusterPool(t, newClock())
	add(t, l, named("a"))
	shut(t, l)
	o.BootID = "boot-2"
	l = open(t, o)
	if _, err := l.Allocate(named("a"), nil); !errors.Is(err, ErrUnconfirmed) || code(err) != ipam.CodeTryAgainLater {
		t.Errorf("before it is confirmed: %v", err)
	}
	add(t, l, request(pool("local", set(t, "10.0.0.0/24")), "l"))
	must(t, l.Confirm())
	add(t, l, named("a"))
	before, err := l.Node()
	must(t, err)
	must(t, l.Remember(lease.Past{Cluster: "c", Epoch: lease.Epoch{Number: 2, ID: "e"}, Rev: 9}))
	after, err := l.Renew()
	if err != nil || after == before {
		t.Fatalf("renew: %s after %s, %v", after, before, err)
	}
	sound(t, l)
	if _, err := l.Allocate(named("b"), nil); !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("as another node: %v", err)
	}
	add(t, l, named("a")) // has it already
	must(t, l.Confirm())
	if _, err := l.Allocate(named("b"), nil); !errors.As(err, new(*ipam.ExhaustedError)) {
		t.Errorf("without a block: %v", err)
	}
	if p, err := l.Past(); err != nil || p.Rev != 9 || p.Epoch.ID != "e" {
		t.Errorf("past %+v, %v", p, err)
	}
	// A process that died in between has left the former ID in the mark.
	must(t, os.WriteFile(o.markPath(), []byte(mark.Mark{Boot: o.BootID, ID: string(before), Seq: sequence(t, l)}.String()), 0o600))
	shut(t, l)
	l = open(t, o)
	must(t, l.Refused())
	must(t, leaseCrashBlock(l))
	if got := add(t, l, named("b")); got != "10.9.0.9" {
		t.Errorf("got %s beside what a holds", got)
	}
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	o := testOptions(t, newClock())
	l := open(t, o)
	p := pool("lan", set(t, "10.0.0.0/24"))
	add(t, l, request(p, "a"))
	must(t, asSchema1(l))
	must(t, l.Close())
	l.file = nil
	o.ReadOnly = true
	shut(t, open(t, o)) // can be read as it is
	o.ReadOnly = false
	l = open(t, o)
	must(t, l.Refused())
	if info, err := l.Info(); err != nil || info.Schema != schema {
		t.Errorf("info %+v, %v", info, err)
	}
	must(t, leaseCrashBlock(l))
	add(t, l, named("b"))
	wantStates(t, l, "10.0.0.2 held a", "10.9.0.8 held b")
	old := o
	old.DataDir = t.TempDir()
	b, err := os.ReadFile(o.dbPath() + ".schema1")
	must(t, err)
	write(t, old.dbPath(), b)
	old.ReadOnly = true
	old.RunDir = t.TempDir()
	wantStates(t, open(t, old), "10.0.0.2 held a")
}

// A ledger that was put back in time while containers run gives nothing away: it
// does not know of them.
func TestLostGivesNothing(t *testing.T) {
	t.Parallel()
	l, o, _ := clusterPool(t, newClock())
	shut(t, l)
	old, err := os.ReadFile(o.dbPath())
	must(t, err)
	l = open(t, o)
	a := netip.MustParseAddr(add(t, l, named("a")))
	shut(t, l)
	write(t, o.dbPath(), old)
	l = open(t, o)
	s, err := leased(l)
	must(t, err)
	if err := l.Intend(clusterUUID, s, map[netip.Addr]lease.Entry{a: {Node: "other"}}); !errors.Is(err, ErrLost) {
		t.Errorf("give: %v", err)
	}
	if _, err := l.Learn(clusterUUID, s, true); !errors.Is(err, ErrLost) {
		t.Errorf("learn: %v", err)
	}
	if err := l.Confirm(); !errors.Is(err, ErrLost) {
		t.Errorf("confirm: %v", err)
	}
}

// BenchmarkClusterPool: an ADD and a DEL take as long with 1,000 blocks in use as
// with 100.
func BenchmarkClusterPool(b *testing.B) {
	for _, blocks := range []int{100, 1000} {
		b.Run(fmt.Sprint(blocks, " blocks"), func(b *testing.B) {
			o := testOptions(b, nil)
			l := open(b, o)
			p := crashCluster
			p.Sets = []ipam.RangeSet{{{Subnet: netip.MustParsePrefix("10.0.0.0/8"), Interval: ipam.Interval{First: netip.MustParseAddr("10.0.0.0"), Last: netip.MustParseAddr("10.255.255.255")}}}}
			must(b, l.SetPools([]ipam.Pool{p}))
			me, err := l.Node()
			must(b, err)
			for i := range blocks {
				cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 30)
				_, err := l.Learn(clusterUUID, lease.Seen{Block: lease.Block{CIDR: cidr, Owner: me}, Rev: 1}, true)
				must(b, err)
			}
			must(b, l.Confirm())
			for i := range 4*blocks - 2 { // all but two are held
				add(b, l, ipam.AllocateRequest{Attachment: att(fmt.Sprint("h", i)), Cluster: "lan"})
			}
			for b.Loop() {
				add(b, l, ipam.AllocateRequest{Attachment: att("x"), Cluster: "lan"})
				_, err := l.Release(ipam.ReleaseRequest{Attachment: att("x"), Undo: true})
				must(b, err)
			}
		})
	}
}

// TestOverlap: what a local pool has in use of a block is not given to other
// nodes.
func TestOverlap(t *testing.T) {
	t.Parallel()
	l := open(t, testOptions(t, nil))
	must(t, leaseCrashBlock(l))
	local := ipam.Pool{Name: "local", Sets: crashCluster.Sets}
	local.Sets = []ipam.RangeSet{{local.Sets[0][0]}}
	local.Sets[0][0].First = netip.MustParseAddr("10.9.0.9")
	a, err := l.Allocate(ipam.AllocateRequest{Attachment: att("x"), Pool: local}, nil)
	must(t, err)
	addr := a.Addresses[0].Prefix.Addr()
	s, err := leased(l)
	must(t, err)
	if err := l.Intend(clusterUUID, s, map[netip.Addr]lease.Entry{addr: {Node: "other"}}); !errors.Is(err, lease.ErrInUse) {
		t.Errorf("%s was given to another node: %v", addr, err)
	}
	spares, err := l.Spares(clusterUUID, 100)
	if err != nil || len(spares) != 7 || slices.ContainsFunc(spares, func(s Spare) bool { return s.Address == addr }) {
		t.Errorf("spare: %+v, %v", spares, err)
	}
	for range 7 {
		got, err := l.Allocate(ipam.AllocateRequest{Attachment: att(fmt.Sprint("y", len(a.Addresses))), Cluster: crashCluster.Name}, nil)
		must(t, err)
		if got.Addresses[0].Prefix.Addr() == addr {
			t.Errorf("%s was given twice", addr)
		}
		a.Addresses = append(a.Addresses, got.Addresses...)
	}
}
