package attach

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/flock"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// What attachments of one parent share on the host, the VLAN sub-interface
// and the sibling of hostAccess, goes with its last user. The ledger counts
// the users. Whoever makes or removes a shared link holds the parent's lock;
// an attachment is recorded before it makes, and removes before the record
// goes: counting under the lock misses none, and a call that dies in between
// is made up for by the next one.

// share makes what the attachment uses, and finds what its link sits on. Where
// it is not known that others agree with the link's Port, it also makes the
// link, before anybody else can look whether there is one.
func (a *adder) share(ctx context.Context, in *inside, create func()) error {
	if !a.uses(a.parent.Name).Shared() && a.agreed() {
		return nil
	}
	if !a.LinkInContainer { // where the namespace's lock does
		unlock, err := lockParent(ctx, a.client, a.parent.Name)
		if err != nil {
			return err
		}
		defer unlock()
	}
	var err error
	if a.VLAN != 0 {
		if a.carrier, err = a.parentSide.EnsureVLAN(a.parent, a.VLAN); err != nil {
			return cni.Errorf(cni.CodeParent, "vlan: %w", err)
		}
	}
	agreed := a.agreed()
	if !agreed {
		if err := a.compete(in); err != nil {
			return err
		}
	}
	if a.HostAccess {
		a.sibling, err = a.parentSide.EnsureSibling(a.carrier, a.kind.Name, a.kind.Sibling)
		if errors.Is(err, link.ErrBusy) {
			return a.busy(err)
		}
		if err != nil {
			return cni.Errorf(cni.CodeParent, "%w", err)
		}
	}
	if agreed {
		return nil
	}
	create()
	return in.wait()
}

// unshare removes what rec uses and nobody else does, and then releases, if
// there is anything to release.
func unshare(ctx context.Context, c *client.Client, rec ipam.AttachmentRecord, release func() error) error {
	u := rec.Uses
	if !u.Shared() {
		return release()
	}
	// Where nobody can tell who else there is, DEL goes on with what it can do,
	// and GC makes up for the rest.
	unlock, err := lockParent(ctx, c, u.Parent)
	if err != nil {
		return release()
	}
	defer unlock()
	vlan, host, err := c.Users(ctx, u, 2) // this one, and another if there is any
	if err != nil {
		return release()
	}
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	// The same attachment may have come again since rec was read.
	others := func(users []ipam.AttachmentRecord) bool {
		return slices.ContainsFunc(users, func(r ipam.AttachmentRecord) bool {
			return r.Attachment != rec.Attachment || !rec.Since.IsZero() && r.Since.After(rec.Since)
		})
	}
	carrier := u.Parent
	if u.VLAN != 0 {
		carrier, _ = link.VLANName(u.Parent, u.VLAN)
	}
	switch {
	case !u.HostAccess:
	case others(host):
		err = unreach(h, carrier, rec)
	default:
		err = h.DeleteSibling(carrier)
	}
	fault.Point("attach.unreached")
	if u.VLAN != 0 && !others(vlan) {
		err = errors.Join(err, h.DeleteVLAN(u.Parent, u.VLAN))
	}
	if err != nil {
		return err
	}
	fault.Point("attach.unshared")
	return release()
}

