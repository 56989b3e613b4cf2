package e2e_test

import (
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// hostgwModes are the two ways to connect a container to its host.
var hostgwModes = map[string]keys{"routed": nil, "bridge": {"bridge": "ul0"}}

// strictly has the host drop what comes in from where it would not send to.
func strictly(t *testing.T, h *lab.Host) {
	t.Helper()
	mustDo(t, h.Namespace, "sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1", "net.ipv4.conf.eth1.rp_filter=1")
}

// Containers of two hosts with static peers reach each other, the other host,
// and are reached by it; also where both hosts are strict about senders.
func TestHostgwTwoHosts(t *testing.T) {
	t.Parallel()
	for name, more := range hostgwModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			strictly(t, b.h1)
			strictly(t, b.h2)
			before := hostLinks(t, b.h1)
			c1 := attach(t, b.h1, "c1", pods(t, b.h1, more))
			c2 := attach(t, b.h2, "c2", pods(t, b.h2, more))
			meet(t, c1.station, c2.station)
			meet(t, c1.station, hostStation(t, b.h2))
			wantOK(t, "CHECK", c1.cni.Check(t.Context(), c1.conf, c1.rt))

			routes := mustDo(t, b.h1.Namespace, "ip", "route", "show", "proto", "142")
			if !strings.Contains(routes, "10.5.2.0/24 via 192.0.2.2 dev eth1") {
				t.Errorf("routes to peers: %q", routes)
			}
			c1.del()
			if left := mustDo(t, b.h1.Namespace, "ip", "route", "show", "proto", "142"); left != "" {
				t.Errorf("routes to peers left: %q", left)
			}
			if left := mustDo(t, b.h1.Namespace, "nft", "list", "ruleset"); left != "" {
				t.Errorf("rules left: %s", left)
			}
			wantNothing(t, b.h1, before, c1.Namespace)
		})
	}
}

// What leaves the network has the host's address where that is asked for, and
// its own where not; what stays in it always has its own.
func TestHostgwMasquerade(t *testing.T) {
	t.Parallel()
	for name, masquerade := range map[string]bool{"with": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			// A host that has just come up asks for no neighbour on behalf of others.
			meet(t, hostStation(t, b.h1), hostStation(t, b.h2))
			out, err := b.h1.Capture(t.Context(), lab.Parent)
			if err != nil {
				t.Fatal(err)
			}
			// No peers: to this network the other host is outside of it.
			c := attach(t, b.h1, "c1", pods(t, b.h1, keys{"ipMasq": masquerade, "peers": []keys{}}))
			if masquerade {
				reaches(t, c.station, hostStation(t, b.h2))
			} else {
				silent(t, c.station, hostStation(t, b.h2)) // which has no way back
			}
			frames := out.Close()
			for i, to := range []string{"192.0.2.2", "2001:db8::2"} {
				from := []string{"192.0.2.1", "2001:db8::1"}[i]
				if !masquerade {
					from = c.addrs[i].String()
				}
				want, seen := from+" > "+to+": icmp", false
				for _, f := range frames {
					seen = seen || strings.Contains(f.String(), want)
				}
				if !seen {
					t.Errorf("no %q on the wire", want)
				}
			}
		})
	}
}

// A packet that runs out of hops tells which they are: node, peer host, pod.
func TestHostgwHops(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c1, c2 := attach(t, b.h1, "c1", pods(t, b.h1, nil)), attach(t, b.h2, "c2", pods(t, b.h2, nil))
	meet(t, c1.station, c2.station)
	for i, hops := range [][]string{{"192.0.2.1", "192.0.2.2"}, {"2001:db8::1", "2001:db8::2"}} {
		for ttl, hop := range hops {
			// ping fails, as nothing answers; what counts is who says so.
			said, _ := c1.Exec(t.Context(), "ping", "-n", "-c", "1", "-W", "2", "-t", string(rune('1'+ttl)), c2.addrs[i].String())
			if !strings.Contains(said, "From "+hop) {
				t.Errorf("hop %d to %s is not %s:\n%s", ttl+1, c2.addrs[i], hop, said)
			}
		}
	}
}

