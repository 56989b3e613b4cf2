package attach

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
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
	if p.kind.Pair != nil {
		name = p.Master // one before in the chain is the business of its own
	}
	if name == "" {
		var err error
		if name, err = h.DefaultRouteLink(); err != nil {
			if p.kind.Pair != nil && errors.Is(err, link.ErrNotFound) {
				return link.Link{}, nil
			}
			return link.Link{}, cni.Errorf(cni.CodeParent, "master: is missing, and %w", err)
		}
	}
	if !p.LinkInContainer && p.kind.Pair == nil {
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
	if err == nil {
		p.enterSegment(parent)
	}
	if err == nil && p.VLAN != 0 {
		parent, err = p.givenVLAN(h, parent)
	}
	switch {
	case err != nil:
		return link.Link{}, cni.Errorf(cni.CodeParent, "master: %w", err)
	case p.VLAN != 0 && parent.OwnVLAN():
		return link.Link{}, onDemand(p.VLAN, parent.Name, "PARENT", parent.VLAN)
	case p.kind.Pair != nil:
		return parent, nil
	case p.MTU > parent.MTU:
		return link.Link{}, invalid("mtu: %d is more than the %d of master %q", p.MTU, parent.MTU, parent.Name)
	case bytes.Equal(p.mac, parent.MAC) && p.mac != nil && !p.kind.ParentMAC:
		return link.Link{}, invalid("mac: %s is that of master %q itself", p.mac, parent.Name)
	}
	return parent, nil
}

// enterSegment takes note of a parent that is the leg of a segment.
func (p *plan) enterSegment(parent link.Link) {
	if p.LinkInContainer || p.kind.Pair != nil {
		return
	}
	p.segment = parent.Segment()
	if p.quiet = p.segment != 0 && p.unasked; p.quiet {
		p.ConflictDetection = DetectOff
	}
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

// All links of a Kind with a Port on one parent have that in common, and the
// kernel changes it for all of them, without a word, with the next one that is
// made. So who makes one has to know what is there.
//
// An attachment is recorded before it looks. If it then finds the link of
// another that has the same Port, and nobody on record has another, it goes on:
// who comes later with another Port finds it on record. Else it looks into all
// namespaces and makes its link under the parent's lock, so that the next one
// finds that.

// company is who else is on record with a Port on the parent.
type company struct {
	peers  []ipam.AttachmentRecord // with this one
	rivals []ipam.AttachmentRecord // with another
	agreed *bool
}

// agreed reports whether a link with the kind's Port harms nobody, as far as
// that can be told without looking into all namespaces.
func (a *adder) agreed() bool {
	if a.kind.Port == "" {
		return true
	}
	c := &a.company
	if c.agreed == nil {
		agreed := false
		if len(c.rivals) == 0 {
			for _, peer := range c.peers {
				agreed = agreed || a.vouches(peer)
			}
		}
		c.agreed = &agreed
	}
	return *c.agreed
}

// vouches looks for the link of a peer on the same carrier: its record alone
// tells of an intent, or of a link that is gone.
func (a *adder) vouches(peer ipam.AttachmentRecord) (ok bool) {
	ns := openAt(peer.Netns)
	if ns == nil {
		return false
	}
	defer ns.Close()
	err := ns.Do(func() error {
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		l, err := h.ByName(peer.Attachment.IfName)
		ok = err == nil && isMarked(a.kind, peer.Attachment)(l) && l.Parent == a.carrier.Index && a.kind.Differs(l) == ""
		return err
	})
	return err == nil && ok
}

// openAt opens a namespace by its name on record; nil if it is another's by now.
func openAt(n ipam.Netns) *netns.NS {
	ns, err := netns.Open(n.Path)
	if err != nil {
		return nil
	}
	if dev, ino := ns.ID(); dev != n.Dev || ino != n.Inode {
		ns.Close()
		return nil
	}
	return ns
}

// compete refuses a link that would change others, under the parent's lock.
func (a *adder) compete(in *inside) error {
	// An earlier ADD of this attachment is none of the others.
	in.then(a.removeDiffering)
	if err := in.wait(); err != nil {
		return err
	}
	const hint = "that belongs to the parent: use the same, another master, or a vlan"
	found, rival, err := a.kind.Others(a.parentSide, a.carrier)
	switch {
	case err != nil:
		return err
	case rival != "":
		return cni.Errorf(cni.CodeParent, "master: %q carries %s, and this would be %s; %s", a.carrier.Name, rival, a.kind.Port, hint)
	case found:
		return nil
	}
	// There are none; but a rival may be on its way, that has found its peer
	// before that went. Its runtime still knows the namespace by the name on
	// record then; and it is not this one, which is locked.
	dev, ino := a.ns.ID()
	for _, r := range a.company.rivals {
		ns := openAt(r.Netns)
		if ns == nil {
			continue
		}
		ns.Close()
		if r.Netns.Dev == dev && r.Netns.Inode == ino {
			continue
		}
		return cni.Errorf(cni.CodeParent, "master: %q is about to carry %s, for %s, and this would be %s; %s",
			a.carrier.Name, r.Uses.Port, r.Attachment, a.kind.Port, hint)
	}
	return nil
}

// removeDiffering removes the link of an earlier ADD of this attachment that has
// another Port. What is on record goes with it, if this ADD fails.
func (a *adder) removeDiffering(h *link.Handle) error {
	l, err := h.ByName(a.req.IfName)
	if errors.Is(err, link.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("CNI_IFNAME: %w", err)
	}
	if !isMarked(a.kind, a.att)(l) || a.kind.Differs(l) == "" {
		return nil
	}
	a.granted = true
	return h.Delete(l.Index)
}
