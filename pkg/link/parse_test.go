package link

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// attr is one attribute with its padding.
func attr(kind int, value ...byte) []byte { return nl.NewRtAttr(kind, value).Serialize() }

func join(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// payloads are such as the kernel sends.
func payloads() (link, addr, route []byte) {
	info := func(kind string, data ...byte) []byte {
		return attr(unix.IFLA_LINKINFO, join(attr(unix.IFLA_INFO_KIND, append([]byte(kind), 0)...), attr(unix.IFLA_INFO_DATA, data...))...)
	}
	sources := join(attr(nl.IFLA_MACVLAN_MODE, 16, 0, 0, 0), attr(nl.IFLA_MACVLAN_MACADDR_DATA, join(attr(nl.IFLA_MACVLAN_MACADDR, mac(1)...), attr(nl.IFLA_MACVLAN_MACADDR, mac(2)...))...))
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index, head.Flags, head.Type = 7, unix.IFF_UP|unix.IFF_NOARP, unix.ARPHRD_ETHER
	link = join(head.Serialize(), attr(unix.IFLA_IFNAME, []byte("eth0\x00")...), attr(unix.IFLA_MTU, 0xdc, 5, 0, 0),
		attr(unix.IFLA_ADDRESS, mac(9)...), attr(unix.IFLA_LINK, 3, 0, 0, 0), attr(unix.IFLA_LINK_NETNSID, 5, 0, 0, 0),
		attr(unix.IFLA_IFALIAS, []byte("underlay")...), attr(unix.IFLA_GROUP, 0x72, 0x64, 0x6e, 0x75),
		info("ipvlan", join(attr(nl.IFLA_IPVLAN_MODE, 1, 0), attr(nl.IFLA_IPVLAN_FLAG, 2, 0))...), info("vlan", attr(nl.IFLA_VLAN_ID, 100, 0)...), info("macvlan", sources...))

	a := nl.NewIfAddrmsg(unix.AF_INET)
	a.Index, a.Prefixlen = 7, 32
	addr = join(a.Serialize(), attr(unix.IFA_ADDRESS, 192, 0, 2, 2), attr(unix.IFA_LOCAL, 192, 0, 2, 1), attr(unix.IFA_FLAGS, unix.IFA_F_DADFAILED, 0, 0, 0))

	hop := func(gw byte) []byte {
		h := nl.RtNexthop{RtNexthop: unix.RtNexthop{Ifindex: 7}, Children: []nl.NetlinkRequestData{nl.NewRtAttr(unix.RTA_GATEWAY, []byte{192, 0, 2, gw})}}
		return h.Serialize()
	}
	r := nl.NewRtMsg()
	r.Family, r.Dst_len = unix.AF_INET, 24
	route = join(r.Serialize(), attr(unix.RTA_TABLE, 254, 0, 0, 0), attr(unix.RTA_DST, 198, 51, 100, 0), attr(unix.RTA_PRIORITY, 5, 0, 0, 0),
		attr(unix.RTA_PREFSRC, 192, 0, 2, 1), attr(unix.RTA_MULTIPATH, join(hop(1), hop(2))...))
	return link, addr, route
}

// genmsg is such as tells the number of a namespace, or rp_filter.
var genmsg = join(make([]byte, unix.NLMSG_ALIGNTO), attr(unix.NETNSA_NSID, 9, 0, 0, 0), attr(netconfaRPFilter, 2, 0, 0, 0))

func TestParse(t *testing.T) {
	t.Parallel()
	link, addr, route := payloads()
	l, err := parseLink(link)
	must(t, err)
	want := Link{
		Name: "eth0", Index: 7, Kind: "macvlan", MTU: 1500, MAC: mac(9), Alias: "underlay", Up: true, Parent: 3,
		Mode: ModeSource, Flag: FlagVEPA, SourceMACs: l.SourceMACs, VLAN: 100, abroad: true, nsid: 5, group: unfinished, ethernet: true, noARP: true,
	}
	if diff := cmp.Diff(want, l, equate); diff != "" {
		t.Errorf("link (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"02:00:00:00:00:01", "02:00:00:00:00:02"}, macStrings(l.SourceMACs)); diff != "" {
		t.Errorf("source MACs (-want +got):\n%s", diff)
	}
	a, index, err := parseAddr(addr)
	must(t, err)
	if diff := cmp.Diff(Addr{Prefix: netip.MustParsePrefix("192.0.2.1/32"), DADFailed: true}, a, equate); diff != "" || index != 7 {
		t.Errorf("address of link %d (-want +got):\n%s", index, diff)
	}
	routes, err := parseRoute(route, unix.AF_INET)
	must(t, err)
	hop := Route{
		Dst: netip.MustParsePrefix("198.51.100.0/24"), GW: netip.MustParseAddr("192.0.2.1"), Src: netip.MustParseAddr("192.0.2.1"),
		Priority: 5, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_BOOT, link: 7,
	}
	other := hop
	other.GW = netip.MustParseAddr("192.0.2.2")
	if diff := cmp.Diff([]Route{hop, other}, routes, equate); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}

// What is cut off anywhere gives an error or less, and no panic.
func TestParseCutOff(t *testing.T) {
	t.Parallel()
	link, addr, route := payloads()
	tests := []struct {
		name  string
		whole []byte
		fixed int // without this much there is nothing to read
		parse func([]byte) error
	}{
		{"link", link, unix.SizeofIfInfomsg, func(b []byte) error { _, err := parseLink(b); return err }},
		{"address", addr, unix.SizeofIfAddrmsg, func(b []byte) error { _, _, err := parseAddr(b); return err }},
		{"neighbour", make([]byte, unix.SizeofNdMsg), unix.SizeofNdMsg, func(b []byte) error { _, _, err := parseNeighbour(b); return err }},
		{"number", genmsg, unix.NLMSG_ALIGNTO, func(b []byte) error { _, err := parseNsid(b); return err }},
		{"rp_filter", genmsg, unix.NLMSG_ALIGNTO, func(b []byte) error { _, err := parseRPFilter(b); return err }},
		{"route", route, unix.SizeofRtMsg, func(b []byte) error { _, err := parseRoute(b, unix.AF_INET); return err }},
	}
	for _, tt := range tests {
		for n := range tt.whole {
			if err := tt.parse(tt.whole[:n:n]); n < tt.fixed && !errors.Is(err, nlsock.ErrCutOff) {
				t.Errorf("%s of %d octets: %v", tt.name, n, err)
			}
		}
	}
}

func TestParseNumbers(t *testing.T) {
	t.Parallel()
	id, err := parseNsid(genmsg)
	if id != 9 || err != nil {
		t.Errorf("number of a namespace %d, %v, want 9", id, err)
	}
	if id, err = parseNsid(genmsg[:4]); id != -1 || err != nil {
		t.Errorf("no number is %d, %v, want -1", id, err)
	}
	if value, err := parseRPFilter(genmsg); value != 2 || err != nil {
		t.Errorf("rp_filter %d, %v, want 2", value, err)
	}
}

// Values of a length that no kernel gives them are as good as none.
func TestParseOddValues(t *testing.T) {
	t.Parallel()
	odd := []byte{1, 2, 3}
	attrs := func(n int) (out []byte) {
		for kind := range n {
			out = append(out, attr(kind, odd...)...)
		}
		return out
	}
	l, err := parseLink(join(nl.NewIfInfomsg(0).Serialize(), attrs(64)))
	if err != nil || l.MTU != 0 || l.Parent != 0 || l.Master != 0 {
		t.Errorf("link %+v, %v", l, err)
	}
	a, _, err := parseAddr(join(nl.NewIfAddrmsg(unix.AF_INET).Serialize(), attrs(16)))
	if err != nil || a.IsValid() {
		t.Errorf("address %v, %v", a, err)
	}
	head := nl.NewRtMsg()
	head.Family, head.Dst_len = unix.AF_INET, 200
	routes, err := parseRoute(join(head.Serialize(), attr(unix.RTA_GATEWAY, odd...), attr(unix.RTA_DST, odd...), attr(unix.RTA_OIF, odd...), attr(unix.RTA_MULTIPATH, odd...)), unix.AF_INET)
	if err != nil || len(routes) != 0 {
		t.Errorf("routes %v, %v", routes, err)
	}
}

func FuzzParse(f *testing.F) {
	link, addr, route := payloads()
	for _, b := range [][]byte{link, addr, route} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:len(b):len(b)] // so that what lies behind cannot hide a panic
		if _, err := parseLink(b); err == nil && len(b) < unix.SizeofIfInfomsg {
			t.Error("a link out of nothing")
		}
		if a, _, err := parseAddr(b); err == nil && a.IsValid() && a.Bits() > a.Addr().BitLen() {
			t.Errorf("address %v", a)
		}
		if _, err := parseNsid(b); err == nil && len(b) < unix.NLMSG_ALIGNTO {
			t.Error("a number out of nothing")
		}
		if _, err := parseRPFilter(b); err == nil && len(b) < unix.NLMSG_ALIGNTO {
			t.Error("a setting out of nothing")
		}
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			routes, err := parseRoute(b, family)
			for _, r := range routes {
				if err != nil || r.Dst.Bits() > r.Dst.Addr().BitLen() {
					t.Errorf("route %+v, %v", r, err)
				}
			}
		}
	})
}
