package segment

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/neigh"
)

// TestRandom: whatever has come, gone, moved, died, been cut off or damaged, all
// nodes end up with what is on record, and no more.
func TestRandom(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { newCrowd(t, seed).play(40) })
		})
	}
}

// crowd are nodes in one segment, and endpoints that each are on one of them, or on
// none.
type crowd struct {
	t     *testing.T
	r     *rand.Rand
	store *memstore.Store
	desks []*desk
	ends  []func() // nil of an agent that does not run
	on    []int    // by endpoint; -1 is none
	cut   map[string]bool
	done  []string
}

func newCrowd(t *testing.T, seed uint64) *crowd {
	c := &crowd{t: t, r: rand.New(rand.NewPCG(seed, 1)), store: memstore.New(), on: slices.Repeat([]int{-1}, 6), cut: make(map[string]bool)}
	for i := range 3 {
		d := newDeskOf(t, i+1, c.store.As(fmt.Sprint("n", i+1)), nil)
		put(t, d.ledger, "stays", "", made()) // so that all are in it at the end
		c.desks, c.ends = append(c.desks, d), append(c.ends, d.run())
	}
	return c
}

func (c *crowd) endpoint(e int) (id, mac, addr string) {
	return fmt.Sprint("c", e), fmt.Sprintf("02:00:00:00:01:%02x", e), fmt.Sprint("10.9.1.", e+1)
}

// move takes an endpoint from where it is, to a node or, with -1, to none.
func (c *crowd) move(e, to int) {
	id, mac, addr := c.endpoint(e)
	if from := c.on[e]; from >= 0 {
		release(c.t, c.desks[from].ledger, "red", id)
		c.desks[from].Stir()
	}
	if c.on[e] = to; to >= 0 {
		put(c.t, c.desks[to].ledger, id, mac, in(), addr)
		c.desks[to].Stir()
	}
}

func (c *crowd) rig() {
	c.store.Rig(func(r memstore.Request) memstore.Fault {
		switch {
		case !c.cut[r.Client]:
			return memstore.Deliver
		case r.Kind == "swap" && len(r.Value)%2 == 0:
			return memstore.Lose
		}
		return memstore.Fail
	})
}

func (c *crowd) step() {
	n := c.r.IntN(len(c.desks))
	d := c.desks[n]
	say := func(format string, args ...any) { c.done = append(c.done, fmt.Sprintf(format, args...)) }
	switch c.r.IntN(10) {
	case 0, 1, 2, 3:
		e, to := c.r.IntN(len(c.on)), c.r.IntN(len(c.desks)+1)-1
		say("c%d to n%d", e, to+1)
		c.move(e, to)
	case 4:
		if c.ends[n] != nil {
			say("n%d ends", n+1)
			c.ends[n]()
			c.ends[n] = nil
		} else {
			say("n%d comes", n+1)
			d.anew()
			c.ends[n] = d.run()
		}
	case 5:
		name := fmt.Sprint("n", n+1)
		on := !c.cut[name]
		say("%s is cut off: %v", name, on)
		synctest.Wait()
		c.store.Rig(nil)
		c.cut[name] = on
		c.rig()
	case 6:
		say("watches break, and what was before is forgotten")
		c.store.Compact(1 << 62)
		c.store.Break()
	case 7:
		say("the record of n%d is damaged", n+1)
		c.store.Put(record.SegmentKey(vni, idOf(n+1)), []byte("odd"))
	case 8:
		say("the devices of n%d go", n+1)
		d.set(func() { d.kernelLocked(vni).DeleteDevice("vx7") })
		d.hear()
	case 9:
		say("somebody sets an entry on n%d", n+1)
		d.set(func() {
			_ = d.kernelLocked(vni).Put(neigh.Entry{Kind: neigh.Master, Dev: "vx7", MAC: neigh.MAC{2, 9}})
		})
	}
	time.Sleep(time.Duration(c.r.IntN(400)) * time.Millisecond)
}

func (c *crowd) play(steps int) {
	for range steps {
		c.step()
	}
	synctest.Wait()
	c.store.Rig(nil)
	for n, d := range c.desks {
		if c.ends[n] == nil {
			d.anew()
			c.ends[n] = d.run()
		}
	}
	time.Sleep(time.Minute)
	synctest.Wait()
	for n, d := range c.desks {
		if got, want := d.kernel(), c.want(n); got != want {
			c.t.Errorf("n%d: got\n%s\nwant\n%s", n+1, got, want)
		}
		counts := d.entryCounts()
		d.hear()
		time.Sleep(time.Second)
		synctest.Wait()
		if now := d.entryCounts(); now != counts {
			c.t.Errorf("n%d: %d entries were written of what is as it should be", n+1, now-counts)
		}
		c.ends[n]()
	}
	if c.t.Failed() {
		c.t.Log(strings.Join(c.done, "\n"))
	}
}

// want is what has to be in the kernel of a node.
func (c *crowd) want(n int) string {
	var lines []string
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format+"\n", args...)) }
	for i := range c.desks {
		if i != n {
			say("self 00:00:00:00:00:00 dev vx7 dst 192.0.2.%d", i+1)
		}
	}
	for e, on := range c.on {
		_, mac, addr := c.endpoint(e)
		switch {
		case on < 0:
			continue
		case on == n:
			say("master %s dev lp7", mac)
		default:
			say("master %s dev vx7", mac)
			say("self %s dev vx7 dst 192.0.2.%d", mac, on+1)
		}
		say("%s dev br7 lladdr %s", addr, mac)
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// entryCounts is how many entries the task has written.
func (d *desk) entryCounts() uint64 {
	for _, p := range d.all() {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.entries.(*neigh.Reconciler).Counts().Written
	}
	return 0
}
