package e2e_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam"
)

// hear captures what the other host has on the wire.
func hear(t *testing.T, b *bed) *lab.Capture {
	t.Helper()
	c, err := b.h2.Capture(t.Context(), lab.Parent)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// heard waits for a frame, as Frame.String has it.
func heard(t *testing.T, c *lab.Capture, want string) lab.Frame {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	f, err := c.Wait(ctx, func(f lab.Frame) bool { return f.String() == want })
	if err != nil {
		t.Fatalf("%q: %v", want, err)
	}
	return f
}

// After ADD the network hears of the addresses: gratuitous ARP in both forms,
// for there are hosts that heed only one of them, and an unsolicited neighbour
// advertisement that overrides (RFC 5227 2.3, RFC 5944 4.6, RFC 4861 7.2.6).
func TestWireAnnouncements(t *testing.T) {
	t.Parallel()
	for _, detection := range []string{"fast", "off"} {
		t.Run(detection, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			wire := hear(t, b)
			c1 := attach(t, b.h1, "c1", lan(t, b.h1, keys{"conflictDetection": detection}))
			v4, v6 := c1.addrs[0], c1.addrs[1]
			const everyone, allNodes = "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"

			request := heard(t, wire, fmt.Sprintf("%s > %s: arp who-has %s tell %s", c1.mac, everyone, v4, v4))
			reply := heard(t, wire, fmt.Sprintf("%s > %s: arp reply %s is-at %s", c1.mac, everyone, v4, c1.mac))
			advertisement := heard(t, wire, fmt.Sprintf("%s > %s: %s > ff02::1: icmp6 adv %s", c1.mac, allNodes, v6, v6))

			// Hardware type, protocol type, lengths, operation; sender; target.
			own := c1.mac + " " + v4.String()
			wantFields(t, "request", arpFields(request), "0001080006040001", own, "00:00:00:00:00:00 "+v4.String())
			wantFields(t, "reply", arpFields(reply), "0001080006040002", own, own)
			// Hop limit; type, code; flags: not a router's, unsolicited, override;
			// the option target link-layer address; the sum over all comes out 0.
			p := advertisement.Payload()
			got := []string{fmt.Sprint(p[7]), fmt.Sprintf("%x", p[40:42]), fmt.Sprintf("%x", p[44:48]), fmt.Sprintf("%x", p[64:]), fmt.Sprint(icmp6Sum(p))}
			wantFields(t, "advertisement", got, "255", "8800", "20000000", "0201"+strings.ReplaceAll(c1.mac, ":", ""), "0")

			// A question leaves before the claim, or none at all.
			probe := slices.IndexFunc(wire.Frames(), func(f lab.Frame) bool {
				return strings.HasSuffix(f.String(), fmt.Sprintf("arp who-has %s tell 0.0.0.0", v4))
			})
			claim := slices.IndexFunc(wire.Frames(), func(f lab.Frame) bool { return f.String() == request.String() })
			if asked := probe >= 0 && probe < claim; asked != (detection == "fast") {
				t.Errorf("probe is frame %d, request %d", probe, claim)
			}
		})
	}
}

func arpFields(f lab.Frame) []string {
	p := f.Payload()
	who := func(at int) string {
		addr, _ := netip.AddrFromSlice(p[at+6 : at+10])
		return net.HardwareAddr(p[at:at+6]).String() + " " + addr.String()
	}
	return []string{fmt.Sprintf("%x", p[:8]), who(8), who(18)}
}

func wantFields(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields of the %s (-want +got):\n%s", what, diff)
	}
}

// icmp6Sum is the checksum over an IPv6 packet with its pseudo header (RFC
// 8200, 8.1): 0 if what the packet carries is right.
func icmp6Sum(packet []byte) uint16 {
	body := packet[40:]
	sum := uint32(len(body)) + 58
	for part := slices.Concat(packet[8:40], body); len(part) > 1; part = part[2:] {
		sum += uint32(binary.BigEndian.Uint16(part))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// What a neighbour believed of an address before the container had it is
// replaced, whatever the state of the belief.
func TestWireReplacesNeighbours(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"reachable", "stale"} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			for _, a := range []string{"192.0.2.10", "2001:db8::10"} {
				mustDo(t, b.h2.Namespace, "ip", "neigh", "replace", a, "lladdr", mac1, "nud", state, "dev", lab.Parent)
			}
			c1 := attach(t, b.h1, "c1", lan(t, b.h1, nil))
			for _, a := range c1.addrs {
				eventually(t, "h2 knows the container at "+a.String(), func() bool {
					return strings.Contains(mustDo(t, b.h2.Namespace, "ip", "neigh", "show", a.String(), "dev", lab.Parent), c1.mac)
				})
			}
			reaches(t, hostStation(t, b.h2), c1.station)
		})
	}
}

