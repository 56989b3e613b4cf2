package segment

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// ids are UUIDs of ledgers, n1 first.
func idOf(i int) lease.Node {
	return lease.Node(fmt.Sprintf("%d0000000-0000-4000-8000-000000000000", i))
}

// partOf is the part of node n<i>, with endpoints as in "01=10.9.0.1,2001:db8:9::1".
func partOf(i int, endpoints ...string) record.Segment {
	s := record.Segment{Version: 1, VNI: vni, Node: idOf(i), Name: fmt.Sprint("n", i), VTEP: netip.MustParseAddr(fmt.Sprint("192.0.2.", i)), Port: 8472}
	for _, text := range endpoints {
		mac, addrs, _ := strings.Cut(text, "=")
		e := record.Endpoint{MAC: "02:00:00:00:00:" + mac}
		for a := range strings.SplitSeq(addrs, ",") {
			if a != "" {
				e.Addrs = append(e.Addrs, netip.MustParseAddr(a))
			}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// membersOf are parts that came in this order.
func membersOf(parts ...record.Segment) *registry.Members {
	m := &registry.Members{VNI: vni, Nodes: make(map[lease.Node]registry.Member), Unread: make(map[string]error)}
	for i, s := range parts {
		m.Rev = lease.Rev(i + 1)
		n := registry.Member{Segment: s, Rev: m.Rev, Since: make(map[string]lease.Rev)}
		for _, e := range s.Endpoints {
			n.Since[e.MAC] = m.Rev
		}
		m.Nodes[s.Node] = n
	}
	return m
}

// text is a plan for people, with the entries that follow.
func (p *plan) text() string {
	var b strings.Builder
	for _, n := range p.Nodes {
		if n.Reason != "" {
			fmt.Fprintf(&b, "%s: %s\n", n.Name, n.Reason)
		}
	}
	for _, e := range p.Endpoints {
		if e.Reason != "" && e.node.Reason == "" {
			fmt.Fprintf(&b, "%s on %s: %s\n", e.MAC, e.Name, e.Reason)
		}
	}
	for _, w := range p.wants(vni) {
		fmt.Fprintf(&b, "%s\n", w.Object)
	}
	return b.String()
}

func TestPlan(t *testing.T) {
	t.Parallel()
	const own = "02:00:00:00:00:01"
	local := "master " + own + " dev lp7\n10.9.0.1 dev br7 lladdr " + own + "\n"
	flood := func(i int) string { return fmt.Sprintf("self 00:00:00:00:00:00 dev vx7 dst 192.0.2.%d\n", i) }
	remote := func(mac string, node int, addrs ...string) string {
		out := fmt.Sprintf("self %[1]s dev vx7 dst 192.0.2.%[2]d\nmaster %[1]s dev vx7\n", "02:00:00:00:00:"+mac, node)
		for _, a := range addrs {
			out += fmt.Sprintf("%s dev br7 lladdr 02:00:00:00:00:%s\n", a, mac)
		}
		return out
	}
	change := func(s record.Segment, f func(*record.Segment)) record.Segment { f(&s); return s }
	for _, tt := range []struct {
		name    string
		own     record.Segment
		members []record.Segment
		gone    []int
		want    string
	}{
		{"nobody else", partOf(1, "01=10.9.0.1"), nil, nil, local},
		{"this node's own record", partOf(1, "01=10.9.0.1"), []record.Segment{partOf(1, "01=10.9.0.1", "09=10.9.0.9")}, nil, local},
		{"another node", partOf(1, "01=10.9.0.1"), []record.Segment{partOf(2, "02=10.9.0.2,2001:db8:9::2", "03")}, nil,
			flood(2) + local + remote("02", 2, "10.9.0.2", "2001:db8:9::2") + remote("03", 2)},
		{"one that has nobody in it yet", partOf(1), []record.Segment{partOf(2)}, nil, flood(2)},
		{"one that was removed", partOf(1, "01=10.9.0.1"), []record.Segment{partOf(2, "02=10.9.0.2"), partOf(3)}, []int{2}, flood(3) + local},
		{"another port", partOf(1, "01=10.9.0.1"), []record.Segment{change(partOf(2, "02=10.9.0.2"), func(s *record.Segment) { s.Port = 4789 })}, nil,
			"n2: it takes VXLAN at port 4789, and this node at port 8472; give both the same\n" + local},
		{"another family", partOf(1, "01=10.9.0.1"), []record.Segment{change(partOf(2, "02=10.9.0.2"), func(s *record.Segment) { s.VTEP = netip.MustParseAddr("2001:db8::2") })}, nil,
			"n2: its VTEP 2001:db8::2 and this node's, 192.0.2.1, are of different families\n" + local},
		{"this node's VTEP", partOf(1, "01=10.9.0.1"), []record.Segment{change(partOf(2, "02=10.9.0.2"), func(s *record.Segment) { s.VTEP = netip.MustParseAddr("192.0.2.1") })}, nil,
			"n2: its VTEP 192.0.2.1 is this node's, too\n" + local},
		{"a VTEP that two have", partOf(1), []record.Segment{partOf(2, "02"), change(partOf(3, "03"), func(s *record.Segment) { s.VTEP = netip.MustParseAddr("192.0.2.2") })}, nil,
			flood(2) + remote("02", 2) + remote("03", 2)},
		{"a container that has moved from node to node", partOf(1), []record.Segment{partOf(3, "02=10.9.0.2"), partOf(2, "02=10.9.0.2")}, nil,
			"02:00:00:00:00:02 on n3: its MAC has come to node n2 since\n" + flood(2) + flood(3) + remote("02", 2, "10.9.0.2")},
		{"and back", partOf(1), []record.Segment{partOf(2, "02=10.9.0.2"), partOf(3, "02=10.9.0.2")}, nil,
			"02:00:00:00:00:02 on n2: its MAC has come to node n3 since\n" + flood(2) + flood(3) + remote("02", 3, "10.9.0.2")},
		{"one that has just come here", partOf(1, "01=10.9.0.1"), []record.Segment{partOf(2, "01=10.9.0.1")}, nil,
			own + " on n2: its MAC has come to node n1 since\n" + flood(2) + local},
		{"one that has gone elsewhere, with a leak left here", partOf(1, "01=10.9.0.1"), []record.Segment{partOf(1, "01=10.9.0.1"), partOf(2, "01=10.9.0.1")}, nil,
			own + " on n1: its MAC has come to node n2 since\n" + flood(2) + remote("01", 2, "10.9.0.1")},
		{"an address that has moved", partOf(1), []record.Segment{partOf(2, "02=10.9.0.2,2001:db8:9::2"), partOf(3, "03=10.9.0.2")}, nil,
			"02:00:00:00:00:02 on n2: 10.9.0.2 has come to 02:00:00:00:00:03 on node n3 since\n" + flood(2) + flood(3) + remote("02", 2, "2001:db8:9::2") + remote("03", 3, "10.9.0.2")},
		{"what nothing leads to takes nothing", partOf(1), []record.Segment{partOf(2, "02=10.9.0.2"), change(partOf(3, "02=10.9.0.2"), func(s *record.Segment) { s.Port = 4789 })}, nil,
			"n3: it takes VXLAN at port 4789, and this node at port 8472; give both the same\n" + flood(2) + remote("02", 2, "10.9.0.2")},
		{"an address twice in one", partOf(1, "01=10.9.0.1,10.9.0.1"), nil, nil, local},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			gone := make(map[lease.Node]bool)
			for _, i := range tt.gone {
				gone[idOf(i)] = true
			}
			p := makePlan(tt.own, membersOf(tt.members...), gone)
			if diff := cmp.Diff(tt.want, p.text()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if len(p.Gone) != len(tt.gone) {
				t.Errorf("gone: %v", p.Gone)
			}
			keys := make(map[any]bool)
			for _, w := range p.wants(vni) {
				if keys[w.Object.Key()] {
					t.Errorf("two entries for the same: %s", w.Object)
				}
				keys[w.Object.Key()] = true
			}
		})
	}
}

// TestWants: what is on record of segments, and nothing else.
func TestWants(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	put(t, d.ledger, "plain", "02:00:00:00:00:07", ipam.Uses{Parent: "eth1"}, "10.9.0.7")
	put(t, d.ledger, "nobody's", "02:00:00:00:00:08", ipam.Uses{Parent: "lg8", Segment: ipam.Segment{VNI: 8}}, "10.9.0.8")
	put(t, d.ledger, "a", "", ipam.Uses{Parent: "eth2", Segment: ipam.Segment{VNI: vni, Port: 4789}})
	put(t, d.ledger, "b", "", made())
	put(t, d.ledger, "a", "02:00:00:00:00:0B", in(), "10.9.0.2", "2001:db8:9::2")
	put(t, d.ledger, "b", "02:00:00:00:00:0a", in(), "10.9.0.1")
	put(t, d.ledger, "c", "02:00:00:00:00:0a", in(), "10.9.0.3")
	put(t, d.ledger, "d", "01:00:5e:00:00:01", in(), "10.9.0.4")
	put(t, d.ledger, "e", "", ipam.Uses{Parent: "eth1", VLAN: 5, Segment: ipam.Segment{VNI: 9, Port: 8472}})
	got, err := wants(d.ledger)
	must(t, err)
	text := ""
	for _, v := range []int{vni, 8, 9} {
		w, ok := got[v]
		if !ok {
			continue
		}
		text += fmt.Sprintf("%d on %s, lock %s, port %d\n", v, w.parent, w.lock, w.port)
		for _, e := range w.endpoints {
			text += fmt.Sprintln(e.MAC, e.Addrs)
		}
		text += strings.Join(append(w.odd, ""), "\n")
	}
	const want = `7 on eth2, lock eth2, port 4789
02:00:00:00:00:0a [10.9.0.1 10.9.0.3]
02:00:00:00:00:0b [10.9.0.2 2001:db8:9::2]
attachment red/d/eth0: 01:00:5e:00:00:01 is the MAC of no station
9 on eth1.5, lock eth1, port 8472
`
	if diff := cmp.Diff(want, text); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
