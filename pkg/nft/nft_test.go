package nft

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var all = Ruleset{
	Forward:    prefixes("10.5.0.0/16 10.5.7.0/24 10.6.0.0/25 10.6.0.128/26 10.7.0.1/32 2001:db8:5::/48"),
	Masquerade: prefixes("10.5.1.0/26 2001:db8:5:1::/64"),
	Nodes:      addrs("192.0.2.1 192.0.2.2 2001:db8::1 192.0.2.2"),
	Ports:      []uint16{8472, 4789},
	VTEPs:      addrs("192.0.2.1 192.0.2.2"),
}

const allShown = `table inet underlay {
	set forward4 {
		type ipv4_addr
		flags interval
		elements = { 10.5.0.0/16, 10.6.0.0/25,
			     10.6.0.128/26, 10.7.0.1 }
	}

	set forward6 {
		type ipv6_addr
		flags interval
		elements = { 2001:db8:5::/48 }
	}

	set masquerade4 {
		type ipv4_addr
		flags interval
		elements = { 10.5.1.0/26 }
	}

	set masquerade6 {
		type ipv6_addr
		flags interval
		elements = { 2001:db8:5:1::/64 }
	}

	set nodes4 {
		type ipv4_addr
		elements = { 192.0.2.1, 192.0.2.2 }
	}

	set nodes6 {
		type ipv6_addr
		elements = { 2001:db8::1 }
	}

	set vteps4 {
		type ipv4_addr
		elements = { 192.0.2.1, 192.0.2.2 }
	}

	set vteps6 {
		type ipv6_addr
	}

	set ports {
		type inet_service
		elements = { 4789, 8472 }
	}

	chain forward {
		type filter hook forward priority filter - 10; policy accept;
		ip saddr @forward4 meta mark set meta mark | 0x00020000 accept comment "from a pool #"
		ip daddr @forward4 meta mark set meta mark | 0x00020000 accept comment "to a pool #"
		ip6 saddr @forward6 meta mark set meta mark | 0x00020000 accept comment "from a pool, IPv6 #"
		ip6 daddr @forward6 meta mark set meta mark | 0x00020000 accept comment "to a pool, IPv6 #"
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr @masquerade4 ip daddr != @forward4 ip daddr != @nodes4 ip daddr != 224.0.0.0/4 masquerade fully-random comment "out of the cluster #"
		ip6 saddr @masquerade6 ip6 daddr != @forward6 ip6 daddr != @nodes6 ip6 daddr != ff00::/8 masquerade fully-random comment "out of the cluster, IPv6 #"
	}

	chain input {
		type filter hook input priority filter - 10; policy accept;
		udp dport @ports ip saddr != @vteps4 drop comment "VXLAN of strangers #"
		udp dport @ports ip6 saddr != @vteps6 drop comment "VXLAN of strangers, IPv6 #"
	}
}
`

const forwardShown = `table inet underlay {
	set forward4 {
		type ipv4_addr
		flags interval
		elements = { 10.5.0.0/16 }
	}

	set forward6 {
		type ipv6_addr
		flags interval
	}

	chain forward {
		type filter hook forward priority filter - 10; policy accept;
		ip saddr @forward4 meta mark set meta mark | 0x00020000 accept comment "from a pool #"
		ip daddr @forward4 meta mark set meta mark | 0x00020000 accept comment "to a pool #"
		ip6 saddr @forward6 meta mark set meta mark | 0x00020000 accept comment "from a pool, IPv6 #"
		ip6 daddr @forward6 meta mark set meta mark | 0x00020000 accept comment "to a pool, IPv6 #"
	}
}
`

// withoutSums takes the sums of the rules out of what nft shows.
func withoutSums(shown string) string {
	var b strings.Builder
	for i, part := range strings.Split(shown, " #") {
		if i > 0 {
			b.WriteString(" #")
			part = part[8:]
		}
		b.WriteString(part)
	}
	return b.String()
}

