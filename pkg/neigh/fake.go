package neigh

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// Fake is the kernel's table without a kernel, for tests: it has devices and
// permanent entries, refuses what the kernel refuses, and loses entries where
// the kernel does. The zero value is ready. It is safe for concurrent use.
type Fake struct {
	reconcile.Herald

	mu      sync.Mutex
	devices map[string]FakeDevice
	entries []Entry
	fail    error
}

// FakeDevice is what matters of a device.
type FakeDevice struct {
	// VXLAN: it has an FDB of its own, of IPv4 VTEPs, or of IPv6 ones.
	VXLAN, IPv6 bool
	// Port: it is a port of a bridge.
	Port bool
}

var _ Kernel = (*Fake)(nil)

// List implements Kernel.
func (f *Fake) List(ctx context.Context) ([]Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := errors.Join(ctx.Err(), f.fail); err != nil {
		return nil, fmt.Errorf("list neighbours and FDB: %w", err)
	}
	return slices.Clone(f.entries), nil
}

// Change implements Kernel.
func (f *Fake) Change(ctx context.Context, changes []reconcile.Change[Entry]) ([]error, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := errors.Join(ctx.Err(), f.fail); err != nil {
		return nil, fmt.Errorf("change neighbours and FDB: %w", err)
	}
	verdicts := make([]error, len(changes))
	for i, c := range changes {
		if c.Verb == reconcile.Delete {
			f.loseLocked(func(e Entry) bool { return e == c.Old })
		} else if err := f.setLocked(c.New); err != nil {
			verdicts[i] = explain(c, err)
		}
	}
	return verdicts, nil
}

func (f *Fake) setLocked(e Entry) error {
	d, ok := f.devices[e.Dev]
	switch {
	case !ok:
		return fmt.Errorf("look up interface %q: %w", e.Dev, nlsock.ErrNoInterface)
	case e.Kind == Self && !d.VXLAN:
		return nil // a MAC that the device listens to as well, and no entry of ours
	case e.Kind == Self && d.IPv6 != e.Addr.Is6():
		return unix.EAFNOSUPPORT
	case e.Kind == Master && !d.Port:
		return unix.EOPNOTSUPP
	}
	if i := slices.IndexFunc(f.entries, func(o Entry) bool { return o.Key() == e.Key() }); i >= 0 {
		f.entries[i] = e
	} else {
		f.entries = append(f.entries, e)
	}
	return nil
}

// Close implements Kernel.
func (f *Fake) Close() error { return nil }

func (f *Fake) loseLocked(lost func(Entry) bool) { f.entries = slices.DeleteFunc(f.entries, lost) }

// Fail makes List and Change fail with err; nil ends that.
func (f *Fake) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

// SetDevice makes a device, or changes it: one that leaves its bridge loses its
// entries there.
func (f *Fake) SetDevice(name string, d FakeDevice) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.devices == nil {
		f.devices = make(map[string]FakeDevice)
	}
	f.devices[name] = d
	f.loseLocked(func(e Entry) bool { return e.Dev == name && e.Kind == Master && !d.Port })
	f.Tell(reconcile.Around)
}

// DeleteDevice removes a device with all its entries.
func (f *Fake) DeleteDevice(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.devices, name)
	f.loseLocked(func(e Entry) bool { return e.Dev == name })
	f.Tell(reconcile.Around)
}

// Down sets a device down: it loses its neighbours, and keeps its FDB.
func (f *Fake) Down(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loseLocked(func(e Entry) bool { return e.Dev == name && e.Kind == Neighbour })
	f.Tell(reconcile.Around)
}

// Put sets an entry as others do.
func (f *Fake) Put(e Entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.setLocked(e); err != nil {
		return err
	}
	f.Tell(reconcile.Ours)
	return nil
}

// Delete removes an entry as others do.
func (f *Fake) Delete(e Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loseLocked(func(o Entry) bool { return o == e })
	f.Tell(reconcile.Ours)
}

// String lists the entries, sorted, one a line.
func (f *Fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return list(f.entries)
}

func list(entries []Entry) string {
	var lines []string
	for _, e := range entries {
		lines = append(lines, e.String()+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
