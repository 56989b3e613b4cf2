package cli_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// What a rebuild makes of ipvlan links: the setting of their parent is that of
// the plugin's own records, so that the next ADD is held to it.
func TestRebuildIpvlan(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	n := newNode(t)
	l3 := link.Ipvlan{Mode: link.ModeL3, Flag: link.FlagBridge}
	private := link.Ipvlan{Mode: link.ModeL2, Flag: link.FlagPrivate}
	var carrier link.Link
	n.do(func() error {
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		eth1, err := h.ByIndex(n.eth1)
		if err != nil {
			return err
		}
		carrier, err = h.EnsureVLAN(eth1, 100)
		return err
	})
	plain, tagged, inside := namespace(t), namespace(t), namespace(t)
	n.addLink(plain, l3, n.eth1, "underlay:"+n.network+":plain")
	n.addLink(tagged, private, carrier.Index, "underlay:"+n.network+":tagged")
	address(t, plain, "198.51.100.10/24")
	address(t, tagged, "2001:db8::10/64")
	// One that the kernel makes of a router's prefix: it is the link's number, not
	// ff:fe, that stands between the halves of a MAC that several links have.
	auto := netip.MustParseAddr("2001:db8::").As16()
	copy(auto[8:], carrier.MAC[:3])
	copy(auto[11:], []byte{0, 1})
	copy(auto[13:], carrier.MAC[3:])
	address(t, tagged, netip.AddrFrom16(auto).String()+"/64")
	// Its parent has the index of another link on the host.
	linkInside(t, inside, n.eth1, "underlay:"+n.network+":inside")

	var got struct{ Found []found }
	n.read(&got, "ledger", "rebuild", "--dry-run", "--network", n.network)
	want := []found{
		{ContainerID: "inside"},
		{ContainerID: "plain", Uses: ipam.Uses{Parent: "eth1", Port: l3.Port()},
			Addresses: []ipam.Address{{Prefix: netip.MustParsePrefix("198.51.100.10/24")}}},
		{ContainerID: "tagged", Uses: ipam.Uses{Parent: "eth1", VLAN: 100, Port: private.Port()},
			Addresses: []ipam.Address{{Prefix: netip.MustParsePrefix("2001:db8::10/64")}}},
	}
	opts := cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}
	if diff := cmp.Diff(want, got.Found, opts); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}

	n.ctl(0, "ledger", "rebuild", "--force", "--network", n.network)
	n.ctl(0, "ledger", "check")
	out := n.ctl(0, "attachment", "show", "tagged")
	for _, text := range []string{"vlan 100 on eth1 as ipvlan mode l2, flag private\n", "ipvlan l2 private, up, "} {
		if !strings.Contains(out, text) {
			t.Errorf("want %q in:\n%s", text, out)
		}
	}
}

// found is an attachment as `ledger rebuild` prints it.
type found struct {
	ContainerID string         `json:"containerID"`
	Addresses   []ipam.Address `json:"addresses"`
	Uses        ipam.Uses      `json:"uses"`
}

// address gives a container's eth0 an address.
func address(t *testing.T, at ns.NetNS, prefix string) {
	t.Helper()
	err := at.Do(func(ns.NetNS) error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(prefix)
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, addr)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// linkInside makes an ipvlan eth0 on a parent of that index in the container.
func linkInside(t *testing.T, at ns.NetNS, parent int, alias string) {
	t.Helper()
	err := at.Do(func(ns.NetNS) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = "uplink", parent
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}); err != nil {
			return err
		}
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		index, err := link.Ipvlan{Mode: link.ModeL2, Flag: link.FlagBridge}.Create(h, link.Target{Name: "eth0", NetnsFd: -1, Parent: parent})
		return errors.Join(err, h.Up(index, alias, nil))
	})
	if err != nil {
		t.Fatal(err)
	}
}
