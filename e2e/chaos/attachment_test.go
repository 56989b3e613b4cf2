package chaos_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// enough is more than a call takes, on a busy machine and with an agent that
// stands still.
const enough = 2 * time.Minute

// points are where a plugin may die.
var points = []string{
	"ledger.commit.begin", "ledger.commit.durable", "ledger.commit.marked", "ledger.spool.written", "ledger.spool.named",
	"ledger.drain.applied", "#1", "#2", "#3", "#4", "#5", "#6", "#7", "#8", "#9",
}

// outcome is what a runtime knows of a call.
type outcome string

const (
	ok     outcome = "ok"
	failed outcome = "failed"
	killed outcome = "killed"
)

// attachment is as its runtime knows it.
type attachment struct {
	h    *host
	kind *kind
	conf string
	box  *lab.Container
	rt   *libcni.RuntimeConf

	// worker is whose it is.
	worker string
	// boot of the host that the container was made in.
	boot int32
	// deleted: its namespace was.
	deleted atomic.Bool

	mu    sync.Mutex // one call at a time
	addrs []netip.Addr
	// port is the host's eth1 of its first ADD, by number.
	port int32
	// spoilt: the ledger knows of it no more.
	spoilt atomic.Bool
}

// gone: there is no namespace any more.
func (a *attachment) gone() bool { return a.deleted.Load() || a.boot != a.h.boot.Load() }

// broken: its link is gone, or its record, and there is nothing left to do but a
// DEL.
func (a *attachment) broken() bool {
	return a.gone() || a.spoilt.Load() || a.kind.onParent && a.port != a.h.port.Load()
}

func (a *attachment) String() string {
	return fmt.Sprintf("%s/%s %v", a.kind.name, a.box.Name, a.addrs)
}

// add is an ADD, of which nothing is left if it fails.
func (a *attachment) add(choose *rand.Rand, calm bool) (outcome, error) {
	if !a.h.know(a, true) {
		a.port = a.h.port.Load()
	}
	var result *current.Result
	o, err := a.call("ADD", choose, calm, func(ctx context.Context, cni *lab.CNI) (err error) {
		result, err = cni.Add(ctx, a.conf, a.rt)
		return err
	})
	if o != ok {
		if o == failed && len(a.addrs) == 0 && a.kind.whole {
			if names := a.links(); names != "lo" && !a.gone() {
				a.h.x.fail(a.h.Name, "ADD %s failed and left %s: %v", a, names, err)
			}
		}
		return o, err
	}
	var addrs []netip.Addr
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		addrs = append(addrs, addr.Unmap())
	}
	if len(a.addrs) > 0 && fmt.Sprint(a.addrs) != fmt.Sprint(addrs) {
		a.h.x.fail(a.h.Name, "a repeated ADD of %s gives %v", a, addrs)
	}
	a.addrs = addrs
	if other := a.h.x.holders.claim(a); other != nil {
		a.h.x.both("an ADD has given out an", a, other)
	}
	if a.gone() {
		a.h.x.holders.leave(a) // since then
	}
	return ok, nil
}

// del is a DEL, from the begin of which others may have the addresses.
func (a *attachment) del(choose *rand.Rand, calm bool) outcome {
	a.h.x.holders.leave(a)
	o, err := a.call("DEL", choose, calm, func(ctx context.Context, cni *lab.CNI) error {
		rt := *a.rt
		if a.gone() && choose.IntN(2) == 0 {
			rt.NetNS = ""
		}
		return cni.Del(ctx, a.conf, &rt)
	})
	switch o {
	case failed:
		// The reference fails where a namespace is about to go; it is tried again.
		if !a.kind.others {
			a.h.x.fail(a.h.Name, "DEL %s: %v", a, err)
		}
	case ok:
		a.h.know(a, false)
		if names := a.links(); names != "lo" && !a.gone() {
			a.h.x.fail(a.h.Name, "DEL %s left %s", a, names)
		}
	}
	return o
}

