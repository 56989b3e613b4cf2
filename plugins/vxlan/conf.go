package main

import (
	"encoding/json"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// Values of mode.
const (
	modeSegment = "segment"
	modeRouted  = "routed"
)

// config is a network configuration of type vxlan.
type config struct {
	attach.Config
	// Mode is one of the constants.
	Mode string `json:"mode"`
	// VNI and Port of the segment; of a network they are the registry's to say.
	VNI  int `json:"vni"`
	Port int `json:"port"`
	// Tenant has the range that the VNI of a segment without one is taken from.
	Tenant string `json:"tenant"`
	// Network is that whose peers are reached through VXLAN; "" means Name.
	Network string `json:"network"`
	// DirectRouting is the network's to say; it is read to be refused.
	DirectRouting json.RawMessage `json:"directRouting"`
}

// minMTU is the least that IPv4 needs of a link (RFC 791), minMTU6 IPv6 (RFC 8200).
const (
	minMTU  = 68
	minMTU6 = 1280
)

// parse reads a configuration, as far as it can be read, and checks all that can
// be checked without looking at the host.
func parse(stdin []byte) (*config, error) {
	c := &config{}
	if err := cni.Decode(stdin, c); err != nil { // which goes on after a value of the wrong type
		return c, err
	}
	switch c.Mode {
	case modeSegment, modeRouted:
	case "":
		return c, invalid("mode: is missing; segment makes an L2 segment, first in a chain, and routed stands behind the plugin that makes the interface")
	default:
		return c, invalid("mode: %q is none of segment, routed", c.Mode)
	}
	if err := c.checkOthers(); err != nil {
		return c, err
	}
	switch {
	case c.VNI < 0 || c.VNI > vxlan.MaxVNI:
		return c, invalid("vni: %d is not a VNI from 1 to %d", c.VNI, vxlan.MaxVNI)
	case c.Port < 0 || c.Port > 65535:
		return c, invalid("port: %d is not a UDP port from 1 to 65535", c.Port)
	case c.MTU != 0 && c.MTU < minMTU:
		return c, invalid("mtu: %d is less than the %d that IPv4 needs; 0 takes what VXLAN leaves", c.MTU, minMTU)
	}
	if c.Mode == modeSegment {
		return c, c.checkSegment()
	}
	return c, c.checkRouted()
}

// checkOthers refuses what main plugins have, and this one cannot do.
func (c *config) checkOthers() error {
	main := "of the plugin after this one"
	if c.Mode == modeRouted {
		main = "of the plugin before this one"
	}
	t, err := c.IPAMType()
	switch {
	case err != nil:
		return err
	case t != "" || c.CheckIPAM() != nil:
		return invalid("ipam: vxlan gives no addresses; ipam is a key %s", main)
	case c.VLAN != 0:
		return invalid("vlan: %d: vxlan makes no sub-interface; make it, and name it as master: ip link add link PARENT name PARENT.%d type vlan id %d", c.VLAN, c.VLAN, c.VLAN)
	case c.LinkInContainer:
		return invalid("linkInContainer: VXLAN devices are on the host")
	}
	for _, k := range []struct {
		key string
		set bool
	}{
		{"mac", c.MAC != ""}, {"macPrefix", c.MACPrefix != ""}, {"hostAccess", c.HostAccess}, {"conflictDetection", c.ConflictDetection != ""},
	} {
		if k.set {
			return invalid("%s: is a key %s, which makes the container's interface", k.key, main)
		}
	}
	return nil
}

func (c *config) checkSegment() error {
	switch {
	case c.VNI == 0 && c.Tenant == "":
		return invalid("vni: is missing, and so is \"tenant\": containers of the same VNI are in one segment; name it, from 1 to %d, or the tenant whose range it is taken from", vxlan.MaxVNI)
	case c.VNI != 0 && c.Tenant != "":
		return invalid("tenant: %q: its range is for segments without a vni, and vni is %d; leave one of them out", c.Tenant, c.VNI)
	case c.Tenant != "" && ipam.CheckName("tenant", c.Tenant) != nil:
		return invalid("%w", ipam.CheckName("tenant", c.Tenant))
	case c.Network != "":
		return invalid("network: %q: there is none in mode segment, whose hosts know each other by the vni", c.Network)
	case len(c.DirectRouting) > 0:
		return invalid("directRouting: a segment is not routed; leave it out")
	}
	return nil
}

func (c *config) checkRouted() error {
	switch {
	case c.Tenant != "":
		return invalid("tenant: %q: it is for segments; a network in the registry has its own", c.Tenant)
	case c.Master != "":
		return invalid("master: %q: the agent has the network's device on the parent of its configuration; leave master out", c.Master)
	case len(c.DirectRouting) > 0:
		return invalid("directRouting: the network in the registry says whether it is so, for all hosts alike; leave it out here")
	}
	return nil
}

// network is whose peers are reached through VXLAN, in mode routed.
func (c *config) network() string {
	if c.Network != "" {
		return c.Network
	}
	return c.Name
}

func invalid(format string, args ...any) error {
	return cni.Errorf(types.ErrInvalidNetworkConfig, format, args...)
}

func differs(format string, args ...any) error {
	return cni.Errorf(cni.CodeCheck, format, args...)
}