// holds gives h2 addresses, and returns its MAC.
func holds(addrs ...string) func(*testing.T, *bed) string {
	return func(t *testing.T, b *bed) string {
		t.Helper()
		for _, a := range addrs {
			mustDo(t, b.h2.Namespace, "ip", "addr", "add", a, "dev", lab.Parent, "nodad")
		}
		return mustLink(t, b.h2.Namespace, lab.Parent).MAC
	}
}

// siblingHolds gives a container on h1 addresses that nobody gave it.
func siblingHolds(addrs ...string) func(*testing.T, *bed) string {
	return func(t *testing.T, b *bed) string {
		t.Helper()
		c0 := attach(t, b.h1, "c0", lan(t, b.h1, nil))
		for _, a := range addrs {
			mustDo(t, c0.Namespace, "ip", "addr", "add", a, "dev", "eth0", "nodad")
		}
		return c0.mac
	}
}

// An address that somebody has who is not in the ledger rests in quarantine,
// and the next one is given out. It is an error where the address was asked
// for.
func TestWireConflict(t *testing.T) {
	t.Parallel()
	off, thorough := keys{"conflictDetection": "off"}, keys{"conflictDetection": "thorough"}
	const least = 3 * time.Second // RFC 5227: twice one second from probe to probe, and two after the last
	tests := []struct {
		name string
		conf keys
		args [][2]string
		// make gives somebody addresses of h1's range, and returns its MAC.
		make        func(t *testing.T, b *bed) string
		want        []string // addresses of c1
		quarantined []string
		least       time.Duration // that ADD takes
	}{
		{name: "nobody", make: holds(), want: []string{"192.0.2.10", "2001:db8::10"}},
		{name: "IPv4", make: holds("192.0.2.10/24"), want: []string{"192.0.2.11", "2001:db8::11"}, quarantined: []string{"192.0.2.10"}},
		{name: "IPv6", make: holds("2001:db8::10/64"), want: []string{"192.0.2.11", "2001:db8::11"}, quarantined: []string{"2001:db8::10"}},
		{name: "one after the other", make: holds("192.0.2.10/24", "192.0.2.11/24", "2001:db8::12/64"),
			want: []string{"192.0.2.13", "2001:db8::13"}, quarantined: []string{"192.0.2.10", "192.0.2.11", "2001:db8::12"}},
		{name: "sibling", make: siblingHolds("192.0.2.11/24", "2001:db8::12/64"),
			want: []string{"192.0.2.13", "2001:db8::13"}, quarantined: []string{"192.0.2.11", "2001:db8::12"}},
		{name: "source mode, which hears nobody", conf: keys{"mode": "source"}, make: holds("192.0.2.10/24", "2001:db8::11/64"),
			want: []string{"192.0.2.12", "2001:db8::12"}, quarantined: []string{"192.0.2.10", "2001:db8::11"}},
		{name: "off", conf: off, make: holds("192.0.2.10/24", "2001:db8::10/64"), want: []string{"192.0.2.10", "2001:db8::10"}},
		{name: "requested IPv4", args: [][2]string{{"IP", "192.0.2.15"}}, make: holds("192.0.2.15/24"), quarantined: []string{"192.0.2.15"}},
		{name: "requested IPv6", args: [][2]string{{"IP", "2001:db8::15"}}, make: holds("2001:db8::15/64"), quarantined: []string{"2001:db8::15"}},
		{name: "requested, off", conf: off, args: [][2]string{{"IP", "192.0.2.15"}}, make: holds("192.0.2.15/24"), want: []string{"192.0.2.15", "2001:db8::10"}},
		{name: "thorough, nobody", conf: thorough, make: holds(), want: []string{"192.0.2.10", "2001:db8::10"}, least: least},
		{name: "thorough", conf: thorough, make: holds("192.0.2.10/24"),
			want: []string{"192.0.2.11", "2001:db8::11"}, quarantined: []string{"192.0.2.10"}, least: least},
		{name: "thorough, requested", conf: thorough, args: [][2]string{{"IP", "2001:db8::15"}}, make: holds("2001:db8::15/64"), quarantined: []string{"2001:db8::15"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			mac := test.make(t, b)
			c1, rt := container(t, b.h1, "c1")
			rt.Args = test.args
			before := remainsOf(t, b.h1, c1)

			began := time.Now()
			result, err := b.h1.CNI(ours).Add(t.Context(), lan(t, b.h1, test.conf), rt)
			took := time.Since(began)
			after := remainsOf(t, b.h1, c1)
			if took < test.least {
				t.Errorf("ADD took %v, want %v at least", took, test.least)
			}
			wantQuarantined(t, b.h1, mac, test.quarantined)
			if len(test.want) == 0 {
				wantError(t, err, codeConflict, test.quarantined...)
				wantUndone(t, before, after, test.quarantined...)
			} else if err != nil {
				t.Error(err)
			} else if diff := cmp.Diff(test.want, addressesOf(result)); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		})
	}
}

