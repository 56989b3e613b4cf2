package lab

import (
	"context"
	"errors"
	"net/netip"
	"os"
)

// Host is a namespace with eth1 on the lab's switch.
type Host struct {
	*Namespace
	// Name is the host's name within the lab and that of its switch port.
	Name string
	// DataDir and RunDir are the host's own places for the plugins' dataDir and
	// runDir. The plugins make them; both go with the lab.
	DataDir, RunDir string

	cache string // of libcni
	lab   *Lab
	addrs []netip.Prefix // of eth1
}

// Lab is the one that the host is in.
func (h *Host) Lab() *Lab { return h.lab }

// boot is what a host does when it is started.
func (h *Host) boot(ctx context.Context) error {
	return errors.Join(h.ip(ctx, "link set lo up"), h.Plug(ctx))
}

// Plug makes eth1, on the lab's first switch, and gives it the addresses that
// AddHost was told.
func (h *Host) Plug(ctx context.Context) error {
	err := h.lab.Switch.ip(ctx,
		"link add name "+h.Name+" type veth peer name "+Parent+" netns "+h.ID,
		"link set dev "+h.Name+" master "+bridge+" up")
	if err != nil {
		return err
	}
	return h.Address(ctx)
}

// Address sets eth1 up with the addresses that AddHost was told, as a host's
// configuration of its network does when they are not there.
func (h *Host) Address(ctx context.Context) error {
	lines := []string{"link set " + Parent + " up"}
	for _, addr := range h.addrs {
		line := "addr replace " + addr.String() + " dev " + Parent
		if addr.Addr().Is6() {
			line += " nodad" // duplicate detection would take a second
		}
		lines = append(lines, line)
	}
	return h.ip(ctx, lines...)
}

// Unplug removes eth1, and with it all that is on it.
func (h *Host) Unplug(ctx context.Context) error {
	return h.lab.Switch.ip(ctx, "link del dev "+h.Name)
}

// Reboot ends all processes of the host, removes its containers, links and
// RunDir, and starts it again with nothing but eth1. DataDir stays.
func (h *Host) Reboot(ctx context.Context) error {
	containers, err := namespaces(h.ID)
	if err != nil {
		return err
	}
	for _, ns := range append(containers, h.ID) {
		if err := kill(ctx, ns); err != nil {
			return err
		}
	}
	// The kernel takes its time to remove a namespace with what is in it.
	if err := h.Unplug(ctx); err != nil {
		return err
	}
	for _, ns := range append(containers, h.ID) {
		if err := deleteNamespace(ctx, ns); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(h.RunDir); err != nil {
		return err
	}
	if _, err := addNamespace(ctx, h.ID); err != nil {
		return err
	}
	return h.boot(ctx)
}

// Hairpin says whether the host's switch port sends frames back to where they
// came from, as a VEPA-capable ("reflective relay") switch does. It does not
// at first.
func (h *Host) Hairpin(ctx context.Context, on bool) error {
	state := "off"
	if on {
		state = "on"
	}
	return h.lab.Switch.ip(ctx, "link set dev "+h.Name+" type bridge_slave hairpin "+state)
}

// AddContainer makes a namespace with nothing but lo, which is up. The name is
// 1 to 15 of a-z, 0-9 and unique on the host.
func (h *Host) AddContainer(ctx context.Context, name string) (*Container, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	ns, err := addNamespace(ctx, h.ID+"-"+name)
	if err != nil {
		return nil, err
	}
	return &Container{Namespace: ns, Name: name}, ns.ip(ctx, "link set lo up")
}

// Container is a namespace for CNI plugins to work in. Its ID serves as the
// container ID.
type Container struct {
	*Namespace
	// Name is the container's name within its host.
	Name string
}

// Remove deletes the container's namespace, and what is in it, as a runtime
// that crashed would: no plugin is told.
func (c *Container) Remove(ctx context.Context) error {
	if err := kill(ctx, c.ID); err != nil {
		return err
	}
	return deleteNamespace(ctx, c.ID)
}
