package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// A segment goes with its last user, whom the ledger counts. Whoever makes or
// removes one holds its lock; an attachment is recorded before it makes, and
// removes before the record goes: counting under the lock misses none.

// segment is that of the configuration as records have it; the zero value where
// there is none.
func (c *config) segment() ipam.Segment {
	if c.VNI <= 0 || c.VNI > vxlan.MaxVNI {
		return ipam.Segment{}
	}
	return ipam.Segment{VNI: c.VNI, Port: cmp.Or(c.Port, vxlan.DefaultPort)}
}

// what names, for people, what an attachment uses.
func (c *config) what() string {
	if c.Mode == modeSegment && c.VNI == 0 {
		return fmt.Sprintf("the segment of tenant %q", c.Tenant)
	}
	if c.Mode == modeSegment {
		return fmt.Sprintf("segment %d", c.VNI)
	}
	return fmt.Sprintf("network %q", c.network())
}

// addSegment makes the segment, and returns the interface that the next plugin
// puts the container's on.
func (c *config) addSegment(ctx context.Context, req *cni.Request) (res *current.Result, err error) {
	if prev, err := c.Previous(); err != nil {
		return nil, err
	} else if prev != nil {
		return nil, invalid("prevResult: there is one, and in mode segment vxlan is first in the chain; the plugin that makes the interface comes after it")
	}
	if ok, err := version.GreaterThanOrEqualTo(c.CNIVersion, "0.3.0"); err != nil || !ok {
		return nil, invalid("cniVersion: the results of %q tell no interfaces, and the next plugin has to know that of the segment; use 0.3.0 or later", c.CNIVersion)
	}
	if err := c.askVNI(ctx, false); err != nil {
		return nil, err
	}
	err = onHost(func(h *link.Handle) (err error) {
		want, err := c.wanted(h)
		if err != nil {
			return err
		}
		undo, err := c.allocate(ctx, req, ipam.Uses{Parent: want.Parent, Segment: c.segment()})
		if err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, undo(context.WithoutCancel(ctx)))
			}
		}()
		if err := c.make(ctx, h, want.Parent, c.record(req)); err != nil {
			return err
		}
		leg, err := h.ByName(vxlan.LegName(c.VNI))
		if err != nil {
			return err
		}
		res = &current.Result{CNIVersion: current.ImplementedSpecVersion}
		res.Interfaces = []*current.Interface{{Name: leg.Name, Mac: leg.MAC.String(), Mtu: leg.MTU}}
		return nil
	})
	return res, err
}

// askVNI asks for the VNI that the cluster gives to the network's name, where the
// configuration has none. It is the same on all hosts. With look nothing is given,
// and none may be found.
func (c *config) askVNI(ctx context.Context, look bool) (err error) {
	if c.VNI != 0 {
		return nil
	}
	c.VNI, err = attach.Client(&c.Config).SegmentVNI(ctx, wire.VNI{Tenant: c.Tenant, Name: c.Name, Network: c.recordName(), Look: look})
	return err
}

// wanted is the segment as it has to be on this host, and says why it cannot be.
func (c *config) wanted(h *link.Handle) (s vxlan.Segment, err error) {
	name := c.Master
	if name == "" {
		if name, err = h.DefaultRouteLink(); err != nil {
			return s, cni.Errorf(cni.CodeParent, "master: is missing, and %w", err)
		}
	}
	if _, err := h.Parent(name); err != nil { // which says what to do
		return s, cni.Errorf(cni.CodeParent, "master: %w", err)
	}
	l, err := h.ByName(name)
	if err != nil {
		return s, cni.Errorf(cni.CodeParent, "master: %w", err)
	}
	if l.OwnVLAN() {
		return s, invalid("master: %q is made on demand, and goes with its last container; make it first: ip link add link PARENT name %s type vlan id %d", l.Name, l.Name, l.VLAN)
	}
	if s, err = vxlan.SegmentOf(h, l.Name, c.VNI, c.Port); err != nil {
		return s, cni.Errorf(cni.CodeParent, "master: %w", err)
	}
	most := vxlan.MTU(l.MTU, s.Local)
	switch {
	case c.MTU > most:
		return s, invalid("mtu: %d is more than the %d that VXLAN leaves of the %d of master %q", c.MTU, most, l.MTU, l.Name)
	case most < minMTU:
		return s, cni.Errorf(cni.CodeParent, "master: %q has MTU %d, of which VXLAN leaves nothing", l.Name, l.MTU)
	}
	return s, nil
}

// make makes the segment for an attachment on record. Who is in it already is
// not moved elsewhere.
func (c *config) make(ctx context.Context, h *link.Handle, parent string, att ipam.Attachment) error {
	unlock, err := c.lock(ctx, parent, c.VNI)
	if err != nil {
		return err
	}
	defer unlock()
	want, err := c.wanted(h) // which others may have had a say in by now
	if err != nil {
		return err
	}
	users, err := attach.Client(&c.Config).SegmentUsers(ctx, c.VNI, 2) // this one, and another if there is any
	if err != nil {
		return err
	}
	have, found, err := vxlan.Find(nil, c.VNI)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(users, func(r ipam.AttachmentRecord) bool { return r.Attachment != att })
	others := i >= 0
	if others && !found { // somebody has deleted it
		have.Parent, have.Port = users[i].Uses.Parent, users[i].Uses.Segment.Port
	}
	switch {
	case have.Network != "":
		return cni.Errorf(cni.CodeParent, "vni: %d is that of network %q, whose peers are routed to; a segment needs a vni of its own", c.VNI, have.Network)
	case others && (have.Parent != want.Parent || have.Port != want.Port):
		return cni.Errorf(cni.CodeParent, "vni: %d has containers on master %q, with port %d; use these, or another vni", c.VNI, have.Parent, have.Port)
	case others && c.MTU != 0 && c.MTU != want.MTU:
		return invalid("mtu: %d, and segment %d has containers with %d; use that, or leave mtu out", c.MTU, c.VNI, want.MTU)
	case !others:
		want.MTU = c.MTU
	}
	if _, err := want.Apply(nil); err != nil {
		return cni.Errorf(cni.CodeParent, "vni: %w", err)
	}
	fault.Point("vxlan.made")
	return nil
}