// Two hosts that give out the same addresses, since their ledgers know nothing
// of each other, find out on the wire, and their MACs are not the same.
func TestWireSameRanges(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	// Children hear a broadcast when their parent's queue gets its turn, which on
	// a busy machine is too late for fast detection.
	conf := lan(t, b.h1, keys{"conflictDetection": "thorough"})
	c1, c2 := attach(t, b.h1, "c1", conf), attach(t, b.h2, "c2", conf)
	got := [][]string{texts(c1.addrs), texts(c2.addrs)}
	want := [][]string{{"192.0.2.10", "2001:db8::10"}, {"192.0.2.11", "2001:db8::11"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	meet(t, c1.station, c2.station)
}

// addressesOf a result, without lengths.
func addressesOf(result *current.Result) (addrs []string) {
	for _, ip := range result.IPs {
		addrs = append(addrs, ip.Address.IP.String())
	}
	return addrs
}

// wantQuarantined: these and no other addresses are in quarantine, as the
// command line shows, because of this MAC.
func wantQuarantined(t *testing.T, h *lab.Host, mac string, want []string) {
	t.Helper()
	list := []string{filepath.Join(ours, "underlayctl"), "--data-dir", h.DataDir, "--run-dir", h.RunDir, "address", "list", "--state", "quarantined"}
	table := mustDo(t, h.Namespace, list...)
	var recs []ipam.Record
	if err := json.Unmarshal([]byte(mustDo(t, h.Namespace, append(list, "-o", "json")...)), &recs); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range recs {
		got = append(got, r.Address.Addr().String())
		if !strings.Contains(r.Reason, mac) {
			t.Errorf("%s is quarantined because %q, which does not name %s", r.Address, r.Reason, mac)
		}
		if !r.Until.After(time.Now()) {
			t.Errorf("%s is quarantined until %v", r.Address, r.Until)
		}
		if !strings.Contains(table, r.Address.String()) || !strings.Contains(table, "quarantined") {
			t.Errorf("the table does not show %s:\n%s", r.Address, table)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("quarantined (-want +got):\n%s", diff)
	}
}

// Where all addresses are in use by others ADD gives up, sooner or later.
func TestWireAllInUse(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		size  int
		tried int // before ADD gives up
		code  uint
		texts []string
	}{
		{name: "small pool", size: 3, tried: 3, code: codeTryAgain, texts: []string{`"lan"`, "3 usable, 0 held, 0 cooling, 3 quarantined"}},
		{name: "large pool", size: 40, tried: 16, code: codeTryAgain, texts: []string{`"lan"`, "16 addresses", "192.0.2.115", "in use"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			var prefixes, addrs []string
			for i := range test.size {
				addrs = append(addrs, fmt.Sprintf("192.0.2.%d", 100+i))
				prefixes = append(prefixes, addrs[i]+"/24")
			}
			mac := holds(prefixes...)(t, b)
			c1, rt := container(t, b.h1, "c1")
			before := remainsOf(t, b.h1, c1)
			conf := lan(t, b.h1, subnet(fmt.Sprintf(`"rangeStart": %q, "rangeEnd": %q`, addrs[0], addrs[test.size-1])))
			_, err := b.h1.CNI(ours).Add(t.Context(), conf, rt)
			wantError(t, err, test.code, test.texts...)
			wantQuarantined(t, b.h1, mac, addrs[:test.tried])
			wantUndone(t, before, remainsOf(t, b.h1, c1), addrs[:test.tried]...)
		})
	}
}

// Thorough detection also hears who takes the address a while after the first
// question.
func TestWireThoroughHearsLate(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"192.0.2.10/24", "2001:db8::10/64"} {
		t.Run(prefix, func(t *testing.T) {
			t.Parallel()
			b, late := newBed(t), netip.MustParsePrefix(prefix).Addr().String()
			wire := hear(t, b)
			_, rt := container(t, b.h1, "c1")
			conf := lan(t, b.h1, keys{"conflictDetection": "thorough"})
			type answer struct {
				result *current.Result
				err    error
			}
			answers := make(chan answer)
			go func() {
				result, err := b.h1.CNI(ours).Add(t.Context(), conf, rt)
				answers <- answer{result, err}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			_, err := wire.Wait(ctx, func(f lab.Frame) bool { return strings.Contains(f.String(), "who-has "+late) })
			if err != nil {
				t.Error(err)
			}
			mac := holds(prefix)(t, b)
			got := <-answers
			if got.err != nil {
				t.Fatal(got.err)
			}
			wantQuarantined(t, b.h1, mac, []string{late})
			if diff := cmp.Diff([]string{"192.0.2.11", "2001:db8::11"}, addressesOf(got.result)); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		})
	}
}
