package cluster

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// leases are what the registry says, by node name, in order.
func (c *Cluster) leases() (map[string][]netip.Addr, string, error) {
	all, err := c.Nodes[0].API.Leases(c.t.Context(), api.LeaseFilter{})
	if err != nil {
		return nil, "", err
	}
	out := map[string][]netip.Addr{}
	for _, n := range c.Nodes {
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

// Settle waits until nothing in the registry has changed for a while.
func (c *Cluster) Settle() {
	last, since := "", time.Now()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		_, text, err := c.leases()
		switch {
		case err != nil || text != last:
			last, since = text, time.Now()
		case time.Since(since) > 12*time.Second: // longer than between two rounds
			return
		}
	}
	c.t.Error("the registry does not come to rest")
}

// Agree: ledgers are sound, and have what the registry says, no more and no
// less. It ends the agents, and starts them again.
func (c *Cluster) Agree() {
	want, text, err := c.leases()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, n := range c.Nodes {
		n.End(syscall.SIGTERM)
	}
	got := map[string][]netip.Addr{}
	for _, n := range c.Nodes {
		if got[n.Name], err = n.usable(); err != nil {
			c.t.Errorf("ledger of %s: %v", n.Name, err)
		}
	}
	compare := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(want, got, compare); diff != "" {
		c.t.Errorf("what nodes have (-registry +ledgers):\n%s\n%s", diff, text)
	}
	for _, n := range c.Nodes {
		n.Start()
	}
	c.Ready(time.Minute)
}

// usable looks into a ledger, and returns all addresses of the cluster's pools
// that are the node's by it.
func (n *Node) usable() (addrs []netip.Addr, err error) {
	boot, err := n.bootID()
	if err != nil {
		return nil, err
	}
	l, err := ledger.Open(n.t.Context(), ledger.Options{DataDir: n.DataDir, RunDir: n.RunDir, BootID: boot, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	findings, err := l.Check()
	if err != nil || len(findings) > 0 {
		n.t.Errorf("ledger of %s: %q, %v", n.Name, findings, err)
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
					return nil, fmt.Errorf("%s is still on its way to %+v", a, m.To)
				}
				addrs = append(addrs, a)
			}
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, nil
}
