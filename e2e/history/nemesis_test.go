package history_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/underlay-cni/underlay/e2e/cluster"
)

// jumps are where clocks are set to.
var jumps = []time.Duration{
	0, 2 * time.Minute, -2 * time.Minute, 20 * time.Minute, -20 * time.Minute, 3 * time.Hour, -3 * time.Hour, 40 * time.Hour, -40 * time.Hour,
	10 * 24 * time.Hour, -10 * 24 * time.Hour,
}

// nemesis does harm until the load is over, and then makes it good.
type nemesis struct {
	*storm
	choose *rand.Rand
}

func (n *nemesis) between(least, most time.Duration) time.Duration {
	return least + time.Duration(n.choose.Int64N(int64(most-least)))
}

// rest is between two deeds, and shorter when the load ends.
func (n *nemesis) rest(least, most time.Duration) {
	for end := time.Now().Add(n.between(least, most)); time.Now().Before(end) && !n.over(); {
		time.Sleep(20 * time.Millisecond)
	}
}

// harm lets all loose, each with choices of its own.
func (s *storm) harm(wg *sync.WaitGroup) {
	deeds := []func(*nemesis){(*nemesis).killMembers, (*nemesis).cut, (*nemesis).cut, (*nemesis).setClocks, (*nemesis).shift}
	for _, n := range s.bed.Nodes {
		deeds = append(deeds, func(x *nemesis) { x.disturb(n) })
	}
	for i, deed := range deeds {
		n := &nemesis{s, rand.New(rand.NewPCG(s.seed, uint64(i)))}
		wg.Go(func() { deed(n) })
	}
}

// disturb is what happens to an agent.
func (n *nemesis) disturb(a *cluster.Node) {
	for !n.over() {
		n.rest(time.Second, 8*time.Second)
		switch n.choose.IntN(6) {
		case 0:
			n.count("agent killed")
			a.End(syscall.SIGKILL)
			n.rest(0, 2*time.Second)
		case 1:
			n.count("agent stopped")
			a.End(syscall.SIGTERM)
			n.rest(0, 2*time.Second)
		case 2, 3:
			n.count("agent frozen")
			least, most := 300*time.Millisecond, 4*time.Second
			if n.choose.IntN(2) == 0 {
				least, most = 6*time.Second, 25*time.Second // DELs give up, and its session may end
			}
			a.Signal(syscall.SIGSTOP)
			n.rest(least, most)
			a.Signal(syscall.SIGCONT)
			continue
		default:
			a.End(syscall.SIGKILL)
			at := points[n.choose.IntN(3)]
			if n.choose.IntN(2) == 0 {
				at = "ledger.intent.kept"
			}
			if n.choose.IntN(2) == 0 {
				at = fmt.Sprintf("#%d", 1+n.choose.IntN(200))
			}
			a.Start("UNDERLAY_FAULT=" + at)
			if a.Died(n.between(time.Second, 5*time.Second)) {
				n.count("agent died at a fault point")
			}
			a.End(syscall.SIGKILL)
		}
		a.Start()
	}
	a.Start()
}

// killMembers kills one member of the registry, or most of them.
func (n *nemesis) killMembers() {
	for !n.over() {
		n.rest(3*time.Second, 10*time.Second)
		order := n.choose.Perm(members)[:1+n.choose.IntN(5)/4]
		for _, i := range order {
			n.count("member killed")
			n.bed.Members[i].End(syscall.SIGKILL)
		}
		n.rest(500*time.Millisecond, 5*time.Second)
		for _, i := range order {
			n.bed.Members[i].Start()
		}
	}
}

// cut takes a node or a member off the wire.
func (n *nemesis) cut() {
	for !n.over() {
		n.rest(2*time.Second, 10*time.Second)
		p := n.bed.Members[n.choose.IntN(members)]
		if n.choose.IntN(2) == 0 {
			p = n.bed.Nodes[n.choose.IntN(hosts)].Process
		}
		n.count("partition")
		p.Cut(true)
		n.rest(time.Second, 10*time.Second)
		p.Cut(false)
	}
}

// setClocks has the clock of one node jump.
func (n *nemesis) setClocks() {
	for !n.over() {
		n.rest(300*time.Millisecond, 3*time.Second)
		n.count("clock set")
		n.bed.Nodes[n.choose.IntN(hosts)].Ahead(jumps[n.choose.IntN(len(jumps))])
	}
}

// shift moves the load: the workers of a host pause, and what that host leases
// others need.
func (n *nemesis) shift() {
	for !n.over() {
		host := n.choose.IntN(hosts)
		n.paused[host].Store(true)
		n.rest(2*time.Second, 6*time.Second)
		n.paused[host].Store(false)
		n.rest(time.Second, 3*time.Second)
	}
}
