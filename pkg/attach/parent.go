package attach

import (
	"bytes"
	"cmp"
	"errors"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/link"
)

// master is the name of the parent as far as the configuration tells.
func (c *Config) master() string {
	if c.Master != "" {
		return c.Master
	}
	if prev, err := c.Previous(); err == nil {
		return hostInterface(prev)
	}
	return ""
}

// hostInterface is the first interface of a result that is on the host.
func hostInterface(res *current.Result) string {
	if res != nil {
		for _, i := range res.Interfaces {
			if i.Sandbox == "" {
				return i.Name
			}
		}
	}
	return ""
}

// findParent resolves Master on handle h, whose namespace it lies in, and VLAN:
// what an attachment sits on has one spelling after it, under which its users
// are counted.
func (p *plan) findParent(h *link.Handle) (link.Link, error) {
	if _, err := p.Previous(); err != nil {
		return link.Link{}, err
	}
	name := p.master()
	if name == "" {
		var err error
		if name, err = h.DefaultRouteLink(); err != nil {
			return link.Link{}, cni.Errorf(cni.CodeParent, "master: is missing, and %w", err)
		}
	}
	if !p.LinkInContainer {
		of, id, err := splitMaster(h, name)
		switch {
		case err != nil:
			return link.Link{}, err
		case id != 0 && p.VLAN != 0 && p.VLAN != id:
			return link.Link{}, onDemand(p.VLAN, name, of, id)
		case id != 0:
			name, p.VLAN = of, id
		}
	}
	parent, err := h.Parent(name)
	if err == nil && p.VLAN != 0 {
		parent, err = p.givenVLAN(h, parent)
	}
	switch {
	case err != nil:
		return link.Link{}, cni.Errorf(cni.CodeParent, "master: %w", err)
	case p.VLAN != 0 && parent.OwnVLAN():
		return link.Link{}, onDemand(p.VLAN, parent.Name, "PARENT", parent.VLAN)
	case p.MTU > parent.MTU:
		return link.Link{}, invalid("mtu: %d is more than the %d of master %q", p.MTU, parent.MTU, parent.Name)
	case bytes.Equal(p.mac, parent.MAC) && p.mac != nil && !p.kind.ParentMAC:
		return link.Link{}, invalid("mac: %s is that of master %q itself", p.mac, parent.Name)
	}
	return parent, nil
}

// onDemand refuses a VLAN on a sub-interface that goes with its last user, of
// whom this would not be one.
func onDemand(vlan int, name, of string, id int) error {
	return invalid("vlan: %d on master %q, which is itself made on demand; make that one first: ip link add link %s name %s type vlan id %d",
		vlan, name, of, name, id)
}

// splitMaster splits the name of a VLAN sub-interface that is made on demand,
// whether it has been made already or not, into its parent and its VLAN id; 0
// for any other name.
func splitMaster(h *link.Handle, name string) (parent string, id int, err error) {
	parent, id, ok := link.SplitVLAN(name)
	if !ok {
		return "", 0, nil
	}
	l, err := h.ByName(name)
	switch {
	case errors.Is(err, link.ErrNotFound):
		return parent, id, nil
	case err != nil:
		return "", 0, cni.Errorf(cni.CodeParent, "master: %w", err)
	case !l.OwnVLAN():
		return "", 0, nil
	}
	p, err := h.ByIndex(l.Parent)
	if err != nil {
		return "", 0, cni.Errorf(cni.CodeParent, "master: %q: parent: %w", name, err)
	}
	return p.Name, l.VLAN, nil
}

// givenVLAN returns the sub-interface of VLAN on parent if somebody else has
// made it, as a parent like any other, without VLAN; else parent.
func (p *plan) givenVLAN(h *link.Handle, parent link.Link) (link.Link, error) {
	name, alt := link.VLANName(parent.Name, p.VLAN)
	l, err := h.ByName(cmp.Or(alt, name))
	switch {
	case errors.Is(err, link.ErrNotFound):
		return parent, nil
	case err != nil:
		return parent, err
	case l.OwnVLAN() || l.Kind != "vlan" || l.VLAN != p.VLAN || l.Parent != parent.Index:
		return parent, nil // something else by that name is told by who needs it
	}
	p.VLAN = 0
	return h.Parent(l.Name)
}
