package nft

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

// table is all there is in the table, one thing a line, as it can be read back:
//
//	chain <name>
//	rule <chain> <comment>
//	set <name>
//	element <set> <value>
//
// sorted, but for rules. A comment carries the sum of the rule's text, which cannot
// be read back as it was written.
type table string

// Key implements reconcile.Object: there is one.
func (t table) Key() struct{} { return struct{}{} }

// Canonical implements reconcile.Object.
func (t table) Canonical() (table, error) { return t, nil }

// String implements reconcile.Object.
func (t table) String() string {
	return fmt.Sprintf("table %s %s of %d lines", family, name, strings.Count(string(t), "\n"))
}

const (
	family = knftables.InetFamily
	name   = "underlay"
)

// chain is a base chain of ours.
type chain struct {
	name     string
	kind     knftables.BaseChainType
	hook     knftables.BaseChainHook
	priority knftables.BaseChainPriority
	rules    []rule
}

type rule struct{ comment, text string }

// chains are all that there may be, each with the sets that its rules name. The
// two filters come before those of others, which then see the mark.
func chains() []chain {
	accept := fmt.Sprintf("meta mark set meta mark or %#x accept", Mark)
	return []chain{
		{"forward", knftables.FilterType, knftables.ForwardHook, knftables.FilterPriority + "-10", []rule{
			{"from a pool", "ip saddr @forward4 " + accept},
			{"to a pool", "ip daddr @forward4 " + accept},
			{"from a pool, IPv6", "ip6 saddr @forward6 " + accept},
			{"to a pool, IPv6", "ip6 daddr @forward6 " + accept},
		}},
		{"postrouting", knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority, []rule{
			{"out of the cluster", "ip saddr @masquerade4 ip daddr != @forward4 ip daddr != @nodes4 ip daddr != 224.0.0.0/4 masquerade fully-random"},
			{"out of the cluster, IPv6", "ip6 saddr @masquerade6 ip6 daddr != @forward6 ip6 daddr != @nodes6 ip6 daddr != ff00::/8 masquerade fully-random"},
		}},
		{"input", knftables.FilterType, knftables.InputHook, knftables.FilterPriority + "-10", []rule{
			{"VXLAN of strangers", "udp dport @ports ip saddr != @vteps4 drop"},
			{"VXLAN of strangers, IPv6", "udp dport @ports ip6 saddr != @vteps6 drop"},
		}},
	}
}

// mark is the rule's comment in the kernel.
func (r rule) mark() string {
	h := fnv.New32a()
	h.Write([]byte(r.text))
	return fmt.Sprintf("%s #%08x", r.comment, h.Sum32())
}

// sets are all that there may be.
func sets() []*knftables.Set {
	var out []*knftables.Set
	for _, s := range []struct {
		name string
		flag []knftables.SetFlag
	}{
		{"forward", []knftables.SetFlag{knftables.IntervalFlag}},
		{"masquerade", []knftables.SetFlag{knftables.IntervalFlag}},
		{"nodes", nil},
		{"vteps", nil},
	} {
		out = append(out,
			&knftables.Set{Name: s.name + "4", Type: "ipv4_addr", Flags: s.flag},
			&knftables.Set{Name: s.name + "6", Type: "ipv6_addr", Flags: s.flag})
	}
	return append(out, &knftables.Set{Name: "ports", Type: "inet_service"})
}

// table spells what is wanted; "" is none. A chain that has nothing to do would
// cost every packet a look.
func (r Ruleset) table() table {
	busy := map[string]bool{"forward": len(r.Forward) > 0 && !r.Unopposed, "postrouting": len(r.Masquerade) > 0, "input": len(r.Ports) > 0}
	elements := make(map[string][]string)
	add := func(set string, a netip.Addr, value string) {
		if a.Is4() {
			set += "4"
		} else {
			set += "6"
		}
		elements[set] = append(elements[set], value)
	}
	for set, prefixes := range map[string][]netip.Prefix{"forward": r.Forward, "masquerade": r.Masquerade} {
		for _, p := range outermost(prefixes) {
			if p.IsSingleIP() {
				add(set, p.Addr(), p.Addr().String()) // as nft shows it
			} else {
				add(set, p.Addr(), p.String())
			}
		}
	}
	for set, addrs := range map[string][]netip.Addr{"nodes": r.Nodes, "vteps": r.VTEPs} {
		for _, a := range addrs {
			add(set, a.Unmap(), a.Unmap().String())
		}
	}
	for _, p := range r.Ports {
		elements["ports"] = append(elements["ports"], fmt.Sprint(p))
	}
	c := content{chains: make(map[string][]string), sets: make(map[string][]string)}
	for _, chain := range chains() {
		if !busy[chain.name] {
			continue
		}
		for _, r := range chain.rules {
			c.chains[chain.name] = append(c.chains[chain.name], r.mark())
			for word := range strings.FieldsSeq(r.text) {
				if set, is := strings.CutPrefix(word, "@"); is {
					c.sets[set] = elements[set]
				}
			}
		}
	}
	return c.table()
}

// content is what a table holds: comments of rules by chain, elements by set.
type content struct{ chains, sets map[string][]string }

func (c content) table() table {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.chains)) {
		fmt.Fprintf(&b, "chain %s\n", name)
		for _, comment := range c.chains[name] {
			fmt.Fprintf(&b, "rule %s %s\n", name, comment)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.sets)) {
		fmt.Fprintf(&b, "set %s\n", name)
		for _, value := range slices.Compact(slices.Sorted(slices.Values(c.sets[name]))) {
			fmt.Fprintf(&b, "element %s %s\n", name, value)
		}
	}
	return table(b.String())
}

// element is a value in a set.
type element struct{ set, value string }

func (e element) compare(f element) int {
	return cmp.Or(strings.Compare(e.set, f.set), strings.Compare(e.value, f.value))
}

// split takes the elements out of the lines.
func (t table) split() (frame string, elements map[element]bool) {
	elements = make(map[element]bool)
	var rest strings.Builder
	for l := range strings.Lines(string(t)) {
		if words := strings.SplitN(strings.TrimSuffix(l, "\n"), " ", 3); words[0] == "element" && len(words) == 3 {
			elements[element{words[1], words[2]}] = true
		} else {
			rest.WriteString(l)
		}
	}
	return rest.String(), elements
}

// has reports whether a line is in the table.
func (t table) has(words ...string) bool {
	return strings.Contains("\n"+string(t), "\n"+strings.Join(words, " ")+"\n")
}
