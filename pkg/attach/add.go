package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/arp"
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
		switch {
		case !errors.As(err, &conflict), len(p.ips) > 0, p.ipamType != OwnIPAM:
			return res, err
		case try == candidates:
			return nil, cni.Errorf(types.ErrTryAgainLater, "pool %q: %d addresses in a row are in use on the wire without being held here, the last one: %w",
				p.ipam.Pool.Name, candidates, err)
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
	granted   bool                        // the ledger has recorded something that was not there before
	asked     bool                        // a foreign IPAM plugin has been asked
	index     int                         // of the new link, in ns; 0 while there is none
	mac       net.HardwareAddr
	addresses *current.Result // of IPAM; nil without
	prober    *arp.Prober     // nil without addresses
	probed    time.Time       // when the first question left
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
	req, err := a.request()
	if err != nil {
		return nil, err
	}
	defer a.closeProber()
	in := enter(a.ns)
	defer in.leave()
	// The link goes first, so that nobody gets an address that still answers.
	defer undo(func(ctx context.Context) error { return a.release(ctx, err) })
	defer undo(a.releaseForeign)
	defer undo(func(context.Context) error { return a.unmake(in) })

	// What is shared is made only when the ledger has it on record.
	shared := req.Uses.Shared()
	if !shared {
		a.carrier = a.parent
		in.then(a.create(a.mac))
	}
	prepare := func(h *link.Handle) error { return a.prepare(ctx, h) }
	prepared := false
	err = a.allocate(ctx, req, func() {
		if !shared {
			in.then(prepare)
			prepared = true
		}
	})
	if err != nil {
		return nil, err
	}
	fault.Point("attach.allocated")

	if shared {
		if err := a.share(ctx); err != nil {
			return nil, err
		}
		fault.Point("attach.shared")
		in.then(a.create(a.mac))
	}
	if a.foreignType() {
		if err := errors.Join(in.wait(), a.askForeign(ctx)); err != nil {
			return nil, err
		}
		fault.Point("attach.asked")
	}
	if !prepared {
		in.then(prepare)
	}
	if err := in.wait(); err != nil {
		return nil, err
	}
	if err := a.meet(); err != nil {
		return nil, err
	}
	in.then(func(h *link.Handle) error { return a.configure(ctx, h) })
	if err := in.wait(); err != nil {
		return nil, err
	}
	fault.Point("attach.configured")

	if err := a.reach(ctx); err != nil {
		return nil, err
	}
	fault.Point("attach.reached")
	return a.result(), nil
}

// request is what the ledger is asked for, and sets the MAC as far as it does
// not depend on the answer.
func (a *adder) request() (req ipam.AllocateRequest, err error) {
	dev, ino := a.ns.ID()
	req = ipam.AllocateRequest{
		Attachment: a.att, Uses: a.uses(a.parent.Name), Owner: a.req.Args.Owner, Runtime: client.Runtime(a.req.Path),
		Netns: ipam.Netns{Path: a.req.Netns, Dev: dev, Inode: ino},
	}
	switch {
	case a.kind.ParentMAC: // the kernel copies it, unless the user wants another
		a.mac = a.plan.mac
		req.MAC = first(a.plan.mac.String(), a.parent.MAC.String())
	case a.plan.mac != nil:
		a.mac = a.plan.mac
		req.MAC = a.mac.String()
	case a.ipamType == OwnIPAM:
		req.MACPrefix = a.macPrefix()
	default:
		if a.mac, err = a.macWithoutAddress(); err != nil {
			return req, err
		}
		req.MAC = a.mac.String()
	}
	if a.ipamType == OwnIPAM {
		req.Pool = a.ipam.Pool
		for _, ip := range a.ips {
			req.Ask(ip.Addr, ip.Place)
		}
		req.Avoid, err = a.hostAddresses()
	}
	return req, err
}

