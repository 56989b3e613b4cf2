package lease_test

import (
	"flag"
	"testing"

	"github.com/underlay-cni/underlay/ipam/lease"
)

// limit of states; a world that does not end below it proves nothing.
const limit = 4_000_000

// deep is for whoever changes the protocol: go test ./ipam/lease -deep.
var deep = flag.Bool("deep", false, "explore larger clusters too, which takes minutes and gigabytes")

// TestExplore runs small clusters through everything that can happen to them,
// with the real records, books and decisions, and the fake store as the judge
// of swaps. No address has two containers or two nodes that may use it, and
// from every state each machine can come to use each address.
func TestExplore(t *testing.T) {
	worlds := []world{
		{name: "two nodes, one address, two crashes", nodes: 2, addrs: 1, crashes: 2, named: true, parked: true},
		{name: "late reads, and leases that go back unused", nodes: 2, addrs: 1, crashes: 1, stale: true, named: true, closing: true},
		{name: "two addresses, one crash", nodes: 2, addrs: 2, crashes: 1, named: true},
		{name: "three nodes", nodes: 3, addrs: 1},
		{name: "power off, removal, power on", nodes: 2, addrs: 1, crashes: 1, faults: 1, power: true, named: true},
		{name: "old copy of a ledger", nodes: 2, addrs: 1, faults: 1, power: true, oldLedger: true},
		{name: "registry restored", nodes: 2, addrs: 1, crashes: 1, faults: 1, restore: true, named: true},
	}
	if *deep {
		worlds = append(worlds,
			world{name: "deep: three nodes, one crash", nodes: 3, addrs: 1, crashes: 1, named: true},
			world{name: "deep: two addresses, power off, removal, power on", nodes: 2, addrs: 2, faults: 1, power: true},
			world{name: "deep: two addresses, registry restored", nodes: 2, addrs: 2, faults: 1, restore: true},
		)
	}
	for _, w := range worlds {
		if race {
			w.crashes = 0
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			x := explore(w.open(), limit, w.successors, w.broken)
			t.Logf("%d states, %d different records", len(x.states), len(w.blocks))
			if x.violated >= 0 {
				t.Fatalf("%s:%s", x.why, x.trace(x.violated))
			}
			if !x.complete {
				t.Fatalf("gave up at %d states", len(x.states))
			}
			for n := range w.nodes {
				for a := range w.addrs {
					held := func(c *cluster) bool { return lease.Status(c.m[n].status[a]) == lease.Held }
					if i, stuck := x.unreachable(held); stuck > 0 {
						t.Fatalf("from %d states n%d can never use a%d again, such as:%s", stuck, n+1, a, x.trace(i))
					}
				}
			}
		})
	}
}

// TestExploreFindsBrokenRules: the exploration is worth something only if it
// finds what happens without the rules.
func TestExploreFindsBrokenRules(t *testing.T) {
	worlds := []world{
		{name: "an intent is undone by a read", nodes: 2, addrs: 1, undo: true},
		{name: "a node is its name", nodes: 2, addrs: 1, byName: true},
		{name: "older records are not ignored", nodes: 2, addrs: 1, stale: true, noGuard: true},
		{name: "the swap goes before the ledger", nodes: 2, addrs: 1, swapFirst: true},
		{name: "a time-out takes addresses", nodes: 2, addrs: 1, crashes: 1, faults: 1, takeOver: true},
		{name: "a returned block forgets what was given", nodes: 3, addrs: 2, dropGiven: true},
		{name: "no confirmation after a boot", nodes: 2, addrs: 1, faults: 1, power: true, noConfirm: true},
		{name: "no fence after a boot", nodes: 2, addrs: 1, faults: 1, power: true, oldLedger: true, noFence: true},
		{name: "nobody notices that the registry went back", nodes: 2, addrs: 1, faults: 1, restore: true, unnoticed: true},
	}
	for _, w := range worlds {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			x := explore(w.open(), limit, w.successors, w.broken)
			if x.violated < 0 {
				t.Fatalf("%d states, complete %v, and nothing found", len(x.states), x.complete)
			}
			t.Logf("after %d states: %s:%s", len(x.states), x.why, x.trace(x.violated))
		})
	}
}
