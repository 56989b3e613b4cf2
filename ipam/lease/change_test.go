package lease_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/underlay-cni/underlay/ipam/lease"
)

var (
	cidr   = netip.MustParsePrefix("10.0.0.0/30")
	a0     = netip.MustParseAddr("10.0.0.0")
	a1     = netip.MustParseAddr("10.0.0.1")
	a2     = netip.MustParseAddr("10.0.0.2")
	a3     = netip.MustParseAddr("10.0.0.3")
	n1     = uuid(0, 0)
	n2     = uuid(1, 0)
	opts   = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}
	parked = lease.Entry{Key: "ns/web-0", Since: epoch}
)

type given = map[netip.Addr]lease.Entry

func block(owner lease.Node, g given) lease.Block {
	return lease.Block{CIDR: cidr, Owner: owner, Given: g}
}

func TestChanges(t *testing.T) {
	t.Parallel()
	offer := lease.Entry{}
	all := given{a0: offer, a1: offer, a2: offer, a3: offer}
	tests := []struct {
		name   string
		from   lease.Block
		change func(lease.Block) (lease.Block, error)
		want   lease.Block
		err    error
	}{
		{"lease what is nobody's", block("", nil),
			func(b lease.Block) (lease.Block, error) { return b.Lease(n1) }, block(n1, nil), nil},
		{"lease keeps what was given", block("", given{a0: {Node: n2}, a1: parked}),
			func(b lease.Block) (lease.Block, error) { return b.Lease(n1) }, block(n1, given{a0: {Node: n2}, a1: parked}), nil},
		{"lease takes in what the new owner was given", block("", given{a0: {Node: n1}}),
			func(b lease.Block) (lease.Block, error) { return b.Lease(n1) }, block(n1, nil), nil},
		{"lease of what is leased", block(n2, nil),
			func(b lease.Block) (lease.Block, error) { return b.Lease(n1) }, lease.Block{}, lease.ErrMoved},
		{"lease that brings nothing", block("", given{a0: {Node: n2}, a1: {Node: n2}, a2: {Node: n2}, a3: parked}),
			func(b lease.Block) (lease.Block, error) { return b.Lease(n1) }, lease.Block{}, lease.ErrNothing},
		{"give to a node", block(n1, nil),
			func(b lease.Block) (lease.Block, error) { return b.Give(n1, given{a0: {Node: n2}}) }, block(n1, given{a0: {Node: n2}}), nil},
		{"give on what was given", block(n1, given{a0: {Node: n2}}),
			func(b lease.Block) (lease.Block, error) { return b.Give(n2, given{a0: {Node: n1}}) }, block(n1, nil), nil},
		{"give what is another's", block(n1, given{a0: {Node: n2}}),
			func(b lease.Block) (lease.Block, error) { return b.Give(n1, given{a0: offer}) }, lease.Block{}, lease.ErrMoved},
		{"give all is to return", block(n1, nil),
			func(b lease.Block) (lease.Block, error) { return b.Give(n1, all) }, block("", nil), nil},
		{"give the rest is to return, and keeps what was given", block(n1, given{a0: {Node: n2}, a1: parked, a2: offer}),
			func(b lease.Block) (lease.Block, error) { return b.Give(n1, given{a3: offer}) }, block("", given{a0: {Node: n2}, a1: parked}), nil},
		{"claim an offer", block(n1, given{a0: offer}),
			func(b lease.Block) (lease.Block, error) { return b.Claim(n2, map[netip.Addr]string{a0: ""}) }, block(n1, given{a0: {Node: n2}}), nil},
		{"claim of the owner", block(n1, given{a0: offer}),
			func(b lease.Block) (lease.Block, error) { return b.Claim(n1, map[netip.Addr]string{a0: ""}) }, block(n1, nil), nil},
		{"claim what is parked", block("", given{a0: parked}),
			func(b lease.Block) (lease.Block, error) {
				return b.Claim(n2, map[netip.Addr]string{a0: parked.Key})
			}, block("", given{a0: {Node: n2, Key: parked.Key}}), nil},
		{"claim what somebody has", block(n1, given{a0: {Node: n1, Key: "k"}}),
			func(b lease.Block) (lease.Block, error) { return b.Claim(n2, map[netip.Addr]string{a0: ""}) }, lease.Block{}, lease.ErrMoved},
		{"claim what comes with the lease only", block("", nil),
			func(b lease.Block) (lease.Block, error) { return b.Claim(n2, map[netip.Addr]string{a0: ""}) }, lease.Block{}, lease.ErrMoved},
		{"tag and untag", block(n1, given{a1: {Node: n1, Key: "old"}}),
			func(b lease.Block) (lease.Block, error) { return b.Tag(n1, map[netip.Addr]string{a0: "k", a1: ""}) }, block(n1, given{a0: {Node: n1, Key: "k"}}), nil},
		{"tag what is another's", block(n1, given{a0: offer}),
			func(b lease.Block) (lease.Block, error) { return b.Tag(n1, map[netip.Addr]string{a0: "k"}) }, lease.Block{}, lease.ErrMoved},
		{"strip an owner", block(n1, given{a0: {Node: n2}, a1: {Node: n1, Key: parked.Key}, a2: offer}),
			func(b lease.Block) (lease.Block, error) {
				next, _ := b.Strip(func(n lease.Node) bool { return n == n1 }, epoch)
				return next, nil
			}, block("", given{a0: {Node: n2}, a1: parked}), nil},
		{"strip one who was given something", block(n1, given{a0: {Node: n2}}),
			func(b lease.Block) (lease.Block, error) {
				next, _ := b.Strip(func(n lease.Node) bool { return n == n2 }, epoch)
				return next, nil
			}, block(n1, given{a0: offer}), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			before := tt.from
			got, err := tt.change(tt.from)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err == nil {
				if diff := cmp.Diff(tt.want, got, opts...); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
			}
			if diff := cmp.Diff(before, tt.from, opts...); diff != "" {
				t.Errorf("the change has written to what it was given (-before +after)\n%s", diff)
			}
		})
	}
}

