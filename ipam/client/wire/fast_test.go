package wire

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/underlay-cni/underlay/ipam"
)

// fill sets all fields below v to something; a type that it does not know is a
// reason to look at what EncodeRequest does with it.
func fill(t *rapid.T, v reflect.Value) {
	addr := func() netip.Addr {
		return netip.MustParseAddr(rapid.SampledFrom([]string{"192.0.2.1", "2001:db8::1", "255.255.255.255"}).Draw(t, "addr"))
	}
	switch v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf(addr()))
		return
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.PrefixFrom(addr(), rapid.IntRange(0, 32).Draw(t, "bits"))))
		return
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(rapid.Int64Range(1, 1<<34).Draw(t, "s"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC()))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(rapid.SampledFrom([]string{"plain", "a b", `"quoted\`, "<&>", "ünï\u2028", "\x00\x1f", "\xff"}).Draw(t, "string"))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.Int64Min(1).Draw(t, "int"))
	case reflect.Uint64:
		v.SetUint(rapid.Uint64Min(1).Draw(t, "uint"))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(1, 3).Draw(t, "len"), 3))
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	default:
		t.Fatalf("a field of type %s", v.Type())
	}
}

// TestFastRequest: what is written by hand is read as what encoding/json has
// written, whatever the fields are, and nothing is forgotten.
func TestFastRequest(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		q := &Request{Version: 1, Op: OpAllocate, Deadline: 5, DataDir: "/var", Allocate: &ipam.AllocateRequest{}}
		if rapid.Bool().Draw(t, "all") {
			fill(t, reflect.ValueOf(q.Allocate).Elem())
		}
		fast, err := EncodeRequest(q)
		if err != nil {
			t.Fatal(err)
		}
		slow, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		var got, want Request
		if err := json.Unmarshal(fast, &got); err != nil {
			t.Fatalf("%s: %v", fast, err)
		}
		if err := json.Unmarshal(slow, &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, equal); diff != "" {
			t.Fatalf("(-encoding/json +by hand):\n%s", diff)
		}
	})
}

// TestFastResponse: what is read by hand is what encoding/json reads, and most
// answers are.
func TestFastResponse(t *testing.T) {
	t.Parallel()
	byHand := 0
	rapid.Check(t, func(t *rapid.T) {
		a := Response{Version: 1, Allocation: &ipam.Allocation{
			MAC: rapid.SampledFrom([]string{"", "02:00:00:00:00:01", `"`}).Draw(t, "mac"), Known: rapid.Bool().Draw(t, "known")}}
		peers := rapid.Bool().Draw(t, "peers")
		if peers {
			a.Allocation.Peers = []ipam.AttachmentRecord{{Version: 1}}
		}
		for range rapid.IntRange(0, 2).Draw(t, "addresses") {
			x := ipam.Address{Prefix: netip.MustParsePrefix(rapid.SampledFrom([]string{"192.0.2.1/24", "2001:db8::1/64"}).Draw(t, "prefix"))}
			if rapid.Bool().Draw(t, "gateway") {
				x.Gateway = netip.MustParseAddr("192.0.2.254")
			}
			a.Allocation.Addresses = append(a.Allocation.Addresses, x)
		}
		plainRoutes := true
		for range rapid.IntRange(0, 2).Draw(t, "routes") {
			r := ipam.Route{Dst: netip.MustParsePrefix(rapid.SampledFrom([]string{"0.0.0.0/0", "2001:db8::/64"}).Draw(t, "dst"))}
			if rapid.Bool().Draw(t, "gw") {
				r.GW = netip.MustParseAddr("192.0.2.254")
			}
			if r.MTU = rapid.SampledFrom([]int{0, 0, 1400}).Draw(t, "mtu"); r.MTU != 0 {
				plainRoutes = false
			}
			a.Allocation.Routes = append(a.Allocation.Routes, r)
		}
		line, err := Encode(a)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := allocated(string(line))
		if plain := !peers && plainRoutes && a.Allocation.MAC != `"`; ok != plain {
			t.Fatalf("%s: read by hand: %v", line, ok)
		}
		if !ok {
			return
		}
		byHand++
		var want Response
		if err := json.Unmarshal(line, &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&want, got, equal); diff != "" {
			t.Fatalf("%s (-encoding/json +by hand):\n%s", line, diff)
		}
	})
	if byHand == 0 {
		t.Error("nothing was read by hand")
	}
}

// FuzzFastResponse: whatever is read by hand encoding/json reads the same way.
func FuzzFastResponse(f *testing.F) {
	f.Add(`{"v":1,"allocation":{"addresses":[{"prefix":"192.0.2.1/24","gateway":"192.0.2.254"}],"mac":"02:00:00:00:00:01","known":true}}` + "\n")
	f.Add(`{"v":1,"allocation":{"routes":[{"dst":"0.0.0.0/0","gw":"192.0.2.254"},{"dst":"::/0"}],"mac":"02:00:00:00:00:01"}}` + "\n")
	f.Add(`{"v":1,"allocation":{}}`)
	f.Fuzz(func(t *testing.T, line string) {
		got, ok := allocated(line)
		if !ok || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\n' || r > '~' }) {
			return
		}
		var want Response
		if err := json.Unmarshal([]byte(line), &want); err != nil {
			return // it is lenient with what no agent writes
		}
		if diff := cmp.Diff(&want, got, equal); diff != "" {
			t.Errorf("%s (-encoding/json +by hand):\n%s", line, diff)
		}
	})
}
