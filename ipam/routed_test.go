package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// cut loads a range set of a routed pool.
func cut(t *testing.T, bits int, ranges ...string) RangeSet {
	t.Helper()
	var raws []json.RawMessage
	for _, r := range ranges {
		raws = append(raws, json.RawMessage(r))
	}
	sets, err := LoadRanges([][]json.RawMessage{raws}, true)
	if err != nil {
		t.Fatal(err)
	}
	return sets[0].Cut(bits)
}

// TestCut: of each block its first address, the gateway after that and, of IPv4,
// the last one are given to nobody. All ways to count and to find agree on that.
func TestCut(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		bits   int
		ranges []string
		within string   // where to look
		want   []string // what is given out there
	}{
		{"one block", 29, []string{`{"subnet":"10.5.0.0/29"}`}, "10.5.0.0/28", []string{"10.5.0.2", "10.5.0.3", "10.5.0.4", "10.5.0.5", "10.5.0.6"}},
		{"the smallest", 30, []string{`{"subnet":"10.5.0.0/28"}`}, "10.5.0.0/28", []string{"10.5.0.2", "10.5.0.6", "10.5.0.10", "10.5.0.14"}},
		{"the smallest of IPv6", 126, []string{`{"subnet":"fd00::/125"}`}, "fd00::/124", []string{"fd00::2", "fd00::3", "fd00::6", "fd00::7"}},
		{"from the middle of a block to that of another", 29, []string{`{"subnet":"10.5.0.0/24","rangeStart":"10.5.0.5","rangeEnd":"10.5.0.18"}`}, "10.5.0.0/24",
			[]string{"10.5.0.5", "10.5.0.6", "10.5.0.10", "10.5.0.11", "10.5.0.12", "10.5.0.13", "10.5.0.14", "10.5.0.18"}},
		{"less exclusions over the edge of blocks", 29, []string{`{"subnet":"10.5.0.0/28","exclude":["10.5.0.4-10.5.0.11","10.5.0.2"]}`}, "10.5.0.0/28",
			[]string{"10.5.0.3", "10.5.0.12", "10.5.0.13", "10.5.0.14"}},
		{"less a whole block", 29, []string{`{"subnet":"10.5.0.0/28","exclude":["10.5.0.0/29"]}`}, "10.5.0.0/28",
			[]string{"10.5.0.10", "10.5.0.11", "10.5.0.12", "10.5.0.13", "10.5.0.14"}},
		{"two ranges of a block", 28, []string{`{"subnet":"10.5.0.0/24","rangeEnd":"10.5.0.3"}`, `{"subnet":"10.5.0.0/24","rangeStart":"10.5.0.13","rangeEnd":"10.5.0.18"}`}, "10.5.0.0/24",
			[]string{"10.5.0.2", "10.5.0.3", "10.5.0.13", "10.5.0.14", "10.5.0.18"}},
		{"the end of the address space", 30, []string{`{"subnet":"255.255.255.248/29"}`}, "255.255.255.248/29", []string{"255.255.255.250", "255.255.255.254"}},
		{"part of a large one", 122, []string{`{"subnet":"fd00::/64"}`}, "fd00::1:0/126", []string{"fd00::1:2", "fd00::1:3"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			set, within := cut(t, tt.bits, tt.ranges...), netip.MustParsePrefix(tt.within)
			var usable, next []string
			for a := within.Addr(); within.Contains(a); a = a.Next() {
				r, ok := set.Find(a)
				if !ok {
					continue
				}
				usable = append(usable, a.String())
				block := netip.PrefixFrom(a, tt.bits).Masked()
				if want := (Address{Prefix: netip.PrefixFrom(a, tt.bits), Gateway: block.Addr().Next()}); r.Address(a) != want {
					t.Errorf("%s is %v, want %v", a, r.Address(a), want)
				}
			}
			if diff := cmp.Diff(tt.want, usable); diff != "" {
				t.Errorf("usable (-want +got)\n%s", diff)
			}
			after := within.Addr().Prev()
			if !set[0].Contains(after) {
				after = netip.Addr{}
			}
			for range tt.want {
				a, _, ok := set.Next(after, func(a netip.Addr) (netip.Addr, bool) { return a, false })
				if !ok {
					break
				}
				after, next = a, append(next, a.String())
			}
			if diff := cmp.Diff(tt.want, next); diff != "" {
				t.Errorf("one after the other (-want +got)\n%s", diff)
			}
			if n := set.Within(within); n != uint64(len(tt.want)) {
				t.Errorf("counted %d, want %d", n, len(tt.want))
			}
			if n := set.Size(); n < math.MaxInt64 && n != uint64(len(tt.want)) {
				t.Errorf("%d in all, want %d", n, len(tt.want))
			}
		})
	}
}

