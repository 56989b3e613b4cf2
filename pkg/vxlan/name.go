package vxlan

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
)

// networkPrefix begins the altname of a device that routes lead through.
const networkPrefix = "vxlan-"

// AltName is the second name of the device of a network: by it a device is found
// by who knows the network alone, and told from those of segments.
func AltName(network string) string { return networkPrefix + network }

// networkOf is the inverse of AltName for what a device has.
func networkOf(l netlink.Link) (network string, ok bool) {
	for _, alt := range l.Attrs().AltNames {
		if network, ok = strings.CutPrefix(alt, networkPrefix); ok {
			return network, true
		}
	}
	return "", false
}

// Networks lists the devices that are ours and a network's: its name by VNI.
func Networks(n *netns.NS) (map[int]string, error) {
	out := make(map[int]string)
	err := at(n, func(h *netlink.Handle) error {
		links, err := h.LinkList()
		for _, l := range links {
			v, is := l.(*netlink.Vxlan)
			network, known := networkOf(l)
			if is && known && ours(l) && v.Name == Name(v.VxlanId) {
				out[v.VxlanId] = network
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list VXLAN devices: %w", err)
	}
	return out, nil
}

// rename gives a device the second name of its network, and no other network's.
func (d Device) rename(h *netlink.Handle, l netlink.Link) error {
	has := false
	for _, alt := range l.Attrs().AltNames {
		switch {
		case d.Network != "" && alt == AltName(d.Network):
			has = true
		case strings.HasPrefix(alt, networkPrefix):
			if err := h.LinkDelAltName(l, alt); err != nil {
				return fmt.Errorf("take the name %q away: %w", alt, err)
			}
		}
	}
	if has || d.Network == "" {
		return nil
	}
	err := h.LinkAddAltName(l, AltName(d.Network))
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("the link that has the name %q %w; remove it", AltName(d.Network), ErrForeign)
	}
	if err != nil {
		return fmt.Errorf("name it %q: %w", AltName(d.Network), err)
	}
	return nil
}
