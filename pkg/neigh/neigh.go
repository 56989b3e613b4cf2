// Package neigh keeps the permanent neighbours and the FDB entries of devices
// as they are wanted. The three kinds are one table to the kernel, and one form
// here: an address, a MAC, a device.
//
// Of the devices that a Reconciler is given, all permanent neighbours, all
// permanent entries of a VXLAN device's own FDB and all static entries of a
// bridge are ours: what an earlier process left there and nobody wants goes.
// What the kernel has learned stays, and so do the entries of other devices.
//
// The package does not make devices, and leaves out entries with a VLAN, and
// VXLAN entries with a port, VNI or interface of their own.
package neigh

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// Kind says what an Entry means.
type Kind int

const (
	// Neighbour: Addr is at MAC, on Dev.
	Neighbour Kind = iota + 1
	// Self: frames for MAC that leave by Dev, a VXLAN device, go to the VTEP Addr.
	// With the zero MAC, it is all broadcast and whatever has no entry, which
	// goes to each such VTEP.
	Self
	// Master: frames for MAC leave the bridge by its port Dev.
	Master
)

// MAC is an Ethernet address.
type MAC [6]byte

// String spells it as usual.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// ParseMAC reads an Ethernet address.
func ParseMAC(s string) (m MAC, err error) {
	hw, err := net.ParseMAC(s)
	if err == nil && len(hw) != len(m) {
		err = fmt.Errorf("address %s: no Ethernet address", s)
	}
	if err != nil {
		return m, err
	}
	return MAC(hw), nil
}

// Entry is a neighbour or an FDB entry.
type Entry struct {
	Kind Kind
	// Dev is the name of the device.
	Dev string
	MAC MAC
	// Addr is unused with Master.
	Addr netip.Addr

	odd bool // has what this package leaves out
}

// Key is what the kernel has one entry for.
type Key struct {
	kind Kind
	dev  string
	mac  MAC
	addr netip.Addr
}

// Key implements reconcile.Object.
func (e Entry) Key() Key {
	switch {
	case e.Kind == Neighbour:
		return Key{kind: e.Kind, dev: e.Dev, addr: e.Addr}
	case e.flood():
		return Key{kind: e.Kind, dev: e.Dev, addr: e.Addr}
	}
	return Key{kind: e.Kind, dev: e.Dev, mac: e.MAC}
}

// flood reports whether there may be several of that MAC.
func (e Entry) flood() bool { return e.Kind == Self && e.MAC == MAC{} }

// Canonical is the entry as the kernel shows it, or an error that says why there
// is no such entry.
func (e Entry) Canonical() (Entry, error) {
	e.Addr = e.Addr.Unmap()
	switch {
	case e.Kind != Neighbour && e.Kind != Self && e.Kind != Master:
		return e, errors.New("the kind is missing")
	case e.Dev == "":
		return e, errors.New("the device is missing")
	case e.MAC[0]&1 != 0:
		return e, errors.New("the MAC is of a group")
	case e.MAC == MAC{} && e.Kind != Self:
		return e, errors.New("the MAC is missing")
	case e.Kind == Master && e.Addr.IsValid():
		return e, errors.New("a bridge knows no addresses")
	case e.Kind == Master:
		return e, nil
	case !e.Addr.IsValid() || e.Addr.IsUnspecified():
		return e, errors.New("the address is missing")
	case e.Addr.IsMulticast():
		return e, errors.New("the address is of a group")
	case e.Addr.Zone() != "":
		return e, errors.New("the zone belongs into the device")
	}
	return e, nil
}

// String spells the entry as iproute2 does, an FDB entry with its table first.
func (e Entry) String() string {
	s := ""
	switch e.Kind {
	case Neighbour:
		s = fmt.Sprintf("%s dev %s lladdr %s", e.Addr, e.Dev, e.MAC)
	case Self:
		s = fmt.Sprintf("self %s dev %s dst %s", e.MAC, e.Dev, e.Addr)
	case Master:
		s = fmt.Sprintf("master %s dev %s", e.MAC, e.Dev)
	default:
		s = fmt.Sprintf("kind %d %s dev %s", e.Kind, e.MAC, e.Dev)
	}
	if e.odd {
		s += " and more"
	}
	return s
}

// Config says which entries are kept.
type Config struct {
	// Devices are those whose entries are ours, by name. They need not be there
	// yet, and may be made anew. Required.
	Devices []string
	// Netns is the namespace; nil means that of the calling thread. It may be
	// closed after New.
	Netns *netns.NS
	// Kernel is another one than the real one, such as a Fake, to which Netns and
	// Devices do not apply. Optional.
	Kernel Kernel

	// Options as in reconcile.
	Retry, MaxRetry, Resync time.Duration
	Changed                 func(Status)
}

type (
	// Want is an entry, and the peer that it leads to.
	Want = reconcile.Want[Entry]
	// Status is what has become of a Want.
	Status = reconcile.Status[Entry]
	// Kernel is where the entries are.
	Kernel = reconcile.Kernel[Entry]
)

// Reconciler keeps entries.
type Reconciler struct {
	*reconcile.Reconciler[Key, Entry]
}

// New opens the kernel's table. It writes nothing before the first Apply.
func New(cfg Config) (*Reconciler, error) {
	kernel := cfg.Kernel
	if kernel == nil {
		if len(cfg.Devices) == 0 {
			return nil, errors.New("neighbours and FDB entries of no device")
		}
		t, err := openTable(cfg.Netns, slices.Clone(cfg.Devices))
		if err != nil {
			return nil, err
		}
		kernel = t
	}
	return &Reconciler{reconcile.New[Key](kernel, reconcile.Options[Entry]{
		Retry: cfg.Retry, MaxRetry: cfg.MaxRetry, Resync: cfg.Resync, Changed: cfg.Changed,
	})}, nil
}
