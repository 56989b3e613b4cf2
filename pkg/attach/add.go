package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/ipam"
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
				p.ipam.PoolName(), candidates, err)
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
	company   company                     // who else has the parent
	asked     bool                        // a foreign IPAM plugin has been asked
	index     int                         // of the new link, in ns; 0 while there is none
	mac       net.HardwareAddr
	addresses *current.Result // of IPAM, or of who comes before in the chain; nil without
	given     []ipam.Address  // what IPAM gave, before it was made whole
	joined    bool            // the host's side has been begun
	peer      link.Link       // the host's end of a pair
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
	if a.addresses, err = a.chained(); err != nil {
		return nil, err
	}
	defer a.closeProber()
	in := enter(a.ns)
	defer in.leave()
	// The link goes first, so that nobody gets an address that still answers.
	defer undo(func(ctx context.Context) error { return a.release(ctx, err) })
	defer undo(a.releaseForeign)
	defer undo(a.leave)
	defer undo(func(context.Context) error { return a.unmake(in) })

	create := sync.OnceFunc(func() { in.then(a.create(a.mac)) })
	prepare := sync.OnceFunc(func() {
		var err error
		if a.asks() && a.kind.Deaf && !a.LinkInContainer {
			err = a.hear()
		}
		in.then(func(h *link.Handle) error {
			if err != nil {
				return err
			}
			return a.prepare(ctx, h)
		})
	})
	// What is in the way of others is made only when the ledger has it on
	// record: what is shared, and a link that wants its parent for itself. One
	// that others have to agree with waits until it is known that they do.
	early := !req.Uses.Shared() && !a.kind.TakesParent
	a.carrier = a.parent
	if early && a.kind.Port == "" {
		create()
	}
	err = a.allocate(ctx, req, func() {
		if early && a.agreed() {
			create()
			prepare()
		}
	})
	if err != nil {
		return nil, err
	}
	fault.Point("attach.allocated")

	if err := a.share(ctx, in, create); err != nil {
		return nil, err
	}
	fault.Point("attach.shared")
	create()
	if a.foreignType() {
		if err := in.wait(); err != nil {
			return nil, err
		}
		if err := a.askForeign(ctx); err != nil {
			return nil, err
		}
		fault.Point("attach.asked")
	}
	prepare()
	if err := in.wait(); err != nil {
		return nil, err
	}
	if err := a.meet(); err != nil {
		return nil, err
	}
	in.then(func(h *link.Handle) error { return a.configure(ctx, h) })
	err = a.join(ctx)
	if err := errors.Join(in.wait(), err); err != nil {
		return nil, err
	}
	fault.Point("attach.configured")

	if err := a.reach(ctx); err != nil {
		return nil, err
	}
	fault.Point("attach.reached")
	return a.result(), nil
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
	if a.kind.Pair != nil {
		t.Parent, t.Peer, t.MTU = 0, PeerName(a.att), a.mtu()
	}
	return func(h *link.Handle) error {
		index, err := a.kind.Create(a.parentSide, t)
		if errors.Is(err, link.ErrPeerExists) { // of a namespace that is dying, or of nobody
			if err = a.parentSide.DeletePeer(t.Peer, alias(a.att)); err == nil {
				index, err = a.kind.Create(a.parentSide, t)
			}
		}
		// Of a passthru link the kernel first looks whether it is alone.
		if errors.Is(err, link.ErrExists) || errors.Is(err, link.ErrPassthru) {
			switch removed, rerr := a.removeOwn(h); {
			case rerr != nil:
				err = rerr
			case removed:
				fault.Point("attach.removed")
				index, err = a.kind.Create(a.parentSide, t)
			}
		}
		switch {
		case errors.Is(err, link.ErrBusy):
			return a.busy(err)
		case errors.Is(err, link.ErrNotEthernet):
			return cni.Errorf(cni.CodeParent, "master: %w", err)
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

func (a *adder) busy(err error) error {
	return cni.Errorf(cni.CodeParent, "master: %q: %w: %s", a.carrier.Name, err, a.parentSide.Holder(a.carrier))
}

// removeOwn removes the interface that is in the way if it is this
// attachment's own: of an ADD that is repeated, or of one that died, perhaps
// before it gave it an alias. A foreign IPAM plugin may refuse to be asked
// again, so there a link that is up stays.
func (a *adder) removeOwn(h *link.Handle) (removed bool, err error) {
	l, err := h.ByName(a.req.IfName)
	if errors.Is(err, link.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	own := isMarked(a.kind, a.att)(l) && !(a.foreignType() && l.Up)
	if own || isOurs(a.kind, a.att)(l) && l.Made() && !l.Up {
		return true, h.Delete(l.Index)
	}
	return false, fmt.Errorf("CNI_IFNAME: %q: %w in the container (%s)", a.req.IfName, link.ErrExists, kindOf(l))
}

func kindOf(l link.Link) string {
	if l.Kind == "" {
		return "a device"
	}
	return l.Kind
}

func (a *adder) result() *current.Result {
	res := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	res.Interfaces = []*current.Interface{{Name: a.req.IfName, Mac: a.mac.String(), Mtu: a.mtu(), Sandbox: a.req.Netns}}
	if a.peer.Name != "" {
		res.Interfaces = append(res.Interfaces, &current.Interface{Name: a.peer.Name, Mac: a.peer.MAC.String(), Mtu: a.peer.MTU})
	}
	res.Interfaces = append(res.Interfaces, a.before()...)
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

// before are the interfaces on the host of who comes before in the chain, if the
// parent is the leg of a segment among them: DEL and CHECK find it there. Another
// parent is left out, as the reference plugins do.
func (a *adder) before() (out []*current.Interface) {
	prev, err := a.Previous()
	if err != nil || prev == nil || a.Master != "" || a.segment == 0 {
		return nil
	}
	for _, i := range prev.Interfaces {
		if i.Sandbox == "" {
			out = append(out, i)
		}
	}
	return out
}

// mtu of the link, which is its parent's unless configured.
func (a *adder) mtu() int {
	const ethernet = 1500 // where a pair has nothing to go by
	return cmp.Or(a.MTU, a.carrier.MTU, ethernet)
}

// inside is a thread in the container's namespace. It takes the steps of an
// ADD one after the other while the caller waits for something else: the link
// is made while the ledger waits for its disk. After a step that fails no
// other is taken.
type inside struct {
	steps chan func(*link.Handle) error
	ended chan error // has the thread's own error at its end
}

// enter starts the thread; leave it.
func enter(ns *netns.NS) *inside {
	// With room for all steps of an ADD, then never waits.
	in := &inside{steps: make(chan func(*link.Handle) error, 8), ended: make(chan error, 1)}
	go func() { in.ended <- ns.Do(in.run) }()
	return in
}

func (in *inside) run() error {
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	for step := range in.steps {
		if err := step(h); err != nil {
			return err
		}
	}
	return nil
}

// then has a step taken after those before.
func (in *inside) then(step func(*link.Handle) error) { in.steps <- step }

// wait waits for all steps so far and returns the error of the one that failed.
func (in *inside) wait() error {
	done := make(chan struct{})
	in.then(func(*link.Handle) error { close(done); return nil })
	select {
	case <-done:
		return nil
	case err := <-in.ended:
		in.ended <- err
		return err
	}
}

// leave ends the thread after the steps so far. It does not wait for that: what
// is left to do by then is to close a socket.
func (in *inside) leave() { close(in.steps) }