// delBefore is a DEL without a namespace of what was never attached, which
// nerdctl sends before each ADD.
func (a *attachment) delBefore(choose *rand.Rand) {
	o, err := a.call("DEL", choose, false, func(ctx context.Context, cni *lab.CNI) error {
		rt := *a.rt
		rt.NetNS = ""
		return cni.Del(ctx, a.conf, &rt)
	})
	if o == failed && !a.kind.others {
		a.h.x.fail(a.h.Name, "DEL %s before its ADD: %v", a, err)
	}
}

func (a *attachment) check(choose *rand.Rand, calm bool) (outcome, error) {
	return a.call("CHECK", choose, calm, func(ctx context.Context, cni *lab.CNI) error { return cni.Check(ctx, a.conf, a.rt) })
}

// call runs the plugins, which may be killed unless it is calm.
func (a *attachment) call(verb string, choose *rand.Rand, calm bool, f func(context.Context, *lab.CNI) error) (o outcome, err error) {
	a.h.gate.RLock()
	defer a.h.gate.RUnlock()
	long, cancel := context.WithTimeout(context.Background(), enough)
	defer cancel()
	ctx, how := long, ""
	cni := a.h.CNI(bin)
	cni.Env = a.h.Env
	switch {
	case calm:
	case choose.IntN(8) == 0:
		most := 40 * time.Millisecond
		if choose.IntN(3) == 0 {
			most = 3 * time.Second // while it waits for others
		}
		after := time.Duration(choose.Int64N(int64(most)))
		how = fmt.Sprint(" to be killed after ", after.Round(time.Millisecond))
		ctx, cancel = context.WithTimeout(ctx, after)
		defer cancel()
	case choose.IntN(8) == 0:
		at := points[choose.IntN(len(points))]
		how = " to die at " + at
		cni.Env = append(append([]string{}, a.h.Env...), "UNDERLAY_FAULT="+at)
	}
	began := time.Now()
	err = f(ctx, cni)
	switch {
	case err == nil:
		o = ok
	case how != "" && died(ctx, err):
		o = killed
	default:
		o = failed
	}
	a.h.x.count(verb + " " + string(o))
	what := ""
	if o == failed {
		what = ": " + err.Error()
	}
	if !calm || o == ok { // else it is tried again, and told if that is in vain
		a.h.x.note(a.h.Name, "%s %s%s: %s in %s%s", verb, a, how, o, time.Since(began).Round(time.Millisecond), what)
	}
	if long.Err() != nil {
		a.h.x.fail(a.h.Name, "%s %s has no answer", verb, a)
	}
	return o, err
}

// died: the plugin, or another one of its chain, was killed.
func died(ctx context.Context, err error) bool {
	return ctx.Err() != nil || strings.Contains(err.Error(), "signal: killed") || strings.Contains(err.Error(), "netplugin failed")
}

// links are the names of what is in the container, which may go meanwhile.
func (a *attachment) links() string {
	list, err := a.box.Links(context.Background())
	if err != nil {
		return err.Error()
	}
	var names []string
	for _, l := range list {
		names = append(names, l.Name)
	}
	return strings.Join(names, " ")
}

// know puts an attachment into the runtime's books, or takes it out, and says
// whether it was there.
func (h *host) know(a *attachment, alive bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.live[a]
	delete(h.lost, a)
	if alive {
		h.live[a] = true
	} else {
		delete(h.live, a)
	}
	return was
}

// known are the attachments in the runtime's books, in order.
func (h *host) known() (list []*attachment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for a := range h.live {
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b *attachment) int { return strings.Compare(a.box.Name, b.box.Name) })
	return list
}

// delete deletes the container's namespace, unless somebody has.
func (a *attachment) delete() bool {
	if a.gone() || a.deleted.Swap(true) {
		return false
	}
	// Whoever sweeps leaks may let others have them.
	a.h.x.holders.leave(a)
	if err := a.box.Remove(context.Background()); err != nil {
		a.h.x.fail(a.h.Name, "%v", err)
	}
	return true
}

// forget: the namespace of an attachment was deleted, and nobody sends a DEL.
func (h *host) forget(a *attachment) {
	h.x.holders.leave(a)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.live, a)
	h.lost[a] = true
}
