package main

import (
	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/link"
)

// config is a network configuration of type ipvlan. It accepts all keys of the
// reference plugin with their meaning.
type config struct {
	attach.Config
	// Mode is l2, l3 or l3s; "" means l2.
	Mode string `json:"mode"`
	// Flag is bridge, private or vepa; "" means bridge.
	Flag string `json:"flag"`
}

// load is the plugin's attach.Load.
func load(stdin []byte) (*attach.Config, attach.Kind, error) {
	c, err := parse(stdin)
	return &c.Config, c.kind(), err
}

// parse reads a configuration, as far as it can be read, and checks what is
// ipvlan's own in it.
func parse(stdin []byte) (*config, error) {
	c := &config{}
	if err := cni.Decode(stdin, c); err != nil { // which goes on after a value of the wrong type
		return c, err
	}
	if c.Mode == "" {
		c.Mode = link.ModeL2
	}
	if c.Flag == "" {
		c.Flag = link.FlagBridge
	}
	switch {
	case !link.IsIpvlanMode(c.Mode):
		return c, cni.Errorf(types.ErrInvalidNetworkConfig, "mode: %q is none of l2, l3, l3s", c.Mode)
	case !link.IsIpvlanFlag(c.Flag):
		return c, cni.Errorf(types.ErrInvalidNetworkConfig, "flag: %q is none of bridge, private, vepa", c.Flag)
	case c.MACPrefix != "":
		return c, cni.Errorf(types.ErrInvalidNetworkConfig, "macPrefix: %s", noMAC)
	}
	return c, nil
}
