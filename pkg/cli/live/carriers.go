package live

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// Carrier is a link in a container, whoever made it, that has an address.
type Carrier struct {
	Netns   ipam.Netns
	IfName  string
	MAC     string
	Address ipam.Address
}

// Carriers finds what has addresses in namespaces other than this process's own,
// by address.
func (n *Namespaces) Carriers() (map[netip.Addr][]Carrier, error) {
	self := client.Identify("/proc/thread-self/ns/net")
	out := make(map[netip.Addr][]Carrier)
	for _, at := range n.all {
		if at.Dev == self.Dev && at.Inode == self.Inode {
			continue
		}
		err := In(at, func(k *link.Handle) error {
			there, err := carriersIn(k, at)
			for _, c := range there {
				a := c.Address.Prefix.Addr()
				out[a] = append(out[a], c)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// In calls f with a handle on the links of a namespace; not for one that has gone.
func In(at ipam.Netns, f func(*link.Handle) error) error {
	ns, err := netns.Find(at.Path, at.Dev, at.Inode)
	if errors.Is(err, netns.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	k, err := link.OpenAt(ns.Fd())
	if err != nil {
		return err
	}
	defer k.Close()
	if err := f(k); err != nil {
		return fmt.Errorf("netns %q: %w", at.Path, err)
	}
	return nil
}

func carriersIn(k *link.Handle, at ipam.Netns) (out []Carrier, err error) {
	links, err := k.List()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		addrs, err := addresses(k, l)
		if err != nil {
			return nil, err
		}
		if len(addrs) == 0 {
			continue
		}
		routes, err := k.Routes(l.Index)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			out = append(out, Carrier{Netns: at, IfName: l.Name, MAC: l.MAC.String(),
				Address: ipam.Address{Prefix: a, Gateway: gateway(routes, a)}})
		}
	}
	return out, nil
}
