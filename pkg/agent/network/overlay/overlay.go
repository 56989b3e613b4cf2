// Package overlay keeps what the networks of a plan with VXLAN need on this host
// beside routes: a device for each, and in it the neighbours and FDB entries of
// all peers. A device that is another one than it has to be, or gone, is mended
// when Apply is called again; entries that go are back without.
//
// Nothing is removed when the agent ends; what an earlier one has left, and
// nobody wants, goes with the first Sweep.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/underlay-cni/underlay/pkg/agent/network/plan"
	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// Keeper keeps the overlays of a namespace. It is safe for concurrent use.
type Keeper struct {
	ns *netns.NS // nil: that of the process
	// broken is called when a device's entries are no longer kept, until the next
	// Apply.
	broken func()

	mu    sync.Mutex
	kept  map[int]*kept // by VNI
	swept bool          // what an earlier agent has left
}

// kept is one that was wanted by the last Apply.
type kept struct {
	network string
	entries []neigh.Want
	partial bool
	given   bool  // entries have been
	err     error // of the device
	rec     *neigh.Reconciler
	stop    func()
}

// New keeps overlays in a namespace, which has to stay open; nil means that of
// the process.
func New(ns *netns.NS, broken func()) *Keeper {
	return &Keeper{ns: ns, broken: broken, kept: make(map[int]*kept)}
}

// Apply makes the devices as they are wanted, and then their entries, which are
// kept until ctx ends. The error joins what is wrong with the devices; Status
// tells of the entries.
func (k *Keeper) Apply(ctx context.Context, want []plan.Overlay) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.moveLocked(want); err != nil {
		return err
	}
	var errs []error
	for _, o := range want {
		one := k.kept[o.Device.VNI]
		if one == nil {
			one = &kept{}
			k.kept[o.Device.VNI] = one
		}
		one.network = o.Device.Network
		if one.err = k.applyLocked(ctx, one, o); one.err != nil {
			errs = append(errs, fmt.Errorf("network %q: %w", one.network, one.err))
		}
	}
	return errors.Join(errs...)
}

// moveLocked removes the device of a network that has another VNI now: its name
// is the new one's.
func (k *Keeper) moveLocked(want []plan.Overlay) error {
	if !slices.ContainsFunc(want, func(o plan.Overlay) bool { return k.kept[o.Device.VNI] == nil }) {
		return nil
	}
	there, err := vxlan.Networks(k.ns)
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range want {
		for vni, network := range there {
			if network == o.Device.Network && vni != o.Device.VNI {
				errs = append(errs, k.removeLocked(vni))
			}
		}
	}
	return errors.Join(errs...)
}

func (k *Keeper) applyLocked(ctx context.Context, one *kept, o plan.Overlay) error {
	made, err := o.Device.Apply(k.ns)
	if err != nil {
		return err
	}
	if one.rec == nil {
		if err := k.openLocked(ctx, one, o.Device.VNI); err != nil {
			return err
		}
	}
	if made || !one.given || one.partial != o.Partial || !slices.Equal(one.entries, o.Entries) {
		one.entries, one.partial, one.given = o.Entries, o.Partial, true
		// What became of each is in the status.
		if o.Partial {
			_ = one.rec.Amend(ctx, o.Entries)
		} else {
			_ = one.rec.Apply(ctx, o.Entries)
		}
	}
	return one.rec.Err()
}

// openLocked has the entries of a device kept until ctx ends.
func (k *Keeper) openLocked(ctx context.Context, one *kept, vni int) error {
	rec, err := neigh.New(neigh.Config{Netns: k.ns, Devices: []string{vxlan.Name(vni)}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		err := rec.Run(ctx)
		close(ended) // for stop, whose caller has what forget waits for
		if err != nil {
			k.forget(vni, rec)
		}
	}()
	one.rec, one.given = rec, false
	one.stop = func() {
		cancel()
		<-ended
		_ = rec.Close()
	}
	return nil
}

// forget: the next Apply starts anew with the entries of a device.
func (k *Keeper) forget(vni int, rec *neigh.Reconciler) {
	k.mu.Lock()
	if one := k.kept[vni]; one != nil && one.rec == rec {
		one.rec = nil
		_ = rec.Close()
	}
	k.mu.Unlock()
	k.broken()
}

// Sweep removes the devices of networks that are not wanted. It comes after the
// routes through them have gone.
func (k *Keeper) Sweep(want []plan.Overlay) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	there := make(map[int]string)
	var err error
	if !k.swept {
		there, err = vxlan.Networks(k.ns)
		k.swept = err == nil
	}
	for vni, one := range k.kept {
		there[vni] = one.network
	}
	errs := []error{err}
	for vni := range there {
		if !slices.ContainsFunc(want, func(o plan.Overlay) bool { return o.Device.VNI == vni }) {
			errs = append(errs, k.removeLocked(vni))
		}
	}
	return errors.Join(errs...)
}

func (k *Keeper) removeLocked(vni int) error {
	if one := k.kept[vni]; one != nil && one.rec != nil {
		one.stop()
	}
	delete(k.kept, vni)
	return vxlan.Remove(k.ns, vni)
}

// Err says why the device of a VNI is not as it has to be; nil if it is.
func (k *Keeper) Err(vni int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	one := k.kept[vni]
	if one == nil {
		return fmt.Errorf("VXLAN device %s: it has not been made yet", vxlan.Name(vni))
	}
	return one.err
}

// Status tells what has become of each entry of a VNI.
func (k *Keeper) Status(vni int) []neigh.Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	if one := k.kept[vni]; one != nil && one.rec != nil {
		return one.rec.Status()
	}
	return nil
}

// Close ends what keeps the entries; they stay.
func (k *Keeper) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for vni, one := range k.kept {
		if one.rec != nil {
			one.stop()
		}
		delete(k.kept, vni)
	}
}
