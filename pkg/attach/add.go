package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// candidates is how many addresses are tried when others answer for them.
const candidates = 16

// undoTime is what taking back may use of its own when the call's time is up.
const undoTime = 10 * time.Second

// Add attaches the container and returns the result. When it fails, nothing
// of it is left.
func Add(ctx context.Context, req *cni.Request, conf *Config, kind Kind) (*current.Result, error) {
	p, err := newPlan(req, conf, kind)
	if err != nil {
		return nil, err
	}
	ns, err := netns.Open(req.Netns)
	if err != nil {
		return nil, cni.Errorf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: %w", err)
	}
	defer ns.Close()
	if err := ns.Lock(ctx); err != nil {
		return nil, err
	}
	h, err := p.openParentSide(ns)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	parent, err := p.findParent(h)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		a := &adder{plan: p, ns: ns, parentSide: h, parent: parent}
		res, err := a.add(ctx)
		var conflict *conflictError
		if !errors.As(err, &conflict) || try == candidates || len(p.ips) > 0 || p.ipamType != OwnIPAM {
			return res, err
		}
	}
}

// openParentSide opens a handle on the namespace that the parent is in.
func (p *plan) openParentSide(ns *netns.NS) (*link.Handle, error) {
	if p.LinkInContainer {
		return link.OpenAt(ns.Fd())
	}
	return link.Open()
}

// adder is one try at an ADD.
type adder struct {
	*plan
	ns         *netns.NS
	parentSide *link.Handle // a handle where the parent is
	parent     link.Link

	carrier   link.Link                   // what the link sits on: parent or its sub-interface
	sibling   link.Link                   // with HostAccess
	known     map[netip.Prefix]netip.Addr // with HostAccess: own address to the host's
	index     int                         // of the new link, in ns
	mac       net.HardwareAddr
	addresses *current.Result // of IPAM; nil without
}

// conflictError is returned when somebody else uses an address of ours.
type conflictError struct{ conflicts []ipam.Conflict }

func (e *conflictError) Error() string {
	c := e.conflicts[0]
	return fmt.Sprintf("address %s is in use on the wire: %s", c.Address, c.Reason)
}

// CNICode is cni.CodeConflict.
func (e *conflictError) CNICode() uint { return cni.CodeConflict }

func (a *adder) add(ctx context.Context) (res *current.Result, err error) {
	// Taking back has to go on when the call's own time is up.
	undo := func(f func(context.Context) error) {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
			defer cancel()
			err = errors.Join(err, f(ctx))
		}
	}

	known, err := a.allocate(ctx)
	if err != nil {
		return nil, err
	}
	if !known {
		defer undo(func(ctx context.Context) error { return a.release(ctx, err) })
	}
	fault.Point("attach.allocated")

	if err := a.share(ctx); err != nil {
		return nil, err
	}
	fault.Point("attach.shared")

	if err := a.create(); err != nil {
		return nil, err
	}
	defer undo(func(context.Context) error {
		return a.ns.Do(func() error { return deleteLink(a.index) })
	})
	fault.Point("attach.created")

	if err := a.askForeign(ctx); err != nil {
		return nil, err
	}
	if a.foreignType() {
		defer undo(a.foreignIPAM().Del)
	}
	fault.Point("attach.asked")

	if err := a.meet(); err != nil {
		return nil, err
	}
	if err := a.ns.Do(func() error { return a.configure(ctx) }); err != nil {
		return nil, err
	}
	fault.Point("attach.configured")

	if err := a.reach(ctx); err != nil {
		return nil, err
	}
	fault.Point("attach.reached")
	return a.result(), nil
}

// allocate has the ledger record what the attachment holds and shares, and
// sets addresses and MAC. known is set when it held the same before, for an
// ADD that is repeated.
func (a *adder) allocate(ctx context.Context) (known bool, err error) {
	uses := a.uses(a.parent.Name)
	if a.mac = a.plan.mac; a.mac == nil && !a.kind.ParentMAC {
		if a.mac, err = a.macWithoutAddress(); err != nil {
			return false, err
		}
	}
	if a.ipamType != OwnIPAM && !uses.Shared() {
		return false, nil
	}
	dev, ino := a.ns.ID()
	req := ipam.AllocateRequest{
		Attachment: a.att, Uses: uses, Owner: a.req.Args.Owner, Runtime: client.Runtime(a.req.Path),
		Netns: ipam.Netns{Path: a.req.Netns, Dev: dev, Inode: ino},
	}
	if a.ipamType == OwnIPAM {
		req.Pool, req.Addresses = a.ipam.Pool, a.ips
		if req.Avoid, err = a.hostAddresses(); err != nil {
			return false, err
		}
		switch {
		case a.plan.mac != nil:
			req.MAC = a.plan.mac.String()
		case a.kind.ParentMAC:
			req.MAC = a.parent.MAC.String()
		default:
			req.MACPrefix = a.macPrefix()
		}
	} else {
		req.MAC = a.mac.String()
	}
	got, err := a.client.Allocate(ctx, req)
	if err != nil {
		return false, err
	}
	if a.ipamType != OwnIPAM {
		return got.Known, nil
	}
	if !a.kind.ParentMAC {
		if a.mac, err = net.ParseMAC(got.MAC); err != nil {
			return got.Known, fmt.Errorf("MAC of the ledger: %w", err)
		}
	}
	a.addresses, err = client.Result(a.ipam, got)
	if err != nil && !got.Known {
		err = errors.Join(err, a.release(ctx, err))
	}
	return got.Known, err
}

