package main

import (
	"fmt"

	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/link"
)

// kind is what is special to a macvlan link of this configuration.
func (c *config) kind() attach.Kind {
	spec := link.Macvlan{Mode: c.Mode, BCQueueLen: c.BCQueueLen, NoPromisc: c.NoPromisc, SourceMACs: c.sources}
	k := attach.Kind{
		Name:        "macvlan",
		Create:      spec.Create,
		Differs:     c.differs,
		ParentMAC:   c.Mode == link.ModePassthru,
		TakesParent: c.Mode == link.ModePassthru,
		Deaf:        c.Mode == link.ModeSource,
		Sibling:     link.Macvlan{Mode: link.ModeBridge}.Create,
	}
	if c.Mode != link.ModeBridge {
		k.NoHostAccess = fmt.Sprintf("mode %s keeps siblings apart, and the host is reached through one; use mode bridge", c.Mode)
	}
	return k
}

// differs compares a link with the configuration. The list of source MACs is
// left out: it is changed live, by `underlayctl source`.
func (c *config) differs(l link.Link) string {
	if l.Mode != c.Mode {
		return fmt.Sprintf("is in mode %s, not %s", l.Mode, c.Mode)
	}
	return ""
}
