package arp

import (
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// soon is far longer than anything awaited takes, and paid only by a failure.
const soon = 20 * time.Second

// end is an interface eth0 in a namespace of its own.
type end struct {
	ns  ns.NetNS
	nl  *netlink.Handle
	ifc Iface
	// parent, in another namespace, is what probers listen on; nil: eth0 itself.
	parent *end
}

// veth joins two ends by a cable. Both are still down.
func veth(t testing.TB) (here, there *end) {
	t.Helper()
	here, there = namespace(t), namespace(t)
	attrs := netlink.NewLinkAttrs()
	// With one index at both ends, the kernel takes them for one, not stacked on
	// another, and for up to a second does not hurry to say that it is up.
	attrs.Name, attrs.Index = "eth0", 1000
	must(t, here.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(there.ns.Fd())}))
	here.find(t)
	there.find(t)
	return here, there
}

// siblings are two macvlans in bridge mode on one parent. Both are still down.
func siblings(t testing.TB) (here, there *end) {
	t.Helper()
	parent, other := veth(t)
	parent.up(t)
	other.up(t)
	parent.ready(t)
	return parent.macvlan(t, netlink.MACVLAN_MODE_BRIDGE), parent.macvlan(t, netlink.MACVLAN_MODE_BRIDGE)
}

// macvlan makes a child of the end in a namespace of its own. It is down.
func (e *end) macvlan(t testing.TB, mode netlink.MacvlanMode) *end {
	t.Helper()
	return e.child(t, func(attrs netlink.LinkAttrs) netlink.Link {
		return &netlink.Macvlan{LinkAttrs: attrs, Mode: mode}
	})
}

// ipvlan makes a slave of mode l2, as macvlan does a child.
func (e *end) ipvlan(t testing.TB, flag netlink.IPVlanFlag) *end {
	t.Helper()
	return e.child(t, func(attrs netlink.LinkAttrs) netlink.Link {
		return &netlink.IPVlan{LinkAttrs: attrs, Mode: netlink.IPVLAN_MODE_L2, Flag: flag}
	})
}

func (e *end) child(t testing.TB, link func(netlink.LinkAttrs) netlink.Link) *end {
	t.Helper()
	c := namespace(t)
	attrs := netlink.NewLinkAttrs()
	// Older kernels want a name that no interface here has either.
	attrs.Name, attrs.ParentIndex, attrs.Namespace = "new0", e.ifc.Index, netlink.NsFd(c.ns.Fd())
	must(t, e.nl.LinkAdd(link(attrs)))
	made, err := c.nl.LinkByName("new0")
	must(t, err)
	must(t, c.nl.LinkSetName(made, "eth0"))
	c.find(t)
	return c
}

// namespace makes one that has no eth0 yet and lives as long as the test.
func namespace(t testing.TB) *end {
	t.Helper()
	n, err := testutils.NewNS()
	must(t, err)
	t.Cleanup(func() {
		must(t, n.Close())
		must(t, testutils.UnmountNS(n))
	})
	nl, err := netlink.NewHandleAt(netns.NsHandle(n.Fd()), unix.NETLINK_ROUTE)
	must(t, err)
	t.Cleanup(nl.Close)
	return &end{ns: n, nl: nl}
}

// find fills in what the interface is.
func (e *end) find(t testing.TB) {
	t.Helper()
	link, err := e.nl.LinkByName("eth0")
	must(t, err)
	e.ifc = Iface{Name: "eth0", Index: link.Attrs().Index, MAC: link.Attrs().HardwareAddr}
}

func (e *end) link() netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Index = e.ifc.Index
	return &netlink.Device{LinkAttrs: attrs}
}

// rename gives the interface another MAC. An ipvlan has that of its parent.
func (e *end) rename(t testing.TB, m mac) {
	t.Helper()
	err := e.nl.LinkSetHardwareAddr(e.link(), m[:])
	if errors.Is(err, unix.EOPNOTSUPP) && e.parent != nil {
		err = e.parent.nl.LinkSetHardwareAddr(e.parent.link(), m[:])
	}
	must(t, err)
	e.find(t)
}

func (e *end) up(t testing.TB) {
	t.Helper()
	must(t, e.nl.LinkSetUp(e.link()))
}

// ready returns when the link carries frames. Of a veth, that is only some
// time after both ends are up. What is made on one that is ready is ready when
// it is up, and an ipvlan does not even tell.
func (e *end) ready(t testing.TB) {
	t.Helper()
	if e.parent != nil {
		return
	}
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	defer close(done)
	at := netns.NsHandle(e.ns.Fd())
	must(t, netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{Namespace: &at, ListExisting: true}))
	for late := time.After(soon); ; {
		select {
		case u := <-updates:
			if u.Attrs().Index == e.ifc.Index && u.Attrs().OperState == netlink.OperUp {
				return
			}
		case <-late:
			t.Fatal("the link stays down")
		}
	}
}

// assign gives the interface addresses, without duplicate address detection,
// and returns when it answers for them: the kernel joins the group to which
// IPv6 questions go some time after it has the address, and tells nobody.
func (e *end) assign(t testing.TB, as ...netip.Addr) {
	t.Helper()
	for _, a := range as {
		ones := 24
		if a.Is6() {
			ones = 64
		}
		ipnet := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(ones, a.BitLen())}
		must(t, e.nl.AddrAdd(e.link(), &netlink.Addr{IPNet: ipnet, Flags: unix.IFA_F_NODAD}))
		if a.Is6() {
			group := solicited(a).As16()
			eventually(t, func() bool {
				return strings.Contains(e.proc(t, "igmp6"), hex.EncodeToString(group[:]))
			})
		}
	}
}

// open opens a prober for the end, until the test ends.
func (e *end) open(t testing.TB, as ...netip.Addr) *Prober {
	t.Helper()
	var p *Prober
	listen := e
	if e.parent != nil {
		listen = e.parent
	}
	must(t, listen.ns.Do(func(ns.NetNS) (err error) {
		p, err = Open(listen.ifc, as)
		return err
	}))
	t.Cleanup(func() { must(t, p.Close()) })
	if e.parent != nil {
		must(t, e.from(p))
	}
	return p
}

// from has a prober send from the end.
func (e *end) from(p *Prober) error {
	return e.ns.Do(func(ns.NetNS) error { return p.From(e.ifc) })
}

// proc reads a file of /proc/net as the namespace of the end has it.
func (e *end) proc(t testing.TB, name string) string {
	t.Helper()
	var content []byte
	must(t, e.ns.Do(func(ns.NetNS) (err error) {
		content, err = os.ReadFile("/proc/thread-self/net/" + name)
		return err
	}))
	return string(content)
}

// eventually waits for what no event tells of.
func eventually(t testing.TB, done func() bool) {
	t.Helper()
	for late := time.Now().Add(soon); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("it never happened")
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func addrs(ss ...string) []netip.Addr {
	var as []netip.Addr
	for _, s := range ss {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}
