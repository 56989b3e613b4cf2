package attach

import (
	"context"
	"errors"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/link"
)

// GC releases what attachments of this network and this runtime hold that the
// runtime does not list as valid, as far as they were made before the call.
// Their links go first.
func GC(ctx context.Context, req *cni.Request, conf *Config, kind Kind) error {
	began := fault.Now()
	valid, err := conf.Valid()
	if err != nil {
		return err
	}
	ipamType, err := conf.IPAMType()
	if err != nil {
		return err
	}
	var errs []error
	if ipamType != "" && ipamType != OwnIPAM {
		errs = append(errs, cni.Foreign{Type: ipamType, Conf: req.Stdin}.GC(ctx))
	}
	if !touchesLedger(conf, &kind, ipamType) && !untold(conf) {
		return errors.Join(errs...)
	}
	c := Client(conf)
	stale, err := c.Stale(ctx, conf.Name, client.Runtime(req.Path), began, func(containerID, ifName string) bool {
		return valid[types.GCAttachment{ContainerID: containerID, IfName: ifName}]
	})
	errs = append(errs, err)
	for _, rec := range stale {
		errs = append(errs, release(ctx, c, kind, ipam.ReleaseRequest{Attachment: rec.Attachment, Before: began}, rec, ipam.Netns{}))
	}
	return errors.Join(append(errs, reap(ctx, c, conf))...)
}

// reap removes shared links that have lost their users: an unreadable ledger
// could not tell, and their releases were spooled.
func reap(ctx context.Context, c *client.Client, conf *Config) error {
	if conf.Master == "" || !mayShare(conf) {
		return nil
	}
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	uses := ipam.Uses{Parent: conf.Master, VLAN: conf.VLAN, HostAccess: conf.HostAccess}
	if l, err := h.ByName(conf.Master); err == nil {
		uses.Parent = l.Name // which may have been told by another one
	}
	of, id, err := splitMaster(h, conf.Master)
	if err != nil {
		return err
	}
	if id != 0 {
		uses.Parent, uses.VLAN = of, id
	}
	return unshare(ctx, c, ipam.AttachmentRecord{Uses: uses}, func() error { return nil })
}

// Status reports, with code 50, why an ADD would fail: the parent, the ledger
// or a foreign IPAM plugin.
func Status(ctx context.Context, req *cni.Request, conf *Config, kind Kind) error {
	p, err := newPlan(req, conf, kind)
	if err != nil {
		return err
	}
	if p.foreignType() {
		err := p.foreignIPAM().Status(ctx)
		var told *types.Error // by the plugin itself, with a code of its own
		if err != nil && !errors.As(err, &told) {
			err = cni.Errorf(cni.CodeNotAvailable, "%w", err)
		}
		if err != nil {
			return err
		}
	}
	if !conf.LinkInContainer { // no container to look into
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		// One that a plugin before in the chain will tell is not known yet.
		if _, err := p.findParent(h); err != nil && !(untold(conf) && errors.Is(err, link.ErrNotFound)) {
			return cni.Errorf(cni.CodeNotAvailable, "%w", err)
		}
	}
	if !touchesLedger(conf, &kind, p.ipamType) {
		return nil
	}
	if err := p.client.Status(ctx, p.ipam); err != nil {
		return cni.Errorf(cni.CodeNotAvailable, "%w", err)
	}
	return nil
}
