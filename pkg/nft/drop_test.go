package nft

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDrops(t *testing.T) {
	t.Parallel()
	const fw = "nft 'add table inet fw; add chain inet fw f1 { type filter hook forward priority 0; policy drop; }'"
	tests := []struct {
		name   string
		script string
		want   []string
	}{
		{name: "nothing"},
		{name: "accepting", script: "iptables-nft -P FORWARD ACCEPT; iptables-nft -P INPUT DROP"},
		{
			name: "Docker", script: "iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; iptables-nft -I FORWARD -j DOCKER-USER",
			want: []string{"ip filter FORWARD (nft) drops what our table accepts; run: iptables-nft -I DOCKER-USER -m mark --mark 0x20000/0x20000 -j ACCEPT"},
		},
		{
			name: "IPv6, and no Docker", script: "ip6tables-nft -P FORWARD DROP",
			want: []string{"ip6 filter FORWARD (nft) drops what our table accepts; run: ip6tables-nft -I FORWARD -m mark --mark 0x20000/0x20000 -j ACCEPT"},
		},
		{
			name: "nftables", script: fw,
			want: []string{"inet fw f1 (nft) drops what our table accepts; run: nft insert rule inet fw f1 meta mark and 0x20000 != 0 accept"},
		},
		{
			name: "both", script: "iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER\n" + fw,
			want: []string{
				"ip filter FORWARD (nft) drops what our table accepts; run: iptables-nft -I DOCKER-USER -m mark --mark 0x20000/0x20000 -j ACCEPT",
				"inet fw f1 (nft) drops what our table accepts; run: nft insert rule inet fw f1 meta mark and 0x20000 != 0 accept",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.sh(t, tt.script)
			r := s.reconciler(t, Config{})
			must(t, r.Apply(t.Context(), all)) // ours is not in the way
			if diff := cmp.Diff(tt.want, s.drops(t)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			found, err := Drops(t.Context(), s.ns)
			must(t, err)
			for range 2 { // the second time it passes already
				for _, d := range found {
					must(t, d.Fix(t.Context(), s.ns))
				}
				if found, err = Drops(t.Context(), s.ns); err != nil || len(found) != len(tt.want) {
					t.Errorf("after the command: %v, %v", found, err)
				}
				for _, d := range found {
					if !d.Passes || d.String() != d.Chain+" drops by default, and lets marked packets pass" {
						t.Errorf("after the command: %s", d)
					}
				}
			}
			if got := strings.Count(s.sh(t, "nft list ruleset"), "accept\n"); got != len(tt.want) {
				t.Errorf("%d rules that accept, want %d", got, len(tt.want))
			}
		})
	}
}

// drops is what Drops says.
func (s space) drops(t testing.TB) []string {
	t.Helper()
	found, err := Drops(t.Context(), s.ns)
	must(t, err)
	var out []string
	for _, d := range found {
		out = append(out, d.String())
	}
	return out
}

// What nft says is read, or it is an error.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"nftables": [{"table": {"name": "underlay"}}, {"set": {"name": "forward4", "elem": [{"prefix": {"addr": "10.0.0.0", "len": 8}}, "192.0.2.1", 8472, {"range": ["a", "b"]}]}},
		{"chain": {"name": "forward"}}, {"rule": {"chain": "forward", "comment": "x #1"}}, {"map": {"name": "m"}}]}`))
	f.Fuzz(func(t *testing.T, listing []byte) {
		c, err := parseTable(listing)
		if err != nil {
			return
		}
		// Whatever it is, it can be compared with what is wanted.
		_, elements := c.table().split()
		if len(elements) == 0 && c.table() == all.table() {
			t.Errorf("%q is everything", listing)
		}
	})
}

func TestDropsWithoutNft(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Drops(t.Context(), nil); err == nil || !strings.HasPrefix(err.Error(), "find what drops: nft") {
		t.Errorf("got %v", err)
	}
	if _, err := New(Config{}); err == nil || !strings.HasPrefix(err.Error(), "nftables: ") {
		t.Errorf("got %v", err)
	}
	if err := (Drop{Command: []string{"iptables-nft"}}).Fix(t.Context(), nil); err == nil || errors.Unwrap(err) == nil {
		t.Errorf("got %v", err)
	}
}
