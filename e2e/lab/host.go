package lab

import "context"

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
}

// Lab is the one that the host is in.
func (h *Host) Lab() *Lab { return h.lab }

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