// lock keeps others from making or removing the segment. Its parent's is what all
// that is shared on the parent is made under; the segment's own keeps apart those
// that have it on different parents.
func (c *config) lock(ctx context.Context, parent string, vni int) (unlock func(), err error) {
	outer := func() {}
	if parent != "" {
		if outer, err = attach.Lock(ctx, &c.Config, parent); err != nil {
			return nil, err
		}
	}
	inner, err := attach.Lock(ctx, &c.Config, vxlan.LegName(vni))
	if err != nil {
		outer()
		return nil, err
	}
	return func() { inner(); outer() }, nil
}

// unmake removes the segment of a record if nobody else is in it, and then
// releases. Where nobody can tell who else there is, only that.
func (c *config) unmake(ctx context.Context, rec ipam.AttachmentRecord, release func() error) error {
	vni := rec.Uses.Segment.VNI
	if vni == 0 {
		return release()
	}
	unlock, err := c.lock(ctx, rec.Uses.Parent, vni)
	if err != nil {
		return release()
	}
	defer unlock()
	users, err := attach.Client(&c.Config).SegmentUsers(ctx, vni, 2)
	if err != nil {
		return release()
	}
	// The same attachment may have come again since rec was read.
	others := slices.ContainsFunc(users, func(r ipam.AttachmentRecord) bool {
		return r.Attachment != rec.Attachment || !rec.Since.IsZero() && r.Since.After(rec.Since)
	})
	if !others {
		if err := vxlan.RemoveSegment(nil, vni); err != nil {
			return err
		}
		fault.Point("vxlan.removed")
	}
	return release()
}

// checkMade compares the host with what ADD has made of the segment.
func (c *config) checkMade(rec ipam.AttachmentRecord, prev *current.Result) error {
	c.VNI = cmp.Or(c.VNI, rec.Uses.Segment.VNI)
	if rec.Uses.Segment != c.segment() {
		return differs("the ledger has the attachment in segment %d with port %d, not in %d with %d",
			rec.Uses.Segment.VNI, rec.Uses.Segment.Port, c.segment().VNI, c.segment().Port)
	}
	return onHost(func(h *link.Handle) error {
		want, err := c.wanted(h)
		if err != nil {
			return err
		}
		have, found, err := vxlan.Find(nil, c.VNI)
		switch {
		case err != nil:
			return err
		case !found || have.Network != "":
			return differs("segment %d: there is no device %q of its own", c.VNI, vxlan.Name(c.VNI))
		case have.Parent != want.Parent || have.Port != want.Port || have.Local != want.Local:
			return differs("segment %d: device %q is on %q with port %d and address %s, not on %q with port %d and address %s", c.VNI,
				vxlan.Name(c.VNI), have.Parent, have.Port, have.Local, want.Parent, want.Port, want.Local)
		case have.MTU != want.MTU || c.MTU != 0 && have.MTU != c.MTU:
			return differs("segment %d: device %q has MTU %d, not %d", c.VNI, vxlan.Name(c.VNI), have.MTU, cmp.Or(c.MTU, want.MTU))
		}
		return c.checkLinks(h, prev, have.MTU)
	})
}

// checkLinks looks at the bridge, its ports and the leg.
func (c *config) checkLinks(h *link.Handle, prev *current.Result, mtu int) error {
	bridge, err := h.ByName(vxlan.BridgeName(c.VNI))
	switch {
	case err != nil:
		return differs("segment %d: bridge: %w", c.VNI, err)
	case bridge.Kind != "bridge" || bridge.Alias != link.SharedAlias || !bridge.Up:
		return differs("segment %d: %q is not a bridge of its own that is up", c.VNI, bridge.Name)
	}
	leg, err := h.ByName(vxlan.LegName(c.VNI))
	if err != nil {
		return differs("segment %d: leg: %w", c.VNI, err)
	}
	peer, err := h.ByIndex(leg.Parent)
	if err != nil {
		return differs("segment %d: other end of leg %q: %w", c.VNI, leg.Name, err)
	}
	device, err := h.ByName(vxlan.Name(c.VNI))
	if err != nil {
		return differs("segment %d: %w", c.VNI, err)
	}
	for _, l := range []link.Link{leg, peer, device} {
		switch {
		case !l.Up:
			return differs("segment %d: %q is down", c.VNI, l.Name)
		case l.MTU != mtu:
			return differs("segment %d: %q has MTU %d, not %d", c.VNI, l.Name, l.MTU, mtu)
		case l.Index != leg.Index && l.Master != bridge.Index:
			return differs("segment %d: %q is no port of bridge %q", c.VNI, l.Name, bridge.Name)
		}
	}
	for _, i := range prev.Interfaces {
		if i.Sandbox == "" && i.Name == leg.Name && i.Mac != "" && i.Mac != leg.MAC.String() {
			return differs("segment %d: leg %q has MAC %s, not %s", c.VNI, leg.Name, leg.MAC, i.Mac)
		}
	}
	return nil
}
