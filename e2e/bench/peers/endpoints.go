package peers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

const (
	vni = 5001
	// nodes that have the endpoints of a segment, but for this one.
	nodes = 50
)

// makeSegment makes a VXLAN segment on the host.
func (h *host) makeSegment() error {
	s := vxlan.Segment{Device: vxlan.Device{VNI: vni, Port: 8472, Parent: parent, Local: netip.MustParseAddr("172.16.0.1"), MAC: neigh.MAC{2, 1}}}
	_, err := s.Apply(h.ns)
	return err
}

// endpoints are n of other nodes, and what is for all goes to each of these.
func endpoints(n int) []neigh.Want {
	var members []vxlan.Peer
	var all []vxlan.Endpoint
	for i := range nodes {
		members = append(members, vxlan.Peer{Name: fmt.Sprintf("node%d", i), VTEP: nth("172.16.1.0", i)})
	}
	for i := range n {
		m := members[i%nodes]
		all = append(all, vxlan.Endpoint{Peer: m.Name, VTEP: m.VTEP, MAC: neigh.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}, Addrs: []netip.Addr{nth("10.9.0.1", i)}})
	}
	return vxlan.Segmented(vni, members, all)
}

// segmented makes the entries of a segment's endpoints from nothing.
func segmented(ctx context.Context, cfg Config) (took time.Duration, err error) {
	h, err := newHost(cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	if err := h.makeSegment(); err != nil {
		return 0, err
	}
	want := endpoints(all)
	r, err := neigh.New(neigh.Config{Netns: h.ns, Devices: vxlan.Devices(vni), Resync: time.Hour})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	start := time.Now()
	err = r.Apply(ctx, want)
	took = time.Since(start)
	if err != nil {
		return 0, err
	}
	return took, h.mustHaveEndpoints(all)
}

// segmentedLoop makes them one by one, each by a call with a socket of its own.
func segmentedLoop(ctx context.Context, cfg Config) (took time.Duration, err error) {
	h, err := newHost(cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	if err := h.makeSegment(); err != nil {
		return 0, err
	}
	want := endpoints(all)
	indexes := make(map[string]int)
	for _, name := range vxlan.Devices(vni) {
		l, err := h.nl.LinkByName(name)
		if err != nil {
			return 0, err
		}
		indexes[name] = l.Attrs().Index
	}
	start := time.Now()
	err = h.ns.Do(func() error {
		for _, w := range want {
			if err := errors.Join(ctx.Err(), addEntry(w.Object, indexes[w.Object.Dev])); err != nil {
				return err
			}
		}
		return nil
	})
	took = time.Since(start)
	if err != nil {
		return 0, err
	}
	return took, h.mustHaveEndpoints(all)
}

func addEntry(e neigh.Entry, index int) error {
	n := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, HardwareAddr: e.MAC[:]}
	switch e.Kind {
	case neigh.Neighbour:
		n.Type, n.IP = unix.RTN_UNICAST, ip(e.Addr)
	case neigh.Self:
		n.Family, n.Flags, n.IP = unix.AF_BRIDGE, netlink.NTF_SELF, ip(e.Addr)
		if (e.MAC == neigh.MAC{}) {
			return netlink.NeighAppend(n)
		}
	case neigh.Master:
		n.Family, n.Flags, n.State = unix.AF_BRIDGE, netlink.NTF_MASTER, netlink.NUD_NOARP
	}
	return netlink.NeighSet(n)
}

// mustHaveEndpoints counts the neighbours on the bridge, and the FDB entries of the
// VXLAN device: two for each endpoint, and one for each node.
func (h *host) mustHaveEndpoints(n int) error {
	bridge, err := h.nl.LinkByName(vxlan.BridgeName(vni))
	if err != nil {
		return err
	}
	device, err := h.nl.LinkByName(vxlan.Name(vni))
	if err != nil {
		return err
	}
	for _, t := range []struct{ index, family, want int }{{bridge.Attrs().Index, netlink.FAMILY_V4, n}, {device.Attrs().Index, unix.AF_BRIDGE, 2*n + nodes}} {
		list, err := h.nl.NeighList(t.index, t.family)
		if err != nil {
			return err
		}
		got := 0
		for _, e := range list {
			own := e.Flags&netlink.NTF_SELF != 0 && e.IP != nil || t.family != unix.AF_BRIDGE && e.State&netlink.NUD_PERMANENT != 0
			if own || e.Flags&netlink.NTF_SELF == 0 && e.State&netlink.NUD_NOARP != 0 {
				got++
			}
		}
		if got != t.want {
			return fmt.Errorf("%d entries of family %d are there, want %d", got, t.family, t.want)
		}
	}
	return nil
}