// release takes back what allocate recorded; addresses that cause names as
// in use by others are quarantined.
func (a *adder) release(ctx context.Context, cause error) error {
	if !touchesLedger(a.Config, a.ipamType) {
		return nil
	}
	req := ipam.ReleaseRequest{Attachment: a.att, Undo: true}
	var conflict *conflictError
	if errors.As(cause, &conflict) {
		req.Conflict = conflict.conflicts
	}
	released, err := a.client.Release(ctx, req, nil)
	return errors.Join(err, a.unshare(ctx, released))
}

// create makes the link. A link of that name which an earlier ADD of this
// attachment has made is replaced.
func (a *adder) create() error {
	t := link.Target{Name: a.req.IfName, NetnsFd: a.ns.Fd(), Parent: a.carrier.Index, MAC: a.mac, MTU: a.MTU}
	if a.LinkInContainer {
		t.NetnsFd = -1
	}
	var err error
	a.index, err = a.kind.Create(a.parentSide, t)
	if errors.Is(err, link.ErrExists) {
		if err = a.replaceable(); err == nil {
			a.index, err = a.kind.Create(a.parentSide, t)
		}
	}
	switch {
	case errors.Is(err, link.ErrBusy):
		return cni.Errorf(cni.CodeParent, "master: %q: %w: %s", a.parent.Name, err, a.parentSide.Holder(a.carrier))
	case errors.Is(err, link.ErrPassthru):
		return cni.Errorf(cni.CodeParent, "master: %q: %w; remove the other children, or use another master", a.parent.Name, err)
	case err != nil:
		return cni.Errorf(cni.CodeLink, "%w", err)
	}
	return nil
}

// replaceable removes the interface that is in the way if it is this
// attachment's own.
func (a *adder) replaceable() error {
	return a.ns.Do(func() error {
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		l, err := h.ByName(a.req.IfName)
		if err != nil {
			return err
		}
		if l.Kind == a.kind.Name && l.Alias == alias(a.att) {
			return h.Delete(l.Index)
		}
		return fmt.Errorf("CNI_IFNAME: %q: %w in the container (%s)", a.req.IfName, link.ErrExists, kindOf(l))
	})
}

func kindOf(l link.Link) string {
	if l.Kind == "" {
		return "a device"
	}
	return l.Kind
}

func (p *plan) foreignIPAM() cni.Foreign { return cni.Foreign{Type: p.ipamType, Conf: p.req.Stdin} }

// askForeign runs a foreign IPAM plugin, when the link is there: some (dhcp)
// need it.
func (a *adder) askForeign(ctx context.Context) (err error) {
	if !a.foreignType() {
		return nil
	}
	if a.addresses, err = a.foreignIPAM().Add(ctx); err != nil {
		return err
	}
	if len(a.addresses.IPs) == 0 {
		return errors.Join(fmt.Errorf("ipam %q: its result has no addresses", a.ipamType), a.foreignIPAM().Del(ctx))
	}
	return nil
}

func (a *adder) result() *current.Result {
	res := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	mtu := a.MTU
	if mtu == 0 {
		mtu = a.carrier.MTU
	}
	res.Interfaces = []*current.Interface{{Name: a.req.IfName, Mac: a.mac.String(), Mtu: mtu, Sandbox: a.req.Netns}}
	if a.addresses != nil {
		res.IPs, res.Routes, res.DNS = a.addresses.IPs, a.addresses.Routes, a.addresses.DNS
		for _, ip := range res.IPs {
			ip.Interface = current.Int(0)
		}
	}
	if !a.DNS.IsEmpty() {
		res.DNS = a.DNS
	}
	return res
}
