package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// An address that somebody has who is not in the ledger rests in quarantine,
// and the next one is given out: another host on the wire, which answers, or a
// link on the same parent, which nobody can hear, but the kernel knows.
func TestIpvlanConflict(t *testing.T) {
	linktest.Need(t, "ipvlan")
	t.Parallel()
	// byHand makes a link that is in no ledger, with these addresses.
	byHand := func(addrs ...string) func(*testing.T, *bed) string {
		return func(t *testing.T, b *bed) string {
			t.Helper()
			n, _ := container(t, b.h1, "foreign")
			ip(t, b.h1.Namespace, "link add link eth1 name foreign type ipvlan mode l2 bridge", "link set foreign netns "+n.ID)
			lines := []string{"link set foreign up"}
			for _, a := range addrs {
				lines = append(lines, "addr add "+a+" dev foreign")
			}
			ip(t, n, lines...)
			return "another link"
		}
	}
	tests := []struct {
		name string
		conf keys
		args [][2]string
		// make gives somebody addresses of h1's range, and returns by what the
		// reason names it.
		make        func(t *testing.T, b *bed) string
		want        []string // addresses of c1
		quarantined []string
	}{
		{name: "host, IPv4", make: holds("192.0.2.10/24"), want: []string{"192.0.2.11", "2001:db8::11"}, quarantined: []string{"192.0.2.10"}},
		{name: "host, IPv6, then IPv4", make: holds("2001:db8::10/64", "192.0.2.11/24"),
			want: []string{"192.0.2.12", "2001:db8::12"}, quarantined: []string{"192.0.2.11", "2001:db8::10"}},
		{name: "host, requested", args: [][2]string{{"IP", "192.0.2.15"}}, make: holds("192.0.2.15/24"), quarantined: []string{"192.0.2.15"}},
		{name: "host, not asked", conf: keys{"conflictDetection": "off"}, make: holds("192.0.2.10/24", "2001:db8::10/64"), want: []string{"192.0.2.10", "2001:db8::10"}},
		{name: "host, thorough", conf: keys{"conflictDetection": "thorough"}, make: holds("192.0.2.10/24"),
			want: []string{"192.0.2.11", "2001:db8::11"}, quarantined: []string{"192.0.2.10"}},
		{name: "link, IPv4", make: byHand("192.0.2.10/24"), want: []string{"192.0.2.11", "2001:db8::11"}, quarantined: []string{"192.0.2.10"}},
		{name: "link, IPv6", make: byHand("2001:db8::10/64"), want: []string{"192.0.2.11", "2001:db8::11"}, quarantined: []string{"2001:db8::10"}},
		{name: "link, requested", args: [][2]string{{"IP", "2001:db8::15"}}, make: byHand("2001:db8::15/64"), quarantined: []string{"2001:db8::15"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			reason := test.make(t, b)
			c1, rt := container(t, b.h1, "c1")
			rt.Args = test.args
			before := remainsOf(t, b.h1, c1)
			conf := ipvlan(t, b.h1, "l2", "bridge", test.conf)
			result, err := b.h1.CNI(ours).Add(t.Context(), conf, rt)
			wantQuarantined(t, b.h1, reason, test.quarantined)
			if len(test.want) == 0 {
				wantError(t, err, codeConflict, test.quarantined...)
				wantUndone(t, before, remainsOf(t, b.h1, c1), test.quarantined...)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, addressesOf(result)); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		})
	}
}

// The same in l3, where only the kernel is asked: the links of one parent.
func TestIpvlanConflictL3(t *testing.T) {
	linktest.Need(t, "ipvlan")
	t.Parallel()
	h := oneHost(t)
	n, _ := container(t, h, "foreign")
	ip(t, h.Namespace, "link add link eth1 name foreign type ipvlan mode l3 private", "link set foreign netns "+n.ID)
	ip(t, n, "link set foreign up", "addr add 198.51.100.10/32 dev foreign")
	c1 := attach(t, h, "c1", ipvlan(t, h, "l3", "private", nil))
	if got := c1.addrs[0].String(); got != "198.51.100.11" {
		t.Errorf("address is %s", got)
	}
	wantQuarantined(t, h, "another link", []string{"198.51.100.10"})
}

// What a network believed of an address before the container had it is replaced.
func TestIpvlanAnnounced(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	for _, vlan := range []int{0, 100} {
		t.Run(fmt.Sprintf("vlan %d", vlan), func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			dev := "eth1"
			if vlan != 0 {
				dev = on100
				ip(t, b.h2.Namespace, "link add link eth1 name eth1.100 up type vlan id 100", "addr flush dev eth1",
					"addr add 192.0.2.2/24 dev eth1.100", "addr add 2001:db8::2/64 dev eth1.100 nodad")
			}
			for _, a := range []string{"192.0.2.10", "2001:db8::10"} {
				ip(t, b.h2.Namespace, "neigh replace "+a+" lladdr "+mac1+" nud reachable dev "+dev)
			}
			c1 := attach(t, b.h1, "c1", ipvlan(t, b.h1, "l2", "bridge", keys{"vlan": vlan}))
			for _, a := range c1.addrs {
				eventually(t, "h2 knows the container at "+a.String(), func() bool {
					return strings.Contains(mustDo(t, b.h2.Namespace, "ip", "neigh", "show", a.String(), "dev", dev), c1.mac)
				})
			}
			reaches(t, stationOn(t, b.h2, dev), c1.station)
		})
	}
}
