package history_test

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// quiet: every attachment has had a DEL that was ok, and so none holds an
// address: a release that had to wait is done, and no ADD that died is late.
func (s *storm) quiet() {
	var held []string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		held = nil
		for _, n := range s.bed.Nodes {
			recs, err := n.API.Addresses(s.t.Context(), api.AddressFilter{State: ipam.Held})
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

// said: no agent has found an address in use that is another node's, nor fallen
// into a panic.
func (s *storm) said() {
	for _, n := range s.bed.Nodes {
		text, err := os.ReadFile(n.Log())
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
		n := s.bed.Nodes[i%hosts]
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