// An ADD that is repeated gives the same, one that fails leaves nothing, and a
// DEL works when all is gone.
func TestHostgwLife(t *testing.T) {
	t.Parallel()
	for name, more := range hostgwModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newBed(t).h1
			before := hostLinks(t, h)
			c := attach(t, h, "c1", pods(t, h, more))
			first := texts(c.addrs)
			c.add()
			if again := texts(c.addrs); strings.Join(first, " ") != strings.Join(again, " ") {
				t.Errorf("addresses %v, and then %v", first, again)
			}
			meet(t, c.station, hostStation(t, h))

			c.rt.NetNS = ""
			mustDo(t, h.Namespace, "ip", "netns", "delete", c.ID)
			for range 2 {
				wantOK(t, "DEL", c.cni.Del(t.Context(), c.conf, c.rt))
			}
			wantNothing(t, h, before)

			n, rt := container(t, h, "c2")
			conf := pods(t, h, keys{"bridge": more["bridge"], "peers": []keys{{"prefix": "10.5.9.0/24", "via": "203.0.113.9"}}})
			_, err := h.CNI(ours).Add(t.Context(), strings.Replace(conf, `"bridge":null,`, "", 1), rt)
			if err == nil || !strings.Contains(err.Error(), "peers[0].via: 203.0.113.9 is on no segment") {
				t.Errorf("ADD: %v", err)
			}
			wantNothing(t, h, before, n)
		})
	}
}

// CHECK sees what somebody has changed on the host.
func TestHostgwCheck(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, want string
		more       keys
		spoil      func(c *attachment, end string) []string
	}{
		{"host route", "the host has no route to 10.5.1.", nil, func(c *attachment, _ string) []string {
			return []string{"ip", "route", "flush", c.addrs[0].String()}
		}},
		{"MAC of the host's end", "has MAC 02:00:00:00:00:09", nil, func(_ *attachment, end string) []string {
			return []string{"ip", "link", "set", end, "address", "02:00:00:00:00:09"}
		}},
		{"route to a peer", "peers[0]: the route to 10.5.2.0/24", nil, func(*attachment, string) []string {
			return []string{"ip", "route", "del", "10.5.2.0/24"}
		}},
		{"gateway", "has no address 10.5.1.1/24", keys{"bridge": "ul0"}, func(*attachment, string) []string {
			return []string{"ip", "addr", "del", "10.5.1.1/24", "dev", "ul0"}
		}},
		{"hairpin", "(hairpin)", keys{"bridge": "ul0"}, func(_ *attachment, end string) []string {
			return []string{"ip", "link", "set", end, "type", "bridge_slave", "hairpin", "off"}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := newBed(t).h1
			c := attach(t, h, "c1", pods(t, h, test.more))
			wantOK(t, "CHECK", c.cni.Check(t.Context(), c.conf, c.rt))
			end := ""
			for _, l := range hostLinks(t, h) {
				if strings.HasPrefix(l.Name, "ul") && l.Kind == "veth" {
					end = l.Name
				}
			}
			mustDo(t, h.Namespace, test.spoil(c, end)...)
			if err := c.cni.Check(t.Context(), c.conf, c.rt); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("CHECK: %v, want %q", err, test.want)
			}
			c.add() // mends it
			wantOK(t, "CHECK", c.cni.Check(t.Context(), c.conf, c.rt))
		})
	}
}

// Behind the reference plugins hostgw adds what leads to the other host.
func TestHostgwChained(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"bridge", "ptp"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			at := func(h *lab.Host) *attachment {
				own, other := h.Name[1:], map[string]string{"1": "2", "2": "1"}[h.Name[1:]]
				conf := `{"cniVersion": "1.1.0", "name": "pods", "plugins": [
					{"type": "` + kind + `", "bridge": "cni0", "isGateway": true, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.` + own + `.0/24"}], [{"subnet": "fd05:0:0:` + own + `::/64"}]],
						"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
					{"type": "hostgw", "master": "eth1", "peers": [
						{"prefix": "10.5.` + other + `.0/24", "via": "192.0.2.` + other + `"},
						{"prefix": "fd05:0:0:` + other + `::/64", "via": "2001:db8::` + other + `"}]}]}`
				a := &attachment{t: t, cni: h.CNI(ours, reference), conf: conf}
				a.Namespace, a.rt = container(t, h, "c"+own)
				a.add()
				return a
			}
			c1, c2 := at(b.h1), at(b.h2)
			meet(t, c1.station, c2.station)
			wantOK(t, "CHECK", c1.cni.Check(t.Context(), c1.conf, c1.rt))
			c1.del()
			if left := mustDo(t, b.h1.Namespace, "ip", "route", "show", "proto", "142"); left != "" {
				t.Errorf("routes to peers left: %q", left)
			}
		})
	}
}
