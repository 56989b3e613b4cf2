package e2e_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// Programs of the two families, in the order of a station's addresses.
var netfilters = []string{"iptables-legacy", "ip6tables-legacy"}

// hooks: which of the host's hooks packets pass between a container and another
// host, and between siblings. That hooks count is shown by the host's own
// packets.
func (b *ipvlanBed) hooks(t *testing.T, who map[string]station) {
	t.Helper()
	// What the host asks its containers is lost on the wire.
	in, out := []string{"c3>s1"}, []string{"s1>c1", "s1>c3"}
	if b.mode != "l2" {
		// The host takes what its containers send it; so its answers are lost.
		in, out = append(in, "c1>s1"), append(out, "c1>c3", "c1>s1")
	}
	if b.mode == "l3s" {
		in = append(in, "c3>c1")
	}
	if b.mode != "l2" && b.flag == "vepa" {
		out = append(out, "c1>c2", "c2>c1") // on their way to the wire
	}
	slices.Sort(in)
	slices.Sort(out)
	want := map[string][]string{"PREROUTING": in, "INPUT": in, "OUTPUT": out, "POSTROUTING": out}
	for i, program := range netfilters {
		if diff := cmp.Diff(want, counted(t, b.h1, i, who)); diff != "" {
			t.Errorf("%s: who was seen at the hooks of the host (-want +got):\n%s", program, diff)
		}
	}
}

// firewall: one that the host has for itself is one for containers in l3s, and
// in no other mode.
func (b *ipvlanBed) firewall(t *testing.T) {
	t.Helper()
	for i, program := range netfilters {
		mustDo(t, b.h1.Namespace, program, "-A", "INPUT", "-d", b.c1.addrs[i].String(), "-j", "DROP")
	}
	if b.mode == "l3s" {
		silent(t, b.s2, b.c1)
	} else {
		reaches(t, b.s2, b.c1)
	}
	for _, program := range netfilters {
		mustDo(t, b.h1.Namespace, program, "-F", "INPUT")
	}
	reaches(t, b.s2, b.c1)
}

// masquerade: where the host sees both ways, connection tracking can give the
// container the host's own address on the wire.
func (b *ipvlanBed) masquerade(t *testing.T) {
	t.Helper()
	leadsTo(t, b.h2, b.h1, "dev eth1", "dev eth1") // h2 knows no way to the container
	for i, program := range netfilters {
		mustDo(t, b.h1.Namespace, program, "-t", "nat", "-A", "POSTROUTING", "-s", b.c1.addrs[i].String(), "-j", "MASQUERADE")
	}
	if b.mode == "l3s" {
		reaches(t, b.c1, b.s2)
	} else {
		silent(t, b.c1, b.s2)
	}
	for _, program := range netfilters {
		mustDo(t, b.h1.Namespace, program, "-t", "nat", "-F", "POSTROUTING")
	}
	leadsTo(t, b.h2, b.h1, "via 192.0.2.1", "via 2001:db8::1")
	reaches(t, b.c1, b.s2)
}

// count has the host count packets between any two, but for what it says itself,
// after some seconds, about those that were lost.
func count(t *testing.T, h *lab.Host, who map[string]station) {
	t.Helper()
	for i, program := range netfilters {
		rules := []string{"*mangle"}
		protocol := []string{"icmp --icmp-type", "icmpv6 --icmpv6-type"}[i]
		for _, hook := range []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"} {
			rules = append(rules, "-A "+hook+" -p "+protocol+" destination-unreachable -j RETURN")
			for _, a := range who {
				for _, b := range who {
					rules = append(rules, "-A "+hook+" -s "+a.addrs[i].String()+" -d "+b.addrs[i].String())
				}
			}
		}
		rules = append(rules, "COMMIT")
		mustDo(t, h.Namespace, "sh", "-c", `printf '%s\n' "$2" | $1-restore`, "sh", program, strings.Join(rules, "\n"))
	}
}

var counter = regexp.MustCompile(`^\[(\d+):\d+\] -A (\S+) -s ([^/]+)/\d+ -d ([^/]+)/`)

// counted is who was counted at each hook, as "from>to".
func counted(t *testing.T, h *lab.Host, family int, who map[string]station) map[string][]string {
	t.Helper()
	names := map[string]string{}
	for name, s := range who {
		names[s.addrs[family].String()] = name
	}
	seen := map[string][]string{}
	for line := range strings.Lines(mustDo(t, h.Namespace, netfilters[family]+"-save", "-c", "-t", "mangle")) {
		m := counter.FindStringSubmatch(line)
		if m == nil || m[1] == "0" || m[3] == m[4] {
			continue
		}
		seen[m[2]] = append(seen[m[2]], names[m[3]]+">"+names[m[4]])
	}
	for _, pairs := range seen {
		slices.Sort(pairs)
	}
	return seen
}