func TestApply(t *testing.T) {
	t.Parallel()
	forward := Ruleset{Forward: prefixes("10.5.0.0/16")}
	tests := []struct {
		name   string
		before string // a script
		want   Ruleset
		shows  string
		writes uint64
	}{
		{name: "nothing"},
		{name: "everything", want: all, shows: allShown, writes: 1},
		{name: "a part", want: forward, shows: forwardShown, writes: 1},
		{name: "another's table of that name", before: "nft 'add table inet underlay; add chain inet underlay forward; add rule inet underlay forward drop'", want: forward, shows: forwardShown, writes: 1},
		{name: "an earlier life's", before: "nft 'add table inet underlay; add chain inet underlay forward; add map inet underlay m { type ipv4_addr : verdict; }'", writes: 1},
		{name: "one of another family", before: "nft 'add table ip underlay'", want: forward, shows: forwardShown, writes: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.sh(t, "nft 'add table ip other; add chain ip other forward { type filter hook forward priority 0; policy drop; }'\n"+tt.before)
			others := s.sh(t, "nft list tables ip; nft list table ip other")
			r := s.reconciler(t, Config{})
			for _, time := range []string{"first", "second"} {
				must(t, r.Apply(t.Context(), tt.want))
				if diff := cmp.Diff(tt.shows, withoutSums(s.shows(t))); diff != "" {
					t.Errorf("the %s time (-want +got):\n%s", time, diff)
				}
			}
			if got := r.Counts().Written; got != tt.writes {
				t.Errorf("written %d times, want %d", got, tt.writes)
			}
			must(t, r.Apply(t.Context(), Ruleset{}))
			if got := s.shows(t); got != "" {
				t.Errorf("left behind:\n%s", got)
			}
			if diff := cmp.Diff(others, s.sh(t, "nft list tables ip; nft list table ip other")); diff != "" {
				t.Errorf("others' tables (-want +got):\n%s", diff)
			}
		})
	}
}

// Where only elements differ, only they are written: the rules stay the same
// ones, as their handles show.
func TestElementsAlone(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	r := s.reconciler(t, Config{})
	must(t, r.Apply(t.Context(), all))
	handles := func() string {
		return s.sh(t, "nft -a list table inet underlay | grep comment")
	}
	before := handles()
	want := all
	want.Forward = prefixes("10.5.0.0/17 10.4.0.0/14 2001:db8:5::/48") // one in the place of one that it holds
	want.Nodes = nil
	want.Ports = []uint16{8472}
	must(t, r.Apply(t.Context(), want))
	if diff := cmp.Diff(before, handles()); diff != "" {
		t.Errorf("rules (-before +after):\n%s", diff)
	}
	if got := s.shows(t); !strings.Contains(got, "elements = { 10.4.0.0/14 }") || strings.Contains(got, "4789") {
		t.Errorf("elements:\n%s", got)
	}
	want.Masquerade = nil // a chain less
	must(t, r.Apply(t.Context(), want))
	if got := s.shows(t); strings.Contains(got, "masquerade") {
		t.Errorf("still there:\n%s", got)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	f := NewFake()
	r, err := New(Config{Kernel: f})
	must(t, err)
	tests := []struct {
		name string
		want Ruleset
		err  string
	}{
		{"no prefix", Ruleset{Forward: []netip.Prefix{{}}}, "nftables: prefix invalid Prefix: malformed"},
		{"host bits", Ruleset{Masquerade: prefixes("10.5.0.1/16")}, "nftables: prefix 10.5.0.1/16: it is that of 10.5.0.0/16"},
		{"no address", Ruleset{Nodes: []netip.Addr{{}}}, "nftables: address invalid IP: malformed"},
		{"zone", Ruleset{VTEPs: addrs("fe80::1%eth0")}, "nftables: address fe80::1%eth0: malformed"},
		{"port", Ruleset{Ports: []uint16{0}}, "nftables: port 0: there is none"},
	}
	must(t, r.Apply(t.Context(), all))
	there := f.String()
	for _, tt := range tests {
		if err := r.Apply(t.Context(), tt.want); err == nil || err.Error() != tt.err {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.err)
		}
	}
	broken := errors.New("broken")
	f.Fail(broken)
	if err := r.Apply(t.Context(), Ruleset{}); !errors.Is(err, broken) || !errors.Is(r.Err(), broken) {
		t.Errorf("got %v, %v", err, r.Err())
	}
	if f.Fail(nil); f.String() != there {
		t.Errorf("the table has changed:\n%s", f.String())
	}
}

