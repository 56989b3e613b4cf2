package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/link"
)

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
		req.DrawOn(a.ipam)
		for _, ip := range a.ips {
			req.Ask(ip.Addr, ip.Place)
		}
		req.Wire = a.wire()
		req.Avoid, err = a.hostAddresses()
	}
	return req, err
}

// wire is where the agent can ask for the addresses that come next, from the
// host: the parent, or its sub-interface, which may not be there yet. A passthru
// link leaves its parent to nobody.
func (a *adder) wire() string {
	if a.ConflictDetection == DetectOff || a.LinkInContainer || a.kind.TakesParent {
		return ""
	}
	if a.VLAN != 0 {
		name, _ := link.VLANName(a.parent.Name, a.VLAN)
		return name
	}
	return a.parent.Name
}

// allocate has the ledger record what the attachment holds and shares, and
// sets addresses and MAC. decided is called as soon as these are set, which
// may be before the record is durable.
func (a *adder) allocate(ctx context.Context, req ipam.AllocateRequest, decided func()) error {
	if a.ipamType != OwnIPAM {
		if !req.Uses.Any() {
			return nil
		}
		got, err := a.client.Allocate(ctx, req, nil)
		if err != nil {
			return err
		}
		a.granted, a.company = !got.Known, company{peers: got.Peers, rivals: got.Rivals}
		return a.unshareReplaced(ctx, got)
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
	if err := a.unshareReplaced(ctx, got); err != nil {
		return err
	}
	if told.Addresses == nil {
		return a.accept(got, dns)
	}
	if !slices.Equal(told.Addresses, got.Addresses) {
		return fmt.Errorf("the ledger gave %v after it had decided on %v", got.Addresses, told.Addresses)
	}
	return accepted
}

// unshareReplaced removes what an earlier ADD of the attachment had shared, and
// this one does not.
func (a *adder) unshareReplaced(ctx context.Context, got ipam.Allocation) error {
	if !got.Replaced.Uses.Shared() {
		return nil
	}
	return unshare(ctx, a.client, got.Replaced, func() error { return nil })
}

// accept takes over what the ledger gives.
func (a *adder) accept(got ipam.Allocation, dns types.DNS) (err error) {
	a.company = company{peers: got.Peers, rivals: got.Rivals}
	if !a.kind.ParentMAC {
		if a.mac, err = net.ParseMAC(got.MAC); err != nil {
			return fmt.Errorf("MAC of the ledger: %w", err)
		}
	}
	a.addresses = client.Result(a.ipam, got, dns)
	a.whole()
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
	rec := ipam.AttachmentRecord{Attachment: a.att, Uses: a.uses(a.parent.Name), MAC: a.mac.String()}
	for _, p := range a.prefixes() {
		rec.Addresses = append(rec.Addresses, p.Addr())
	}
	return unshare(ctx, a.client, rec, func() error {
		_, err := a.client.Release(ctx, req, nil)
		return err
	})
}

func (p *plan) foreignIPAM() cni.Foreign { return cni.Foreign{Type: p.ipamType, Conf: p.req.Stdin} }

// askForeign runs a foreign IPAM plugin, when the link is there: some (dhcp)
// need it.
func (a *adder) askForeign(ctx context.Context) (err error) {
	a.asked = true // one that fails is told to take back what it may have given
	if a.addresses, err = a.foreignIPAM().Add(ctx); err != nil {
		return err
	}
	if len(a.addresses.IPs) == 0 {
		return fmt.Errorf("ipam %q: its result has no addresses", a.ipamType)
	}
	a.whole()
	return nil
}

// releaseForeign takes back what a foreign IPAM plugin gave.
func (a *adder) releaseForeign(ctx context.Context) error {
	if !a.asked {
		return nil
	}
	return a.foreignIPAM().Del(ctx)
}
