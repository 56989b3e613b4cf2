package peers

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/route"
)

// The functions of the netlink package, unlike those of a handle, open a socket
// for each call, in the namespace of the thread. Flannel uses them.

// addAsFlannel makes a route as its host-gw backend does when a lease comes or
// changes: it looks at all routes before it, once more when it may have taken an
// old one away, and once more after it.
func addAsFlannel(r route.Route, index int) error {
	want := netlinkRoute(r, index)
	list := func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: want.Dst}, netlink.RT_FILTER_DST)
	}
	there, err := list()
	if err != nil {
		return err
	}
	if len(there) > 0 && !there[0].Gw.Equal(want.Gw) {
		if err := netlink.RouteDel(&there[0]); err != nil {
			return err
		}
	}
	if there, err = list(); err != nil {
		return err
	}
	if len(there) == 0 {
		if err := netlink.RouteAdd(want); err != nil {
			return err
		}
	}
	_, err = list()
	return err
}

// addVTEPAsFlannel makes the three objects of a peer as its vxlan backend does.
func addVTEPAsFlannel(p vtepPeers, i, index int) error {
	neighbour, fdb := p.entries[2*i].Object, p.entries[2*i+1].Object
	if err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST, IP: ip(neighbour.Addr), HardwareAddr: neighbour.MAC[:],
	}); err != nil {
		return err
	}
	if err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: ip(fdb.Addr), HardwareAddr: fdb.MAC[:],
	}); err != nil {
		return err
	}
	r := netlinkRoute(p.routes[i].Object, index)
	r.SetFlag(netlink.FLAG_ONLINK)
	return netlink.RouteReplace(r)
}

func netlinkRoute(r route.Route, index int) *netlink.Route {
	return &netlink.Route{Dst: &net.IPNet{IP: ip(r.Dst.Addr()), Mask: net.CIDRMask(r.Dst.Bits(), 32)}, Gw: ip(r.Via), LinkIndex: index}
}

func ip(a netip.Addr) net.IP { return a.AsSlice() }