// unreach removes what leads to rec through the sibling: to its addresses, and
// to those of a foreign IPAM plugin, which only its MAC tells (and those have
// one of their own).
func unreach(h *link.Handle, carrier string, rec ipam.AttachmentRecord) error {
	sibling, err := h.ByName(link.SiblingName(carrier))
	if errors.Is(err, link.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	addrs := slices.Clone(rec.Addresses)
	known, err := h.Neighbours(sibling.Index)
	for _, n := range known {
		if rec.Uses.Port == "" && n.MAC.String() == rec.MAC && !slices.Contains(addrs, n.Addr) {
			addrs = append(addrs, n.Addr)
		}
	}
	errs := []error{err}
	for _, a := range addrs {
		errs = append(errs, h.Unreach(sibling, a))
	}
	return errors.Join(errs...)
}

// hostAddresses are those that nobody answers for to a sibling's probe: of the
// interface that the link will sit on, and those that it may know the host by.
func (a *adder) hostAddresses() ([]netip.Addr, error) {
	carrier := a.parent
	if p := a.kind.Pair; p != nil && p.Bridge != "" {
		l, err := a.parentSide.ByName(p.Bridge)
		if errors.Is(err, link.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		carrier = l
	}
	if a.VLAN != 0 {
		name, _ := link.VLANName(a.parent.Name, a.VLAN)
		l, err := a.parentSide.ByName(name)
		switch {
		case err == nil:
			carrier = l
		case !errors.Is(err, link.ErrNotFound):
			return nil, err
		case !a.HostAccess:
			return nil, nil
		}
	}
	list, err := a.addrsOf(carrier)
	out := make([]netip.Addr, len(list))
	for i, p := range list {
		out[i] = p.Addr()
	}
	return out, err
}

// addrsOf are the host's addresses on a carrier. With hostAccess those of the
// parent follow: a sub-interface that is made on demand has none, and the host
// takes what is for any of its addresses.
func (a *adder) addrsOf(carrier link.Link) ([]link.Addr, error) {
	own, err := a.parentSide.Addrs(carrier.Index)
	if err != nil || !a.HostAccess || carrier.Index == a.parent.Index {
		return own, err
	}
	more, err := a.parentSide.Addrs(a.parent.Index)
	return append(own, more...), err
}

// meet pairs each address of the container with the address that it is to
// know the host by; families that the host has no address of are left out.
func (a *adder) meet() error {
	if !a.HostAccess {
		return nil
	}
	own, err := a.addrsOf(a.carrier)
	if err != nil {
		return err
	}
	a.known = make(map[netip.Prefix]netip.Addr)
	for _, p := range a.prefixes() {
		if host, ok := link.HostAddr(own, p.Addr()); ok {
			a.known[p] = host
		}
	}
	if len(a.known) == 0 {
		return invalid("hostAccess: %q has no address that the container could know the host by", a.parent.Name)
	}
	return a.checkWayBack()
}

// checkWayBack: what a link that shares the parent's MAC sends to the host comes
// in on the parent, where a strict host does not expect it.
func (a *adder) checkWayBack() error {
	if !a.kind.sharesMAC() || a.kind.Layer3 {
		return nil
	}
	strict, err := a.parentSide.StrictRPFilter(a.carrier)
	if err != nil {
		return err
	}
	for p := range a.known {
		if !strict || !p.Addr().Is4() {
			continue
		}
		if a.carrier.OwnVLAN() {
			return netns.Sysctl("net/ipv4/conf/"+a.carrier.Name+"/rp_filter", "2")
		}
		return cni.Errorf(cni.CodeParent, "hostAccess: the host drops what its own containers send it by %q, as rp_filter is 1 there; set: sysctl net.ipv4.conf.%s.rp_filter=2",
			a.carrier.Name, strings.ReplaceAll(a.carrier.Name, ".", "/"))
	}
	return nil
}

// meetHost is the container's side of hostAccess, called inside it.
func (a *adder) meetHost(h *link.Handle) error {
	for p, host := range a.known {
		if !p.Masked().Contains(host) {
			r := link.Route{Dst: netip.PrefixFrom(host, host.BitLen()), Scope: -1}
			if err := h.AddRoute(a.index, r); err != nil {
				return err
			}
		}
		if a.kind.Layer3 {
			continue
		}
		if err := h.SetNeighbour(a.index, host, a.sibling.MAC); err != nil {
			return err
		}
	}
	return nil
}

// reach is the host's side of hostAccess, for all users of the sibling: the
// kernel drops their routes when the host's address, the source of them all,
// changes; and a release that could not come by here leaves its own behind.
func (a *adder) reach(ctx context.Context) error {
	if !a.HostAccess {
		return nil
	}
	unlock, err := lockParent(ctx, a.client, a.parent.Name)
	if err != nil {
		return err
	}
	defer unlock()
	h := a.parentSide
	own, err := a.addrsOf(a.carrier)
	if err != nil {
		return err
	}
	_, users, err := a.client.Users(ctx, a.uses(a.parent.Name), 0)
	if err != nil {
		return err
	}
	routes, err := h.Routes(a.sibling.Index)
	if err != nil {
		return err
	}
	known, err := h.Neighbours(a.sibling.Index)
	if err != nil {
		return err
	}
	want := make(map[netip.Addr]net.HardwareAddr)
	for _, u := range users {
		mac, err := net.ParseMAC(u.MAC)
		if err != nil {
			continue
		}
		for _, c := range u.Addresses {
			want[c] = mac
		}
		// Addresses of a foreign IPAM plugin are not in the ledger.
		for _, n := range known {
			if !a.kind.sharesMAC() && bytes.Equal(n.MAC, mac) {
				want[n.Addr] = mac
			}
		}
	}
	mine := make(map[netip.Addr]bool)
	for p := range a.known {
		want[p.Addr()], mine[p.Addr()] = a.mac, true
	}
	routed, neighbour := make(map[netip.Addr]bool), make(map[netip.Addr]bool)
	for _, r := range routes {
		routed[r.Dst.Addr()] = true
	}
	var errs []error
	for _, n := range known {
		neighbour[n.Addr] = true // which a change of the parent's MAC takes away
		if want[n.Addr] == nil {
			errs = append(errs, h.Unreach(a.sibling, n.Addr))
		}
	}
	for c, mac := range want {
		host, ok := link.HostAddr(own, c)
		if ok && (mine[c] || !routed[c] || !neighbour[c]) {
			errs = append(errs, h.Reach(a.sibling, c, host, mac))
		}
	}
	return errors.Join(errs...)
}

// lockParent keeps other processes from making or removing what is shared on
// a parent until unlock.
func lockParent(ctx context.Context, c *client.Client, parent string) (unlock func(), err error) {
	return flock.Shared(ctx, c.Options().RunDir, parent)
}

// Lock keeps other processes from making or removing what attachments share
// under a name until unlock.
func Lock(ctx context.Context, conf *Config, name string) (unlock func(), err error) {
	return lockParent(ctx, Client(conf), name)
}
