package ledger

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

// routedPool opens a ledger that leases a block of each family of a routed pool:
// 10.5.0.8/29 and 2001:db8::8/125.
func routedPool(t *testing.T) (*Ledger, Options) {
	t.Helper()
	o := testOptions(t, newClock())
	l := open(t, o)
	p := pool("pods", set(t, "10.5.0.0/24 10.5.0.0-10.5.0.255").Cut(29), set(t, "2001:db8::/64 2001:db8::-2001:db8::ffff:ffff").Cut(125))
	p.UUID = clusterUUID
	must(t, l.SetPools([]ipam.Pool{p}))
	must(t, l.Confirm())
	me, err := l.Node()
	must(t, err)
	for _, cidr := range []string{"10.5.0.8/29", "2001:db8::8/125"} {
		_, err := l.Learn(clusterUUID, lease.Seen{Block: lease.Block{CIDR: netip.MustParsePrefix(cidr), Owner: me}, Rev: 5}, true)
		must(t, err)
	}
	return l, o
}

func ofPods(id string, ask ...string) ipam.AllocateRequest {
	req := ipam.AllocateRequest{Attachment: att(id), Cluster: "pods"}
	for _, a := range ask {
		req.Addresses = append(req.Addresses, netip.MustParseAddr(a))
	}
	return req
}

// TestRouted: an address comes with its block and the gateway there, as the
// records say too, and what a block has to itself is given to nobody, by no way.
func TestRouted(t *testing.T) {
	t.Parallel()
	l, o := routedPool(t)
	var got []string
	give := func(id string, ask ...string) {
		t.Helper()
		a, err := l.Allocate(ofPods(id, ask...), nil)
		must(t, err)
		for _, x := range a.Addresses {
			got = append(got, fmt.Sprintf("%s via %s", x.Prefix, x.Gateway))
		}
	}
	give("a")
	give("b", "10.5.0.14", "2001:db8::f")
	want := []string{"10.5.0.10/29 via 10.5.0.9", "2001:db8::a/125 via 2001:db8::9", "10.5.0.14/29 via 10.5.0.9", "2001:db8::f/125 via 2001:db8::9"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("given (-want +got)\n%s", diff)
	}
	shut(t, l)
	l = open(t, o)
	for a, want := range map[string]string{
		"10.5.0.8":    "10.5.0.8 is the network address of block 10.5.0.8/29, whose gateway is 10.5.0.9",
		"10.5.0.9":    "10.5.0.9 is the gateway of block 10.5.0.8/29",
		"10.5.0.15":   "10.5.0.15 is the broadcast address of block 10.5.0.8/29, whose gateway is 10.5.0.9",
		"10.5.0.16":   "10.5.0.16 is the network address of block 10.5.0.16/29, whose gateway is 10.5.0.17", // not here, and nowhere
		"2001:db8::8": "2001:db8::8 is the subnet-router anycast address of block 2001:db8::8/125, whose gateway is 2001:db8::9",
		"2001:db8::9": "2001:db8::9 is the gateway of block 2001:db8::8/125",
	} {
		_, err := l.Allocate(ofPods("c", a), nil)
		if code(err) != ipam.CodeInvalidConfig || fmt.Sprint(err) != "ips[0]: "+want {
			t.Errorf("asked for: %v, want %s", err, want)
		}
		if _, err := l.Reserve("pods", netip.MustParseAddr(a), ""); fmt.Sprint(err) != "address: "+want {
			t.Errorf("to be reserved: %v, want %s", err, want)
		}
		if done, err := l.Quarantine(ipam.Pool{UUID: clusterUUID}.ID(), netip.MustParseAddr(a), "answered"); done || err != nil {
			t.Errorf("%s in quarantine: %v, %v", a, done, err)
		}
	}
	// All that rests comes back, also by way of the rest queue.
	for _, id := range []string{"c", "d", "e"} {
		give(id)
	}
	_, err := l.Allocate(ofPods("f"), nil)
	var full *ipam.ExhaustedError
	if want := (ipam.Counts{Usable: 32 * 5, Held: 5, Elsewhere: 31 * 5}); !errors.As(err, &full) || full.Counts != want || !strings.Contains(err.Error(), "of 160 usable it leases 5: 5 held") {
		t.Errorf("beyond the last: %v", err)
	}
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		del(t, l, id)
	}
	seen := map[string]bool{}
	got = nil
	for i := range 5 {
		give(fmt.Sprint("again", i))
	}
	for _, s := range got {
		a, _, _ := strings.Cut(s, "/")
		seen[a] = true
	}
	if len(seen) != 10 || seen["10.5.0.8"] || seen["10.5.0.9"] || seen["10.5.0.15"] || seen["2001:db8::8"] || seen["2001:db8::9"] {
		t.Errorf("given again: %v", got)
	}
}

// TestRoutedSpares: nor are they on offer to other nodes, or candidates.
func TestRoutedSpares(t *testing.T) {
	t.Parallel()
	l, _ := routedPool(t)
	var spare []string
	spares, err := l.Spares(clusterUUID, 100)
	must(t, err)
	for _, s := range spares {
		spare = append(spare, s.Address.String())
	}
	four := []string{"10.5.0.10", "10.5.0.11", "10.5.0.12", "10.5.0.13", "10.5.0.14"}
	six := []string{"2001:db8::a", "2001:db8::b", "2001:db8::c", "2001:db8::d", "2001:db8::e", "2001:db8::f"}
	if diff := cmp.Diff(append(four, six...), spare); diff != "" {
		t.Errorf("spares (-want +got)\n%s", diff)
	}
	next, err := l.Candidates(ipam.Pool{UUID: clusterUUID}.ID(), 100)
	must(t, err)
	if diff := cmp.Diff(spare, strings.Fields(strings.Trim(fmt.Sprint(next), "[]"))); diff != "" {
		t.Errorf("candidates (-want +got)\n%s", diff)
	}
}

// TestRoutedKeeps: what an attachment holds stays with it however often it asks,
// and is told with the same block.
func TestRoutedKeeps(t *testing.T) {
	t.Parallel()
	l, _ := routedPool(t)
	first, err := l.Allocate(ofPods("a"), nil)
	must(t, err)
	before := sequence(t, l)
	again, err := l.Allocate(ofPods("a"), nil)
	must(t, err)
	if fmt.Sprint(first.Addresses) != fmt.Sprint(again.Addresses) || !again.Known || sequence(t, l) != before {
		t.Errorf("%+v, then %+v", first, again)
	}
	rec, _, err := l.Record(netip.MustParseAddr("10.5.0.10"))
	must(t, err)
	if rec.Address.String() != "10.5.0.10/29" || rec.Gateway.String() != "10.5.0.9" {
		t.Errorf("on record: %s via %s", rec.Address, rec.Gateway)
	}
}