// allocate has the ledger record what the attachment holds and shares, and
// sets addresses and MAC. decided is called as soon as these are set, which
// may be before the record is durable.
func (a *adder) allocate(ctx context.Context, req ipam.AllocateRequest, decided func()) error {
	if a.ipamType != OwnIPAM {
		if !req.Uses.Shared() {
			return nil
		}
		got, err := a.client.Allocate(ctx, req, nil)
		a.granted = err == nil && !got.Known
		return err
	}
	dns, err := client.DNS(a.ipam)
	if err != nil {
		return err
	}
	var told ipam.Allocation
	var accepted error
	got, err := a.client.Allocate(ctx, req, func(got ipam.Allocation) {
		told = got
		if accepted = a.accept(got, dns); accepted == nil {
			decided()
		}
	})
	if err != nil {
		return err
	}
	a.granted = !got.Known
	if told.Addresses == nil {
		return a.accept(got, dns)
	}
	if !slices.Equal(told.Addresses, got.Addresses) {
		return fmt.Errorf("the ledger gave %v after it had decided on %v", got.Addresses, told.Addresses)
	}
	return accepted
}

// accept takes over what the ledger gives.
func (a *adder) accept(got ipam.Allocation, dns types.DNS) (err error) {
	if !a.kind.ParentMAC {
		if a.mac, err = net.ParseMAC(got.MAC); err != nil {
			return fmt.Errorf("MAC of the ledger: %w", err)
		}
	}
	a.addresses = client.Result(a.ipam, got, dns)
	return nil
}

// release takes back what allocate recorded, and what an earlier ADD did if
// cause says that others use it: such addresses are quarantined.
func (a *adder) release(ctx context.Context, cause error) error {
	req := ipam.ReleaseRequest{Attachment: a.att, Undo: true}
	var conflict *conflictError
	if errors.As(cause, &conflict) && a.ipamType == OwnIPAM {
		req.Conflict = conflict.conflicts
	}
	if !a.granted && req.Conflict == nil {
		return nil
	}
	released, err := a.client.Release(ctx, req, nil)
	return errors.Join(err, a.unshare(ctx, released))
}

// unmake removes the link, if it has been made.
func (a *adder) unmake(in *inside) error {
	_ = in.wait() // known; what counts is how far it came
	if a.index == 0 {
		return nil
	}
	return a.ns.Do(func() error { return deleteLink(a.index) })
}

// create makes the link, with its final MAC where that is known already. A
// link of that name which an earlier ADD of this attachment has made is
// replaced.
func (a *adder) create(mac net.HardwareAddr) func(*link.Handle) error {
	t := link.Target{Name: a.req.IfName, NetnsFd: a.ns.Fd(), Parent: a.carrier.Index, MAC: mac, MTU: a.MTU}
	if a.LinkInContainer {
		t.NetnsFd = -1
	}
	return func(h *link.Handle) error {
		index, err := a.kind.Create(a.parentSide, t)
		if errors.Is(err, link.ErrExists) {
			if err = a.replaceable(h); err == nil {
				index, err = a.kind.Create(a.parentSide, t)
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
		a.index = index
		fault.Point("attach.created")
		return nil
	}
}

// replaceable removes the interface that is in the way if it is this
// attachment's own.
func (a *adder) replaceable(h *link.Handle) error {
	l, err := h.ByName(a.req.IfName)
	if err != nil {
		return err
	}
	if l.Kind == a.kind.Name && l.Alias == alias(a.att) {
		return h.Delete(l.Index)
	}
	return fmt.Errorf("CNI_IFNAME: %q: %w in the container (%s)", a.req.IfName, link.ErrExists, kindOf(l))
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
	a.asked = true // one that fails is told to take back what it may have given
	if a.addresses, err = a.foreignIPAM().Add(ctx); err != nil {
		return err
	}
	a.asked = true
	if len(a.addresses.IPs) == 0 {
		return fmt.Errorf("ipam %q: its result has no addresses", a.ipamType)
	}
	return nil
}

// releaseForeign takes back what a foreign IPAM plugin gave.
func (a *adder) releaseForeign(ctx context.Context) error {
	if !a.asked {
		return nil
	}
	return a.foreignIPAM().Del(ctx)
}

func (a *adder) result() *current.Result {
	res := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	res.Interfaces = []*current.Interface{{Name: a.req.IfName, Mac: a.mac.String(), Mtu: a.mtu(), Sandbox: a.req.Netns}}
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

// mtu of the link, which is its parent's unless configured.
func (a *adder) mtu() int {
	if a.MTU != 0 {
		return a.MTU
	}
	return a.carrier.MTU
}
