package main

import (
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/link"
)

// config is a network configuration of type macvlan. It accepts all keys of
// the reference plugin with their meaning.
type config struct {
	attach.Config
	// Mode is bridge, private, vepa, passthru or source; "" means bridge.
	Mode string `json:"mode"`
	// BCQueueLen is the parent's broadcast queue asked for, in packets; 0
	// leaves the kernel's default.
	BCQueueLen uint32 `json:"bcqueuelen"`
	// SourceMACs are the senders that source mode lets in.
	SourceMACs []string `json:"sourceMACs"`
	// NoPromisc keeps passthru from switching its parent to promiscuous mode.
	NoPromisc bool `json:"nopromisc"`

	sources []net.HardwareAddr
}

// load is the plugin's attach.Load.
func load(stdin []byte) (*attach.Config, attach.Kind, error) {
	c, err := parse(stdin)
	return &c.Config, c.kind(), err
}

// parse reads a configuration, as far as it can be read, and checks what is
// macvlan's own in it.
func parse(stdin []byte) (*config, error) {
	c := &config{}
	if err := cni.Decode(stdin, c); err != nil { // which goes on after a value of the wrong type
		return c, err
	}
	if c.Mode == "" {
		c.Mode = link.ModeBridge
	}
	if !link.IsMacvlanMode(c.Mode) {
		return c, cni.Errorf(types.ErrInvalidNetworkConfig, "mode: %q is none of bridge, private, vepa, passthru, source", c.Mode)
	}
	if len(c.SourceMACs) > 0 && c.Mode != link.ModeSource {
		return c, cni.Errorf(types.ErrInvalidNetworkConfig, "sourceMACs: has a meaning in mode source only, and mode is %s", c.Mode)
	}
	if c.NoPromisc && c.Mode != link.ModePassthru {
		return c, cni.Errorf(types.ErrInvalidNetworkConfig, "nopromisc: has a meaning in mode passthru only, and mode is %s", c.Mode)
	}
	for i, s := range c.SourceMACs {
		mac, err := ipam.ParseMAC(fmt.Sprintf("sourceMACs[%d]", i), s)
		if err != nil {
			return c, err
		}
		c.sources = append(c.sources, mac)
	}
	return c, nil
}
