package overlay

import (
	"context"
	"sync"

	"github.com/underlay-cni/underlay/pkg/agent/network/plan"
	"github.com/underlay-cni/underlay/pkg/neigh"
)

// Fake takes every overlay, without a kernel, for tests. It is safe for concurrent
// use; the zero value has none.
type Fake struct {
	mu   sync.Mutex
	have map[int]plan.Overlay // by VNI
	errs map[int]error
}

// Fail has the device of a VNI fail; nil has it work again.
func (f *Fake) Fail(vni int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.errs == nil {
		f.errs = make(map[int]error)
	}
	f.errs[vni] = err
}

// Apply does what Keeper's does.
func (f *Fake) Apply(_ context.Context, want []plan.Overlay) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.have == nil {
		f.have = make(map[int]plan.Overlay)
	}
	var err error
	for _, o := range want {
		if e := f.errs[o.Device.VNI]; e != nil {
			err = e
			continue
		}
		f.have[o.Device.VNI] = o
	}
	return err
}

// Sweep does what Keeper's does.
func (f *Fake) Sweep(want []plan.Overlay) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	keep := make(map[int]bool)
	for _, o := range want {
		keep[o.Device.VNI] = true
	}
	for vni := range f.have {
		if !keep[vni] {
			delete(f.have, vni)
		}
	}
	return nil
}

// Err does what Keeper's does.
func (f *Fake) Err(vni int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.errs[vni]
}

// Status does what Keeper's does.
func (f *Fake) Status(vni int) (out []neigh.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.have[vni].Entries {
		out = append(out, neigh.Status{Want: w})
	}
	return out
}

// Close does nothing.
func (f *Fake) Close() {}
