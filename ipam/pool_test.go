package ipam

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"
)

func mustLoad(t *testing.T, object string) RangeSet {
	t.Helper()
	c, err := Load(json.RawMessage(object), "net", nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.Pool.Sets[0]
}

// TestNext walks sets whose addresses are taken one by one: each comes once,
// in the order of the set from the cursor on, and then none.
func TestNext(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, object, after, first, last string }{
		{"from the beginning", `{"subnet":"10.0.0.0/28","exclude":["10.0.0.3-10.0.0.5"]}`, "", "10.0.0.2", "10.0.0.14"},
		{"from the cursor round", `{"subnet":"10.0.0.0/28"}`, "10.0.0.9", "10.0.0.10", "10.0.0.9"},
		{"cursor at the end", `{"subnet":"10.0.0.0/28"}`, "10.0.0.14", "10.0.0.2", "10.0.0.14"},
		{"over two ranges", `{"ranges":[[{"subnet":"10.0.0.0/29"},{"subnet":"10.0.1.0/29"}]]}`, "10.0.1.2", "10.0.1.3", "10.0.1.2"},
		{"cursor of another subnet", `{"subnet":"10.0.0.0/28"}`, "10.9.9.9", "10.0.0.2", "10.0.0.14"},
		{"top of the address space", `{"subnet":"255.255.255.254/31"}`, "255.255.255.254", "255.255.255.255", "255.255.255.254"},
		{"IPv6", `{"subnet":"fd00::/125"}`, "fd00::4", "fd00::5", "fd00::4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			set := mustLoad(t, tt.object)
			taken := map[netip.Addr]bool{}
			steps := 0
			run := func(a netip.Addr) (netip.Addr, bool) {
				if steps++; steps > 10000 {
					t.Fatal("the search does not end")
				}
				end := a
				for taken[end.Next()] {
					end = end.Next()
				}
				return end, taken[a]
			}
			after, _ := netip.ParseAddr(tt.after)
			var got []netip.Addr
			for {
				a, r, ok := set.Next(after, run)
				if !ok {
					break
				}
				if taken[a] || !r.Usable(a) {
					t.Fatalf("%s is taken or not usable", a)
				}
				taken[a], after = true, a
				got = append(got, a)
			}
			if uint64(len(got)) != set.Size() {
				t.Fatalf("%d addresses of %d: %v", len(got), set.Size(), got)
			}
			if got[0].String() != tt.first || got[len(got)-1].String() != tt.last {
				t.Errorf("from %s to %s, want %s to %s", got[0], got[len(got)-1], tt.first, tt.last)
			}
		})
	}
}

func TestDeriveMAC(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, network := range []string{"red", "blue"} {
		a := netip.MustParseAddr("10.0.0.0")
		for range 2000 {
			mac, err := DeriveMAC("02:42:ac", network, "node", a)
			if err != nil {
				t.Fatal(err)
			}
			if mac[:8] != "02:42:ac" {
				t.Fatalf("%s does not begin with the prefix", mac)
			}
			if o := seen[network+mac]; o != "" {
				t.Fatalf("%s of %s and %s of %s", mac, a, o, network)
			}
			seen[network+mac] = a.String()
			a = a.Next()
		}
	}
	one, _ := DeriveMAC("02", "red", "node", netip.MustParseAddr("10.0.0.1"))
	again, _ := DeriveMAC("02", "red", "node", netip.MustParseAddr("10.0.0.1"))
	other, _ := DeriveMAC("02", "blue", "node", netip.MustParseAddr("10.0.0.1"))
	elsewhere, _ := DeriveMAC("02", "red", "another node", netip.MustParseAddr("10.0.0.1"))
	if one != again || one == other || one == elsewhere {
		t.Errorf("red %s, red again %s, blue %s, red elsewhere %s", one, again, other, elsewhere)
	}
	for _, bad := range []string{"", "2", "02:", "03", "02:00:00:00:00:00", "zz", "+2"} {
		if mac, err := DeriveMAC(bad, "red", "node", netip.MustParseAddr("10.0.0.1")); err == nil {
			t.Errorf("prefix %q accepted: %s", bad, mac)
		}
	}
}

func TestRecordOver(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	tests := []struct {
		name  string
		state State
		since time.Duration
		until time.Duration
		want  bool
	}{
		{"cooling still", Cooling, -time.Second, time.Second, false},
		{"cooling over", Cooling, -time.Minute, 0, true},
		{"clock set back by less than it lasts", Quarantined, time.Hour, 2 * time.Hour, false},
		{"clock set back by more", Quarantined, time.Hour, 90 * time.Minute, true},
		{"clock corrected by a moment", Cooling, time.Millisecond, time.Hour, false},
		{"held never ends", Held, -time.Hour, -time.Minute, false},
		{"reserved never ends", Reserved, -time.Hour, -time.Minute, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := Record{State: tt.state, Since: now.Add(tt.since), Until: now.Add(tt.until)}
			if got := r.Over(now); got != tt.want {
				t.Errorf("Over: %v", got)
			}
		})
	}
}