// TestChangesMoveOnlyWhatTheySay: any change moves addresses between exactly
// the two sides it names, leaves one form of the record, and never writes to
// the old one.
func TestChangesMoveOnlyWhatTheySay(t *testing.T) {
	t.Parallel()
	nodes := []lease.Node{uuid(0, 0), uuid(1, 0), uuid(2, 0)}
	rapid.Check(t, func(t *rapid.T) {
		b := block("", nil)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			n := rapid.SampledFrom(nodes).Draw(t, "node")
			a := rapid.SampledFrom([]netip.Addr{a0, a1, a2, a3}).Draw(t, "address")
			to := rapid.SampledFrom([]lease.Entry{{}, parked, {Node: nodes[0]}, {Node: nodes[1], Key: "k"}}).Draw(t, "to")
			// What each change may do to an address: who had it, who gets it.
			var next lease.Block
			var err error
			var may func(before, after lease.Node) bool
			switch rapid.SampledFrom([]string{"lease", "give", "claim", "tag", "strip", "assert"}).Draw(t, "change") {
			case "lease":
				next, err = b.Lease(n)
				may = func(before, after lease.Node) bool { return before == "" && after == n }
			case "give":
				next, err = b.Give(n, given{a: to})
				may = func(before, after lease.Node) bool { return before == n && after == to.Node }
			case "claim":
				next, err = b.Claim(n, map[netip.Addr]string{a: to.Key})
				may = func(before, after lease.Node) bool { return before == "" && after == n }
			case "tag":
				next, err = b.Tag(n, map[netip.Addr]string{a: to.Key})
				may = func(before, after lease.Node) bool { return false }
			case "strip":
				next, _ = b.Strip(func(x lease.Node) bool { return x == n }, epoch)
				may = func(before, after lease.Node) bool { return before == n && after == "" }
			case "assert":
				next, _ = b.Assert(n, func(x netip.Addr) bool { return x == a })
				may = func(before, after lease.Node) bool { return before == n && after == "" || after == n }
			}
			if err != nil {
				continue
			}
			if err := next.Validate(); err != nil {
				t.Fatal(err)
			}
			next.Addrs(func(x netip.Addr) bool {
				before, after := b.At(x).Node, next.At(x).Node
				if before != after && !may(before, after) {
					t.Fatalf("%s went from %q to %q:\n%+v\n%+v", x, before, after, b, next)
				}
				return true
			})
			for x, e := range next.Given {
				if e.Node == next.Owner && e.Key == "" {
					t.Fatalf("the entry of %s says what the owner does: %+v", x, next)
				}
			}
			if next.Owner != "" && next.Nodes()[next.Owner] == 0 {
				t.Fatalf("the owner has nothing: %+v", next)
			}
			b = next
		}
	})
}

func TestEntryOver(t *testing.T) {
	t.Parallel()
	e := lease.Entry{Key: "k", Since: epoch}
	for after, want := range map[time.Duration]bool{
		0: false, time.Hour - 1: false, time.Hour: true, -time.Minute: false, -2 * time.Hour: true,
	} {
		if got := e.Over(epoch.Add(after), time.Hour); got != want {
			t.Errorf("after %s: %v, want %v", after, got, want)
		}
	}
}
