package history_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// quiet: every attachment has had a DEL that was ok, and so none holds an
// address: a release that had to wait is done, and no ADD that died is late.
func (s *storm) quiet() {
	var held []string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		held = nil
		for _, n := range s.bed.nodes {
			recs, err := n.api.Addresses(s.t.Context(), api.AddressFilter{State: ipam.Held})
			if err != nil {
				held = append(held, err.Error())
			}
			for _, r := range recs {
				held = append(held, fmt.Sprintf("%s has %s for %s since %s", n.Name, r.Address.Addr(), r.Attachment.ContainerID, r.Since))
			}
		}
		if len(held) == 0 {
			return
		}
	}
	for _, what := range held {
		s.t.Errorf("leaked: %s\n%s", what, s.of(what))
	}
}

// of lists the calls for the attachment that a text names.
func (s *storm) of(text string) string {
	var lines []string
	for _, c := range s.history.calls {
		host, id, _ := strings.Cut(c.attachment, "/")
		if strings.HasPrefix(text, host+" ") && strings.Contains(text, " for "+id+" ") {
			lines = append(lines, c.String())
		}
	}
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}

// leases are what the registry says, by node name, in order.
func (s *storm) leases() (map[string][]netip.Addr, string, error) {
	all, err := s.bed.nodes[0].api.Leases(s.t.Context(), api.LeaseFilter{})
	if err != nil {
		return nil, "", err
	}
	out := map[string][]netip.Addr{}
	for _, n := range s.bed.nodes {
		out[n.Name] = nil // it may have given away all it had
	}
	for _, l := range all {
		for a := l.CIDR.Addr(); l.CIDR.Contains(a); a = a.Next() {
			has := l.Owner
			for _, g := range l.Given {
				if g.Address == a {
					has = g.Node
				}
			}
			if has != nil {
				out[has.Name] = append(out[has.Name], a)
			}
		}
	}
	for _, list := range out {
		slices.SortFunc(list, netip.Addr.Compare)
	}
	text, err := json.Marshal(all)
	return out, string(text), err
}

// settle waits until nothing in the registry has changed for a while.
func (s *storm) settle() {
	last, since := "", time.Now()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		_, text, err := s.leases()
		switch {
		case err != nil || text != last:
			last, since = text, time.Now()
		case time.Since(since) > 12*time.Second: // longer than between two rounds
			return
		}
	}
	s.t.Error("the registry does not come to rest")
}

// agree: ledgers are sound, and have what the registry says, no more and no
// less.
func (s *storm) agree() {
	want, text, err := s.leases()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, n := range s.bed.nodes {
		n.end(syscall.SIGTERM)
	}
	got := map[string][]netip.Addr{}
	for _, n := range s.bed.nodes {
		if got[n.Name], err = s.read(n); err != nil {
			s.t.Errorf("ledger of %s: %v", n.Name, err)
		}
	}
	compare := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(want, got, compare); diff != "" {
		s.t.Errorf("what nodes have (-registry +ledgers):\n%s\n%s", diff, text)
	}
	for _, n := range s.bed.nodes {
		n.start()
	}
	s.bed.ready(time.Minute)
}

// said: no agent has found an address in use that is another node's, nor fallen
// into a panic.
func (s *storm) said() {
	for _, n := range s.bed.nodes {
		text, err := os.ReadFile(n.log.Name())
		if err != nil {
			s.t.Error(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "level=ERROR") || strings.HasPrefix(line, "panic:") {
				s.t.Errorf("%s: %s", n.Name, line)
			}
		}
	}
}

// read looks into a ledger, and returns all addresses of the cluster's pools
// that are the node's by it.
func (s *storm) read(n *node) (addrs []netip.Addr, err error) {
	l, err := ledger.Open(s.t.Context(), ledger.Options{DataDir: n.DataDir, RunDir: n.RunDir, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	findings, err := l.Check()
	if err != nil || len(findings) > 0 {
		s.t.Errorf("ledger of %s: %q, %v", n.Name, findings, err)
	}
	pools, err := l.Pools()
	if err != nil {
		return nil, err
	}
	for _, p := range pools {
		blocks, err := l.Blocks(p.UUID)
		if err != nil {
			return nil, err
		}
		for _, b := range blocks {
			for a, m := range b.Marks {
				if m.To.Node != "" || m.To.Key != "" {
					s.t.Errorf("ledger of %s: %s is still on its way to %+v", n.Name, a, m.To)
				}
				addrs = append(addrs, a)
			}
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, nil
}

// fill takes each address of the pools, from the hosts in turn. What the strict
// pool keeps, its owners alone can have, who may have left one on each node.
func (s *storm) fill() {
	owners := map[string]bool{"": true}
	for _, c := range s.history.calls {
		if c.verb == "ADD" && strictNet.Contains(c.addr) {
			owners[c.owner] = true
		}
	}
	strict := s.take("strict", strictSize, slices.Sorted(maps.Keys(owners)))
	soft := s.take("soft", softSize, []string{"", "", ""})
	s.t.Logf("%d and %d addresses are given out", strict, soft)
}

// take has ADDs from a pool, from a host for each owner, "" for none, until all
// addresses are given out, or nobody gets one any more.
func (s *storm) take(pool string, size int, owners []string) int {
	taken, last := map[netip.Addr]bool{}, ""
	add := func(i, tries int) (c call) {
		n := s.bed.nodes[i%hosts]
		a := &attachment{worker: &worker{storm: s, pool: pool, owner: owners[i]}, node: n, netns: n.Path + "-w15" + n.Name}
		a.id = fmt.Sprintf("%s-%s-%d", pool, n.Name, len(taken))
		for range tries {
			if c = a.call("ADD"); c.outcome == ok {
				break
			}
		}
		return c
	}
	done := map[int]bool{} // has all that it can get
	for len(taken) < size && len(done) < len(owners) {
		for i, owner := range owners {
			tries := 2
			if owner == "" {
				tries = 10 // others have to give it up
			}
			if done[i] || len(taken) == size {
				continue
			}
			c := add(i, tries)
			if c.outcome != ok {
				done[i], last = true, c.note
				continue
			}
			if taken[c.addr] {
				s.t.Errorf("pool %s: given out already: %s", pool, c)
			}
			taken[c.addr] = true
		}
	}
	if len(taken) != size {
		s.t.Errorf("pool %s: of %d addresses %d can be had: %s", pool, size, len(taken), last)
	} else if c := add(0, 1); c.outcome == ok {
		s.t.Errorf("pool %s has %d addresses, and gives one more: %s", pool, size, c)
	}
	return len(taken)
}
