package main

import (
	"fmt"

	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/link"
)

const noMAC = "an ipvlan link has the MAC of its parent; macvlan gives one of its own"

// kind is what is special to an ipvlan link of this configuration.
func (c *config) kind() attach.Kind {
	spec := link.Ipvlan{Mode: c.Mode, Flag: c.Flag}
	k := attach.Kind{
		Name:      "ipvlan",
		Create:    spec.Create,
		Differs:   c.differs,
		ParentMAC: true,
		NoMAC:     noMAC,
		Port:      spec.Port(),
		Others:    c.others,
		Deaf:      c.Mode == link.ModeL2,
		Layer3:    c.Mode != link.ModeL2,
		Chained:   true,
		Sibling:   spec.Create,
	}
	if c.Flag != link.FlagBridge {
		k.NoHostAccess = fmt.Sprintf("flag %s keeps links of one parent apart, and the host is reached through one; use flag bridge", c.Flag)
	}
	return k
}

// others finds a link of parent, and describes it if it has another mode or
// flag: then all have.
func (c *config) others(h *link.Handle, parent link.Link) (found bool, rival string, err error) {
	l, found, err := h.IpvlanOn(parent)
	if err != nil || !found || c.differs(l.Link) == "" {
		return found, "", err
	}
	return true, fmt.Sprintf("%s (%s)", l, l.Port()), nil
}

// differs compares a link with the configuration.
func (c *config) differs(l link.Link) string {
	switch {
	case l.Mode != c.Mode:
		return fmt.Sprintf("is in mode %s, not %s", l.Mode, c.Mode)
	case l.Flag != c.Flag:
		return fmt.Sprintf("has flag %s, not %s", l.Flag, c.Flag)
	}
	return ""
}
