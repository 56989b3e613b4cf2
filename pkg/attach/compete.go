package attach

import (
	"errors"
	"fmt"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
)

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