// Whatever others do to the table, it is back; what they do elsewhere is not
// looked at.
func TestRun(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, script string }{
		{"flushed", "nft flush ruleset"},
		{"deleted", "nft delete table inet underlay"},
		{"a chain is flushed", "nft flush chain inet underlay forward"},
		{"a chain is deleted", "nft flush chain inet underlay input; nft delete chain inet underlay input"},
		{"an element is deleted", "nft delete element inet underlay vteps4 { 192.0.2.1 }"},
		{"an element is added", "nft add element inet underlay vteps4 { 192.0.2.99 }"},
		{"a set is flushed", "nft flush set inet underlay forward4"},
		{"a rule is added", "nft insert rule inet underlay forward drop"},
		{"a map is added", "nft 'add map inet underlay m { type ipv4_addr : verdict; }'"},
		{"nftables.service", "nft 'flush ruleset; table inet filter { chain input { type filter hook input priority 0; }; }'"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			r := s.reconciler(t, Config{Retry: time.Hour, MaxRetry: time.Hour, Resync: time.Hour})
			run(t, r)
			must(t, r.Apply(t.Context(), all))
			s.sh(t, tt.script)
			waitFor(t, "the table", func() bool { return withoutSums(s.shows(t)) == allShown })
			before, since := r.Counts(), time.Now()
			rest := func() bool {
				if now := r.Counts(); now != before {
					before, since = now, time.Now()
				}
				return time.Since(since) > time.Second // more than Run leaves to others
			}
			waitFor(t, "rest", rest)
			there := before
			s.sh(t, "nft 'add table ip other; add chain ip other c; add rule ip other c drop; delete table ip other'")
			waitFor(t, "rest", rest)
			if before != there {
				t.Errorf("it looks when others change: %+v, %+v", there, before)
			}
		})
	}
}

// Whatever is wanted after whatever, and whatever others did: it is there, and
// kernel and fake are the same.
func TestRandom(t *testing.T) {
	t.Parallel()
	pick := func(t *rapid.T, name, from string) string {
		return strings.Join(rapid.SliceOfNDistinct(rapid.SampledFrom(strings.Fields(from)), 0, 4, rapid.ID).Draw(t, name), " ")
	}
	s, f := newSpace(t), NewFake()
	real := s.reconciler(t, Config{MaxRetry: 1})
	fake, err := New(Config{Kernel: f, MaxRetry: 1})
	must(t, err)
	kernel, err := openHost(s.ns)
	must(t, err)
	// One kernel for all runs: each begins with what the last one left.
	rapid.Check(t, func(rt *rapid.T) {
		const pools = "10.0.0.0/8 10.0.0.0/9 10.128.0.0/9 10.5.0.0/16 10.5.0.0/24 10.5.0.1/32 0.0.0.0/0 2001:db8::/32 2001:db8:1::/48 ::/0"
		const hosts = "192.0.2.1 192.0.2.2 2001:db8::1 ::ffff:192.0.2.3"
		want := Ruleset{
			Forward: prefixes(pick(rt, "forward", pools)), Unopposed: rapid.Bool().Draw(rt, "unopposed"), Masquerade: prefixes(pick(rt, "masquerade", pools)),
			Nodes: addrs(pick(rt, "nodes", hosts)), VTEPs: addrs(pick(rt, "vteps", hosts)),
			Ports: rapid.SliceOfN(rapid.SampledFrom([]uint16{1, 8472, 65535}), 0, 3).Draw(rt, "ports"),
		}
		if rapid.IntRange(0, 3).Draw(rt, "flush") == 0 {
			s.sh(t, "nft flush ruleset")
			must(t, f.Flush())
		}
		must(t, real.Apply(t.Context(), want))
		must(t, fake.Apply(t.Context(), want))
		there, err := kernel.List(t.Context())
		must(t, err)
		copied, err := f.List(t.Context())
		must(t, err)
		if diff := cmp.Diff(there, copied); diff != "" {
			rt.Fatalf("(-kernel +fake):\n%s", diff)
		}
		before := real.Counts().Written
		must(t, real.Apply(t.Context(), want))
		if after := real.Counts().Written; after != before {
			rt.Fatal("applied again, it writes")
		}
	})
}
