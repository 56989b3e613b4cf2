package peers

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/route"
)

const (
	parent = "eth1"
	vtep   = "vx1"
	// elsewhere is the first of many addresses on the segment that no peer has.
	elsewhere = "172.16.128.0"
)

// host is a namespace with an interface on a segment, and a VXLAN device on it.
type host struct {
	ns        *netns.NS
	nl        *netlink.Handle
	eth1, vx1 int // indexes
}

func newHost(cfg Config) (_ *host, err error) {
	path, err := cfg.Namespace()
	if err != nil {
		return nil, err
	}
	h := &host{}
	if h.ns, err = netns.Open(path); err != nil {
		return nil, err
	}
	if h.nl, err = netlink.NewHandleAt(vnetns.NsHandle(h.ns.Fd()), unix.NETLINK_ROUTE); err != nil {
		return nil, errors.Join(err, h.ns.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	eth1 := netlink.NewLinkAttrs()
	eth1.Name = parent
	if h.eth1, err = h.add(&netlink.Veth{LinkAttrs: eth1, PeerName: "far"}, "172.16.0.1/16"); err != nil {
		return nil, err
	}
	far, err := h.nl.LinkByName("far")
	if err == nil {
		err = h.nl.LinkSetUp(far)
	}
	if err != nil {
		return nil, err
	}
	vx1 := netlink.NewLinkAttrs()
	vx1.Name = vtep
	h.vx1, err = h.add(&netlink.Vxlan{LinkAttrs: vx1, VxlanId: 1, Port: 8472, VtepDevIndex: h.eth1, Learning: false}, "10.64.0.0/32")
	return h, err
}

// add makes a link that is up, with an address, and returns its index.
func (h *host) add(l netlink.Link, address string) (int, error) {
	if err := h.nl.LinkAdd(l); err != nil {
		return 0, fmt.Errorf("make %s: %w", l.Attrs().Name, err)
	}
	made, err := h.nl.LinkByName(l.Attrs().Name)
	if err != nil {
		return 0, err
	}
	a, err := netlink.ParseAddr(address)
	if err != nil {
		return 0, err
	}
	return made.Attrs().Index, errors.Join(h.nl.AddrAdd(made, a), h.nl.LinkSetUp(made))
}

func (h *host) Close() error {
	h.nl.Close()
	return h.ns.Close()
}

// keepers opens the tables of a VXLAN network.
func (h *host) keepers() (k keepers, err error) {
	if k.entries, err = neigh.New(neigh.Config{Netns: h.ns, Devices: []string{vtep}, Resync: time.Hour}); err != nil {
		return k, err
	}
	if k.routes, err = route.New(route.Config{Netns: h.ns, Resync: time.Hour}); err != nil {
		return k, errors.Join(err, k.entries.Close())
	}
	return k, nil
}

// mustHave counts the routes that have a gateway.
func (h *host) mustHave(n int) error {
	all, err := h.nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, 0)
	if err != nil {
		return err
	}
	got := 0
	for _, r := range all {
		if r.Gw != nil {
			got++
		}
	}
	if got != n {
		return fmt.Errorf("%d routes are there, want %d", got, n)
	}
	return nil
}

// mustHaveEntries counts the neighbours and the FDB entries of the VTEP.
func (h *host) mustHaveEntries(n int) error {
	for _, family := range []int{netlink.FAMILY_V4, unix.AF_BRIDGE} {
		all, err := h.nl.NeighList(h.vx1, family)
		if err != nil {
			return err
		}
		got := 0
		for _, e := range all {
			if e.State&netlink.NUD_PERMANENT != 0 && e.IP != nil {
				got++
			}
		}
		if got != n {
			return fmt.Errorf("%d entries of family %d are there, want %d", got, family, n)
		}
	}
	return nil
}

// nth is the i-th address after base.
func nth(base string, i int) netip.Addr {
	a := netip.MustParseAddr(base).As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+uint32(i))
	return netip.AddrFrom4(a)
}

// segment are the routes to n peers on one L2 segment, each with an address of
// its own and a block.
func segment(n int) (want []route.Want) {
	for i := range n {
		want = append(want, route.Want{Peer: fmt.Sprintf("node%d", i), Object: route.Route{
			Dst: netip.PrefixFrom(nth("10.64.0.0", (i+1)<<6), 26), Via: nth("172.16.1.0", i), Dev: parent,
		}})
	}
	return want
}

// spoil makes one of every so many routes one that cannot be, in different ways,
// and returns how many.
func spoil(want []route.Want, each int) (bad int) {
	if each == 0 {
		return 0
	}
	for i := each / 2; i < len(want); i += each {
		switch r := &want[i].Object; bad % 4 {
		case 0, 1: // the kernel refuses it: no such address is on the segment
			r.Via = nth("192.0.2.0", bad%256)
		case 2: // host bits
			r.Dst = netip.PrefixFrom(r.Dst.Addr().Next(), r.Dst.Bits())
		case 3: // another family
			r.Via = netip.MustParseAddr("2001:db8::1")
		}
		bad++
	}
	return bad
}

// vtepPeers have three objects each: the neighbour of the peer's VTEP inside,
// where frames for its MAC go, and the route to its block.
type vtepPeers struct {
	entries []neigh.Want // two for each peer
	routes  []route.Want
}

func vteps(n int) (p vtepPeers) {
	for i := range n {
		name, inside := fmt.Sprintf("node%d", i), nth("10.64.0.0", (i+1)<<6)
		mac := neigh.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
		p.entries = append(p.entries,
			neigh.Want{Peer: name, Object: neigh.Entry{Kind: neigh.Neighbour, Dev: vtep, Addr: inside, MAC: mac}},
			neigh.Want{Peer: name, Object: neigh.Entry{Kind: neigh.Self, Dev: vtep, MAC: mac, Addr: nth("172.16.1.0", i)}})
		p.routes = append(p.routes, route.Want{Peer: name, Object: route.Route{
			Dst: netip.PrefixFrom(inside, 26), Via: inside, Dev: vtep, Onlink: true,
		}})
	}
	return p
}
