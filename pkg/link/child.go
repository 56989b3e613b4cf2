package link

import (
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// Child is a link that sits on a parent.
type Child struct {
	Link
	// Netns is the path of the namespace it is in; "" if that is the parent's.
	Netns string
}

func (c Child) String() string {
	if c.Netns == "" {
		return fmt.Sprintf("%s link %q", c.Kind, c.Name)
	}
	return fmt.Sprintf("%s link %q in %s", c.Kind, c.Name, c.Netns)
}

// child finds a link that matches and sits on parent, which is in the handle's
// namespace: there, or else in any that netns.Each visits.
func (h *Handle) child(parent Link, match func(Link) bool) (c Child, found bool, err error) {
	all, err := h.List()
	if err != nil {
		return Child{}, false, err
	}
	for _, l := range all {
		if l.isOn(parent) && match(l) {
			return Child{Link: l}, true, nil
		}
	}
	home, err := h.conn.Netns()
	if err != nil {
		return Child{}, false, err
	}
	defer unix.Close(home)
	err = netns.Each(func(n *netns.NS) (bool, error) {
		// There may be hundreds: the buffer is more than all else about each.
		there, err := h.conn.DialHere()
		if err != nil {
			return false, err
		}
		defer there.Close()
		if c.Link, found, err = (&Handle{there}).childOf(home, parent, match); err != nil {
			return false, fmt.Errorf("look into netns %q: %w", n.Path(), err)
		}
		c.Netns = n.Path()
		return found, nil
	})
	if err != nil || !found {
		return Child{}, false, err
	}
	return c, true, nil
}

// childOf is child for a parent in another namespace, home.
func (h *Handle) childOf(home int, parent Link, match func(Link) bool) (Link, bool, error) {
	all, err := h.List()
	for i := 0; i < len(all) && err == nil; i++ {
		if l := all[i]; l.Parent == parent.Index && match(l) {
			var there bool
			if there, err = h.ParentIn(l, home); there {
				return l, true, nil
			}
		}
	}
	return Link{}, false, err
}

// ParentIn reports whether l, which is in the handle's namespace, has its parent
// in the one that fd refers to, another one.
func (h *Handle) ParentIn(l Link, fd int) (bool, error) {
	if !l.abroad {
		return false, nil
	}
	id, err := h.nsid(fd)
	return err == nil && id == l.nsid && id >= 0, err
}

// nsid is the number by which the handle's namespace knows that of fd, -1 if
// it does not. A namespace gets one when a link that leads there is listed.
func (h *Handle) nsid(fd int) (int32, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNSID, 0)
	req.AddData(nl.NewRtGenMsg())
	req.AddData(nl.NewRtAttr(unix.NETNSA_FD, nl.Uint32Attr(uint32(fd))))
	payload, err := h.conn.Get(req)
	if err != nil {
		return 0, fmt.Errorf("find the number of a namespace: %w", err)
	}
	return parseNsid(payload)
}

// parseNsid reads what RTM_NEWNSID says (linux/net_namespace.h).
func parseNsid(payload []byte) (id int32, err error) {
	if len(payload) < unix.NLMSG_ALIGNTO {
		return 0, nlsock.ErrCutOff
	}
	id = unix.NETNSA_NSID_NOT_ASSIGNED
	attrs, err := nlsock.Attributes(payload[unix.NLMSG_ALIGNTO:])
	for _, a := range attrs {
		if a.Kind == unix.NETNSA_NSID {
			id = int32(number(a.Value))
		}
	}
	return id, err
}
