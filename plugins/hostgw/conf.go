package main

import (
	"encoding/json"
	"strings"

	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/cni"
)

// config is a network configuration of type hostgw.
type config struct {
	attach.Config
	// Bridge is the name of the node bridge; "" routes to each container.
	Bridge string `json:"bridge"`
	// IPMasq: what leaves the network gets an address of the host.
	IPMasq bool `json:"ipMasq"`
	// Peers are the prefixes of other hosts, of a network that no agent keeps.
	Peers []peer `json:"peers"`
	// Network is that which the agent keeps the peers of; "" means Name where the
	// addresses are of a cluster pool.
	Network string `json:"network"`
	// FixForwardDrop runs the command that lets our packets pass where somebody
	// else's policy drops what is forwarded.
	FixForwardDrop bool `json:"fixForwardDrop"`
}

// peer is another host's prefix, and its address.
type peer struct {
	Prefix string `json:"prefix"`
	Via    string `json:"via"`
}

// parse reads a configuration, as far as it can be read, and checks what is
// hostgw's own in it.
func parse(stdin []byte) (*config, error) {
	c := &config{}
	if err := cni.Decode(stdin, c); err != nil { // which goes on after a value of the wrong type
		return c, err
	}
	if err := c.checkBridge(); err != nil {
		return c, err
	}
	if c.cluster() != "" && len(c.Peers) > 0 {
		return c, invalid("peers: those of network %q are in the registry, and the agent keeps the routes to them; leave peers out, or pool and network", c.cluster())
	}
	_, err := c.peers()
	return c, err
}

func (c *config) checkBridge() error {
	const longest = 15 // IFNAMSIZ less its NUL
	switch {
	case c.Bridge == "":
		return nil
	case len(c.Bridge) > longest || strings.ContainsAny(c.Bridge, "/: \t\n\x00") || c.Bridge == "." || c.Bridge == "..":
		return invalid("bridge: %q is no interface name", c.Bridge)
	case c.Bridge == c.Master:
		return invalid("bridge: %q is the master, too, by which the host is on its own network", c.Bridge)
	case c.chained():
		return invalid("bridge: %q: without ipam nothing is put on a bridge; leave it out", c.Bridge)
	}
	return nil
}

// chained: there is no interface of its own.
func (c *config) chained() bool {
	t, err := c.IPAMType()
	return t == "" && err == nil
}

// cluster is the network that the agent keeps; "" where there is none.
func (c *config) cluster() string {
	var ipam struct {
		Type string `json:"type"`
		Pool string `json:"pool"`
	}
	switch {
	case c.Network != "":
		return c.Network
	case len(c.IPAM) > 0 && json.Unmarshal(c.IPAM, &ipam) == nil && ipam.Type == attach.OwnIPAM && ipam.Pool != "":
		return c.Name
	}
	return ""
}