// TestCutSize: large ranges are counted without looking at each address.
func TestCutSize(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		bits  int
		rng   string
		sized uint64
	}{
		{26, `{"subnet":"10.0.0.0/8"}`, 1 << 18 * 61},
		{26, `{"subnet":"10.0.0.0/8","exclude":["10.128.0.0/9","10.0.0.2"]}`, 1<<17*61 - 1},
		{122, `{"subnet":"fd00::/104"}`, 1 << 18 * 62},
		{122, `{"subnet":"fd00::/48"}`, math.MaxInt64},
	} {
		if n := cut(t, tt.bits, tt.rng).Size(); n != tt.sized {
			t.Errorf("%s in /%d: %d, want %d", tt.rng, tt.bits, n, tt.sized)
		}
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	pods := Pool{Name: "pods", Sets: []RangeSet{cut(t, 26, `{"subnet":"10.5.0.0/16","rangeStart":"10.5.1.0","exclude":["10.5.7.7"]}`), cut(t, 122, `{"subnet":"fd00::/64"}`)}}
	for a, want := range map[string]string{
		"10.5.1.64":  "the network address of block 10.5.1.64/26, whose gateway is 10.5.1.65",
		"10.5.1.65":  "the gateway of block 10.5.1.64/26",
		"10.5.1.127": "the broadcast address of block 10.5.1.64/26, whose gateway is 10.5.1.65",
		"10.5.7.7":   "excluded from 10.5.1.0-10.5.255.254",
		"fd00::40":   "the subnet-router anycast address of block fd00::40/122, whose gateway is fd00::41",
		"fd00::41":   "the gateway of block fd00::40/122",
		"10.6.0.5":   `outside of the ranges of pool "pods"`,
		"10.5.0.5":   `outside of the ranges of pool "pods"`,
	} {
		if got := pods.Refusal(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s is %s, want %s", a, got, want)
		}
	}
	lan := Pool{Name: "lan", Sets: []RangeSet{mustLoad(t, `{"subnet":"10.5.0.0/24"}`)}}
	if got := lan.Refusal(netip.MustParseAddr("10.5.0.1")); got != "the gateway of 10.5.0.0/24" {
		t.Errorf("the gateway of a link is %s", got)
	}
}

// TestRoutedGateway: a range of a routed pool has none of its own, not even one
// that it keeps from containers.
func TestRoutedGateway(t *testing.T) {
	t.Parallel()
	raw := func(s string) [][]json.RawMessage { return [][]json.RawMessage{{json.RawMessage(s)}} }
	_, err := LoadRanges(raw(`{"subnet":"10.5.0.0/16","gateway":"10.5.0.1"}`), true)
	var field *FieldError
	if !errors.As(err, &field) || field.Place != "ranges[0][0].gateway" || !strings.Contains(fmt.Sprint(err), "leave it out") {
		t.Errorf("a gateway: %v", err)
	}
	sets, err := LoadRanges(raw(`{"subnet":"10.5.0.0/16"}`), true)
	if err != nil || sets[0][0].Gateway.IsValid() || len(sets[0][0].Exclude) > 0 {
		t.Errorf("without: %+v, %v", sets, err)
	}
}
