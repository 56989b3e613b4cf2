package chaos_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// worker begins and ends the lives of attachments on its host, a few at a time.
type worker struct {
	*host
	name   string
	choose *rand.Rand
	mine   []*attachment
	made   int
}

// run goes on until the round is over. What lives then lives on.
func (w *worker) run(round int) {
	w.name = fmt.Sprintf("%sr%d", w.name, round)
	for _, a := range w.known() {
		if a.worker == w.name[:2] {
			w.mine = append(w.mine, a) // of an earlier round
		}
	}
	for !w.x.over() && !w.x.t.Failed() {
		w.step()
		time.Sleep(time.Duration(w.choose.Int64N(int64(400 * time.Millisecond))))
	}
}

func (w *worker) step() {
	w.mine = slices.DeleteFunc(w.mine, func(a *attachment) bool { return !w.has(a) })
	if len(w.mine) == 0 || len(w.mine) < 4 && w.choose.IntN(3) == 0 {
		w.begin()
		return
	}
	a := w.mine[w.choose.IntN(len(w.mine))]
	a.mu.Lock()
	defer a.mu.Unlock()
	switch n := w.choose.IntN(20); {
	case a.broken(), n < 5:
		a.end(w.choose, false)
	case n < 8 && !a.kind.others:
		if o, _ := a.add(w.choose, false); o != ok {
			a.end(w.choose, false) // as a runtime does
		}
	case n == 8:
		w.collect(a.kind, false)
	case n == 9:
		w.status(a.kind)
	case n == 10:
		// A container that is started again.
		if !a.detach(w.choose, false) {
			return
		}
		a.addrs = nil
		if o, _ := a.add(w.choose, false); o != ok {
			a.end(w.choose, false)
		}
	default:
		_, _ = a.check(w.choose, false)
	}
}

func (h *host) has(a *attachment) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.live[a]
}

// begin is the ADD of a new container.
func (w *worker) begin() {
	k := kinds[w.choose.IntN(len(kinds))]
	w.made++
	a, err := w.attachment(k, fmt.Sprintf("%sx%d", w.name, w.made), w.choose)
	if err != nil {
		w.x.fail(w.Name, "%v", err)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if w.choose.IntN(4) == 0 {
		a.delBefore(w.choose)
	}
	switch o, _ := a.add(w.choose, false); {
	case o == ok:
		w.mine = append(w.mine, a)
	case o == failed && k.whole && !a.gone() && w.choose.IntN(2) == 0:
		// Of an ADD that fails nothing is left: no DEL is needed.
		w.know(a, false)
		a.remove()
	default:
		a.end(w.choose, false)
	}
}

// attachment makes a container that is attached to nothing.
func (h *host) attachment(k *kind, name string, choose *rand.Rand) (*attachment, error) {
	h.gate.RLock()
	defer h.gate.RUnlock()
	box, err := h.AddContainer(context.Background(), name)
	if err != nil {
		return nil, err
	}
	a := &attachment{h: h, kind: k, conf: k.conf(h.n, choose), box: box, rt: box.Runtime(), worker: name[:2], boot: h.boot.Load()}
	if k.onParent && choose.IntN(2) == 0 {
		// Else the MAC follows from the address, and the kernel, which has each
		// MAC once on a parent, would see to it that the address is, too.
		b := choose.Uint32()
		a.rt.Args = [][2]string{{"MAC", fmt.Sprintf("02:%02x:00:%02x:%02x:%02x", h.n, byte(b>>16), byte(b>>8), byte(b))}}
	}
	return a, nil
}

// detach is as many DELs as it takes to have one answered.
func (a *attachment) detach(choose *rand.Rand, calm bool) bool {
	for tries := 0; a.del(choose, calm) != ok; tries++ {
		if tries == 30 {
			a.h.x.fail(a.h.Name, "no DEL of %s of 30 is ok", a)
			return false
		}
		time.Sleep(50 * time.Millisecond)
	}
	return true
}

// end detaches; then the container goes.
func (a *attachment) end(choose *rand.Rand, calm bool) {
	if !a.detach(choose, calm) {
		return
	}
	if choose.IntN(4) == 0 { // nobody knows it any more, and that is no reason to complain
		a.del(choose, calm)
	}
	a.remove()
}

// remove deletes the container's namespace.
func (a *attachment) remove() {
	a.h.gate.RLock()
	defer a.h.gate.RUnlock()
	a.delete()
}

// status is asked by runtimes all the time, which change nothing by it.
func (w *worker) status(k *kind) {
	w.gate.RLock()
	defer w.gate.RUnlock()
	ctx, cancel := after(enough)
	defer cancel()
	cni := w.CNI(bin)
	cni.Env = w.Env
	err := cni.Status(ctx, k.conf(w.n, w.choose))
	w.x.count(fmt.Sprintf("STATUS %v", map[bool]outcome{true: ok, false: failed}[err == nil]))
	if ctx.Err() != nil {
		w.x.fail(w.Name, "STATUS of %s has no answer", k.name)
	}
}

// collect is GC of a network: all that the runtime knows is valid, and what was
// lost if that is to be left to the agent.
func (h *host) collect(k *kind, lost bool) {
	if k.others {
		return
	}
	h.gate.Lock() // what is added meanwhile would be on no list
	defer h.gate.Unlock()
	var valid []types.GCAttachment
	all := h.known()
	if lost {
		h.mu.Lock()
		all = slices.AppendSeq(all, maps.Keys(h.lost))
		h.mu.Unlock()
	}
	for _, a := range all {
		if a.kind == k {
			valid = append(valid, types.GCAttachment{ContainerID: a.rt.ContainerID, IfName: a.rt.IfName})
		}
	}
	ctx, cancel := after(enough)
	defer cancel()
	cni := h.CNI(bin)
	cni.Env = h.Env
	err := cni.GC(ctx, k.conf(h.n, rand.New(rand.NewPCG(1, 1))), valid...)
	h.x.count(fmt.Sprintf("GC %v", map[bool]outcome{true: ok, false: failed}[err == nil]))
	h.x.note(h.Name, "GC %s but %d: %v", k.name, len(valid), err)
}
