package chaos_test

import (
	"syscall"
	"time"

	"github.com/underlay-cni/underlay/e2e/cluster"
)

// ofState are the faults of a host's agent and its files, one at a time.
var ofState = []fault{
	{"agent.kill", "the agent gets SIGKILL, and is started again", "plugins go on without it", 3, killAgent},
	{"agent.stop", "the agent gets SIGTERM, and is started again", "plugins go on without it", 2, stopAgent},
	{"agent.freeze", "the agent gets SIGSTOP, and SIGCONT", "DEL goes on", 3, freezeAgent},
	{"disk.full", "the disk of the host's state is full", "DEL goes on", 2, fillDisk},
	{"disk.readonly", "the disk of the host's state is read-only", "DEL goes on, and is done when it is not any more", 2, lockDisk},
	{"ledger.damage", "the ledger is damaged, cut short, removed or put back, and made anew",
		"an ADD is refused and says what to do; after that all that is attached is known", 2, damageLedger},
	{"boot", "the host is started again", "nothing of before is held", 1, reboot},
	{"clock.set", "the host's clock jumps", "nothing that is held is given to others", 1, setClock},
}

// ofKernel are the faults of what is in a host's kernel, beside the others.
var ofKernel = []fault{
	{"netns.delete", "the namespace of a container is deleted", "its DEL succeeds; without one it is no more held in the end", 6, stays(deleteNetns)},
	{"parent.down", "eth1 is set down, and up again with its addresses", "containers are reached again", 2, stays(downParent)},
	{"parent.rename", "eth1 gets another name, and its own again", "DEL goes on; containers are reached again", 2, stays(renameParent)},
	{"parent.remove", "eth1 is removed, and made anew", "DEL goes on where links are gone", 1, stays(removeParent)},
	{"rules.flush", "all nftables are flushed, and others make theirs again, or ours are deleted", "ours are back", 2, stays(flushRules)},
	{"routes.delete", "our routes to peers are deleted", "they are back", 2, stays(deleteRoutes)},
	{"fdb.delete", "FDB entries and neighbours of peers are deleted", "they are back", 2, stays(deleteFDB)},
	{"vxlan.delete", "a VXLAN device is deleted", "it is back with its peers", 1, stays(deleteVXLAN)},
}

// ofCluster are the faults of what hosts share.
var ofCluster = []fault{
	{"member.kill", "one member of etcd gets SIGKILL, or most of them", "hosts go on with what they lease", 2, killMembers},
	{"wire.cut", "a host, or a member of etcd, is cut off", "it goes on with what it leases", 3, cutWire},
}

// stays is a fault during which the host is not started again.
func stays(do func(*nemesis, *host) error) func(*nemesis, *host) error {
	return func(n *nemesis, h *host) error {
		h.stay.RLock()
		defer h.stay.RUnlock()
		return do(n, h)
	}
}

func killAgent(n *nemesis, h *host) error {
	h.End(syscall.SIGKILL)
	n.rest(0, 3*time.Second)
	h.Start()
	return nil
}

func stopAgent(n *nemesis, h *host) error {
	h.End(syscall.SIGTERM)
	n.rest(0, 3*time.Second)
	h.Start()
	return nil
}

func freezeAgent(n *nemesis, h *host) error {
	h.Signal(syscall.SIGSTOP)
	least, most := 300*time.Millisecond, 4*time.Second
	if n.choose.IntN(3) == 0 {
		least, most = 6*time.Second, 15*time.Second // DELs give up, and its session may end
	}
	n.rest(least, most)
	h.Signal(syscall.SIGCONT)
	return nil
}

// jumps are where clocks are set to.
var jumps = []time.Duration{2 * time.Minute, -2 * time.Minute, 3 * time.Hour, -3 * time.Hour, 10 * 24 * time.Hour, -10 * 24 * time.Hour}

func setClock(n *nemesis, h *host) error {
	h.Ahead(jumps[n.choose.IntN(len(jumps))])
	n.rest(time.Second, 5*time.Second)
	h.Ahead(0)
	return nil
}

func killMembers(n *nemesis, _ *host) error {
	order := n.choose.Perm(cluster.Members)[:1+n.choose.IntN(5)/4]
	for _, i := range order {
		n.c.Members[i].End(syscall.SIGKILL)
	}
	n.rest(500*time.Millisecond, 6*time.Second)
	for _, i := range order {
		n.c.Members[i].Start()
	}
	return nil
}

func cutWire(n *nemesis, _ *host) error {
	p := n.c.Members[n.choose.IntN(cluster.Members)]
	if n.choose.IntN(2) == 0 {
		h := n.hosts[n.choose.IntN(len(n.hosts))]
		h.stay.RLock()
		defer h.stay.RUnlock()
		h.wire.Lock() // else it may be gone
		defer h.wire.Unlock()
		p = h.Process
	}
	n.note(p.Name, "is cut off")
	p.Cut(true)
	n.rest(time.Second, 8*time.Second)
	p.Cut(false)
	return nil
}

// deleteNetns picks a container of which nobody asks anything right now, or
// takes the namespace away in the middle of a call.
func deleteNetns(n *nemesis, h *host) error {
	all := h.known()
	if len(all) == 0 {
		return nil
	}
	a := all[n.choose.IntN(len(all))]
	idle := a.mu.TryLock()
	if idle {
		defer a.mu.Unlock()
	}
	h.gate.RLock()
	defer h.gate.RUnlock()
	if !a.delete() {
		return nil
	}
	n.note(h.Name, "namespace of %s is deleted, idle %v", a, idle)
	if idle && n.choose.IntN(3) == 0 {
		n.note(h.Name, "nobody will DEL %s", a)
		h.forget(a)
	}
	return nil
}
