package lease_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

func TestFind(t *testing.T) {
	t.Parallel()
	const key = "ns/web-0"
	other := netip.MustParsePrefix("10.0.0.4/30")
	b1, b2 := netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.0.0.6")
	second := func(owner lease.Node, g given) lease.Block { return lease.Block{CIDR: other, Owner: owner, Given: g} }
	later := lease.Entry{Key: "ns/later", Since: epoch.Add(time.Hour)}
	sooner := lease.Entry{Key: "ns/sooner", Since: epoch}
	full := second(n2, nil)
	claim := func(p netip.Prefix, a netip.Addr, key string) lease.Found {
		return lease.Found{CIDR: p, Goal: lease.Goal{Claim: map[netip.Addr]string{a: key}}}
	}
	own := func(f lease.Found) lease.Found {
		f.Addr = a2
		return f
	}
	// The pool has two blocks of four addresses, of which the first and the
	// last are no hosts and the second is the gateway.
	tests := []struct {
		name   string
		search lease.Search
		blocks []lease.Block
		want   lease.Found
	}{
		{"a block that nobody has", lease.Search{}, []lease.Block{full}, lease.Found{CIDR: cidr, Goal: lease.Goal{Lease: true}}},
		{"a returned block", lease.Search{}, []lease.Block{block("", nil), full}, lease.Found{CIDR: cidr, Goal: lease.Goal{Lease: true}}},
		{"a returned block of which nothing is left", lease.Search{Waiting: true}, []lease.Block{block("", given{a2: {Node: n2}, a3: {Node: n2}}), full}, lease.Found{Ask: true}},
		{"an unreadable block is nobody's to take", lease.Search{Waiting: true, Skip: func(p netip.Prefix) bool { return p == cidr }}, []lease.Block{full}, lease.Found{Ask: true}},
		{"an offer", lease.Search{}, []lease.Block{block(n1, nil), second(n2, given{b1: {}})}, claim(other, b1, "")},
		{"an offer that is no usable address", lease.Search{Waiting: true}, []lease.Block{block(n1, given{a1: {}}), full}, lease.Found{Ask: true}},
		{"nothing, ahead of need", lease.Search{}, []lease.Block{block(n1, nil), full}, lease.Found{}},
		{"nothing, with an ADD that waits", lease.Search{Waiting: true}, []lease.Block{block(n1, nil), full}, lease.Found{Ask: true}},
		{"one's own parked address before anything else", lease.Search{Sticky: ipam.StickySoft, Key: key}, []lease.Block{block(n2, given{a2: {Key: key, Since: epoch}, a3: {Node: n2, Key: key}})}, own(claim(cidr, a2, key))},
		{"one's own parked address, strictly", lease.Search{Sticky: ipam.StickyStrict, Key: key}, []lease.Block{block(n2, given{a2: {Key: key, Since: epoch}, a3: {Node: n2, Key: key}})}, own(claim(cidr, a2, key))},
		{"one's own address is held elsewhere", lease.Search{Sticky: ipam.StickySoft, Key: key, Waiting: true}, []lease.Block{block(n2, given{a2: {Node: n2, Key: key}})}, lease.Found{Holder: n2, Addr: a2}},
		{"a key means nothing in a pool that is not sticky", lease.Search{Key: key}, []lease.Block{full, block(n2, given{a2: {Node: n2, Key: key}, a3: {}})}, claim(cidr, a3, key)},
		{"another's parked address, ahead of need", lease.Search{Sticky: ipam.StickySoft}, []lease.Block{block(n2, given{a2: sooner}), full}, lease.Found{}},
		{"another's parked address, the oldest", lease.Search{Sticky: ipam.StickySoft, Waiting: true, Key: key}, []lease.Block{block(n2, given{a2: later}), second(n2, given{b2: sooner})}, claim(other, b2, key)},
		{"another's parked address after a refusal", lease.Search{Sticky: ipam.StickySoft, Waiting: true, Attempt: 1}, []lease.Block{block(n2, given{a2: later}), second(n2, given{b2: sooner})}, claim(cidr, a2, "")},
		{"another's parked address, strictly", lease.Search{Sticky: ipam.StickyStrict, Waiting: true}, []lease.Block{block(n2, given{a2: sooner}), full}, lease.Found{Ask: true}},
		{"another's parked address, strictly, after its time", lease.Search{Sticky: ipam.StickyStrict, Now: epoch.Add(24 * time.Hour)}, []lease.Block{block(n2, given{a2: sooner}), full}, claim(cidr, a2, "")},
		{"a routed pool trades nothing", lease.Search{Whole: true, Waiting: true}, []lease.Block{block(n1, given{a2: {}}), full}, lease.Found{}},
		{"a routed pool, a block of which the node has something already", lease.Search{Whole: true}, []lease.Block{block("", given{a2: {Node: n1}}), full}, lease.Found{CIDR: cidr, Goal: lease.Goal{Lease: true}}},
		{"a routed pool, a block of which another node has something", lease.Search{Whole: true, Waiting: true}, []lease.Block{block("", given{a2: {Node: n2}}), full}, lease.Found{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := tt.search
			ranges := set(t, `{"subnet":"10.0.0.0/29"}`)
			g, err := lease.NewGrid(ranges, 30)
			if err != nil {
				t.Fatal(err)
			}
			s.Node, s.Grid, s.StickyFor = n1, g, 24*time.Hour
			if s.Now.IsZero() {
				s.Now = epoch.Add(2 * time.Hour)
			}
			s.Usable = func(a netip.Addr) bool { return ranges[0].Usable(a) }
			for i, b := range tt.blocks {
				s.Blocks = append(s.Blocks, lease.Seen{Block: b, Rev: lease.Rev(i + 1)})
			}
			if diff := cmp.Diff(tt.want, s.Find(), opts...); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestLow(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		free, size int
		perSecond  float64
		want       bool
	}{
		{0, 1, 0, true}, {1, 1, 0, false}, {3, 8, 0, true}, {4, 8, 0, false}, {31, 64, 0, true}, {32, 64, 0, false}, {40, 64, 20, false}, {40, 64, 20.5, true},
	} {
		if got := lease.Low(tt.free, tt.size, tt.perSecond); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

func TestSpare(t *testing.T) {
	t.Parallel()
	p := func(s string) netip.Prefix { return netip.MustParsePrefix(s) }
	used := lease.Use{CIDR: p("10.0.0.0/30"), Mine: 4, Free: 2}
	young := lease.Use{CIDR: p("10.0.0.4/30"), Mine: 4, Free: 4, Idle: time.Minute}
	old := lease.Use{CIDR: p("10.0.0.8/30"), Mine: 4, Free: 4, Idle: 10 * time.Minute}
	older := lease.Use{CIDR: p("10.0.0.12/30"), Mine: 3, Free: 3, Idle: 20 * time.Minute}
	tests := []struct {
		name       string
		uses       []lease.Use
		perSecond  float64
		leased     float64
		unattached time.Duration
		want       []netip.Prefix
	}{
		{"one spare stays", []lease.Use{used, older}, 0, 1, 0, nil},
		{"the second goes, the longest unused", []lease.Use{used, young, old, older}, 0, 0, 0, []netip.Prefix{older.CIDR, old.CIDR}},
		{"not yet", []lease.Use{used, young, young}, 0, 0, 0, nil},
		{"not if it is needed", []lease.Use{used, old, older}, 4, 0, 0, nil},
		{"the last stays where there is enough", []lease.Use{old}, 0, 0.5, 2 * time.Hour, nil},
		{"the last stays for an hour", []lease.Use{old}, 0, 0.9, 59 * time.Minute, nil},
		{"the last goes", []lease.Use{old}, 0, 0.9, time.Hour, []netip.Prefix{old.CIDR}},
		{"all go", []lease.Use{old, older}, 0, 0.9, time.Hour, []netip.Prefix{older.CIDR, old.CIDR}},
		{"nothing", nil, 0, 1, time.Hour, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := lease.Spare(tt.uses, 4, tt.perSecond, func() float64 { return tt.leased }, tt.unattached)
			if diff := cmp.Diff(tt.want, got, opts...); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestWantIsAnsweredInTurn(t *testing.T) {
	t.Parallel()
	n3 := uuid(2, 0)
	blocks := []lease.Seen{{Block: block(n1, given{a0: {Node: n2}, a1: {Node: n3}})}}
	w := lease.Want{Node: n3, Have: 1, Rev: 7}
	if w.Answered(blocks) {
		t.Error("answered by what it had before")
	}
	if _, ok := w.Turn(n3, blocks); ok {
		t.Error("who asks answers")
	}
	if _, ok := w.Turn(uuid(0, 1), blocks); ok {
		t.Error("who has nothing answers")
	}
	turns := make(map[time.Duration]bool)
	for _, n := range []lease.Node{n1, n2} {
		wait, ok := w.Turn(n, blocks)
		if !ok || turns[wait] {
			t.Errorf("%s: %s, %v", n, wait, ok)
		}
		turns[wait] = true
	}
	if !turns[0] || !turns[50*time.Millisecond] {
		t.Errorf("turns %v", turns)
	}
	first := make(map[lease.Node]bool)
	for rev := range lease.Rev(20) {
		for _, n := range []lease.Node{n1, n2} {
			if wait, _ := (lease.Want{Node: n3, Rev: rev}).Turn(n, blocks); wait == 0 {
				first[n] = true
			}
		}
	}
	if len(first) != 2 {
		t.Error("the same node answers each flag first")
	}
	blocks[0].Block.Given[a2] = lease.Entry{Node: n3}
	if !w.Answered(blocks) {
		t.Error("not answered by a gift")
	}
	// However many have something, all have had their turn soon.
	crowd := lease.Seen{Block: lease.Block{CIDR: netip.MustParsePrefix("10.0.0.0/22"), Given: given{}}}
	a := netip.MustParseAddr("10.0.0.0")
	for i := range 1000 {
		crowd.Block.Given[a] = lease.Entry{Node: lease.Node(fmt.Sprintf("%08d-0000-4000-8000-000000000000", i))}
		a = a.Next()
	}
	last := time.Duration(0)
	for _, e := range crowd.Block.Given {
		wait, _ := lease.Want{Node: n3, Rev: 7}.Turn(e.Node, []lease.Seen{crowd})
		last = max(last, wait)
	}
	if last < 900*time.Millisecond || last > time.Second {
		t.Errorf("the last of a thousand answers after %s", last)
	}
	if got, _ := lease.Oldest([]lease.Want{{Node: n1, Rev: 9}, w, {Node: n2, Rev: 8}}); got != w {
		t.Errorf("the oldest is %+v", got)
	}
	if _, ok := lease.Oldest(nil); ok {
		t.Error("the oldest of none")
	}
}

func TestStand(t *testing.T) {
	t.Parallel()
	e := func(n int, id string) lease.Epoch { return lease.Epoch{Number: n, ID: id} }
	past := lease.Past{Cluster: "c", Epoch: e(2, "b"), Rev: 100}
	good := lease.Present{Cluster: "c", Epoch: e(2, "b"), Rev: 100}
	with := func(change func(*lease.Present)) lease.Present {
		p := good
		change(&p)
		return p
	}
	tests := []struct {
		name string
		past lease.Past
		now  lease.Present
		want lease.Standing
	}{
		{"all is well", past, good, lease.Trading},
		{"further on", past, with(func(p *lease.Present) { p.Rev = 101 }), lease.Trading},
		{"first contact", lease.Past{}, good, lease.Joining},
		{"first contact while frozen", lease.Past{}, with(func(p *lease.Present) { p.Frozen = true }), lease.Frozen},
		{"an earlier revision", past, with(func(p *lease.Present) { p.Rev = 99 }), lease.Freezing},
		{"another cluster", past, with(func(p *lease.Present) { p.Cluster = "d" }), lease.Freezing},
		{"an empty registry", past, lease.Present{Rev: 1}, lease.Freezing},
		{"an earlier epoch, however far on", past, with(func(p *lease.Present) { p.Epoch, p.Rev = e(1, "a"), 500 }), lease.Freezing},
		{"another epoch of the same number", past, with(func(p *lease.Present) { p.Epoch, p.Rev = e(2, "x"), 500 }), lease.Freezing},
		{"a new epoch", past, with(func(p *lease.Present) { p.Epoch, p.Waits = e(3, "c"), true }), lease.Asserting},
		{"others have yet to assert", past, with(func(p *lease.Present) { p.Waits = true }), lease.Waiting},
		{"frozen by another", past, with(func(p *lease.Present) { p.Frozen = true }), lease.Frozen},
		{"removed, whatever else", past, with(func(p *lease.Present) { p.Frozen, p.Removed = true, true }), lease.Removed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := lease.Stand(tt.past, tt.now); got != tt.want {
				t.Errorf("%d, want %d", got, tt.want)
			}
		})
	}
}
