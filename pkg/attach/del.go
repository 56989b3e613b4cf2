package attach

import (
	"context"
	"errors"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// Del detaches the container. What is gone already is success: the namespace,
// the parent, the record. The link goes before its address is given back, so
// that nobody gets an address that still answers.
func Del(ctx context.Context, req *cni.Request, conf *Config, kind Kind) error {
	att := attachment(req, conf)
	path, match := req.Netns, isOurs(kind, att)
	if path == "" {
		// So does nerdctl stop a container, while that runs.
		path, match = sandboxOf(conf, req.IfName), isMarked(kind, att)
	}
	if err := deleteFrom(path, att, match); err != nil {
		return err
	}
	if err := deletePeer(kind, att); err != nil {
		return err
	}
	fault.Point("attach.unlinked")
	ipamType, err := conf.IPAMType()
	if err != nil {
		return err
	}
	if ipamType != "" && ipamType != OwnIPAM {
		err = cni.Foreign{Type: ipamType, Conf: req.Stdin}.Del(ctx)
		fault.Point("attach.foreign.released")
	}
	c := Client(conf)
	if !touchesLedger(conf, &kind, ipamType) {
		if !untold(conf) {
			return err
		}
		if _, _, ok, lerr := c.Attachment(ctx, att); !ok && lerr == nil {
			return err
		}
	}
	rec := ipam.AttachmentRecord{Attachment: att}
	if mayShare(conf) {
		// Where the ledger cannot tell, the release is spooled below.
		if known, _, ok, err := c.Attachment(ctx, att); ok && err == nil {
			rec = known
		}
	}
	return errors.Join(err, release(ctx, c, kind, ipam.ReleaseRequest{Attachment: att}, rec, client.Identify(req.Netns)))
}

// release gives back what an attachment holds, after what of rec's uses nobody
// else has. done is the namespace that the link has been removed from: a link
// elsewhere, because the runtime told no namespace or a wrong one, is found
// through the record.
func release(ctx context.Context, c *client.Client, kind Kind, req ipam.ReleaseRequest, rec ipam.AttachmentRecord, done ipam.Netns) error {
	var released ipam.Released
	err := unshare(ctx, c, rec, func() (err error) {
		released, err = c.Release(ctx, req, func(rec ipam.AttachmentRecord) error {
			if err := deletePeer(kind, rec.Attachment); err != nil {
				return err
			}
			if rec.Netns.Inode == 0 || rec.Netns.Dev == done.Dev && rec.Netns.Inode == done.Inode {
				return nil
			}
			return deleteWherever(rec, kind)
		})
		return err
	})
	if err != nil {
		return err
	}
	fault.Point("attach.released")
	if !released.Uses.Shared() || rec.Uses.Shared() {
		return nil
	}
	// The configuration has changed since the ADD and did not say so.
	rec.Uses = released.Uses
	for _, r := range released.Records {
		rec.Addresses, rec.MAC = append(rec.Addresses, r.Address.Addr()), r.MAC
	}
	return unshare(ctx, c, rec, func() error { return nil })
}

// deleteFrom removes the attachment's link, which match tells from others,
// from the namespace at path; there being none is success.
func deleteFrom(path string, att ipam.Attachment, match func(link.Link) bool) error {
	if path == "" {
		return nil
	}
	ns, err := netns.Open(path)
	if errors.Is(err, netns.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	return deleteIn(ns, att, match)
}

// sandboxOf is where the interface was at the ADD, if the runtime tells.
func sandboxOf(conf *Config, ifName string) string {
	prev, err := conf.Previous()
	if err != nil || prev == nil {
		return "" // what was made when it could be read is gone or on record
	}
	for _, i := range prev.Interfaces {
		if i.Name == ifName {
			return i.Sandbox
		}
	}
	return ""
}

// deleteWherever removes the link from the very namespace that it was made
// in, if that lives.
func deleteWherever(rec ipam.AttachmentRecord, kind Kind) error {
	ns, err := netns.Find(rec.Netns.Path, rec.Netns.Dev, rec.Netns.Inode)
	if errors.Is(err, netns.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	// Inode numbers come again: this may be the namespace of another container,
	// whose links are none of ours.
	marked, ours := isMarked(kind, rec.Attachment), isOurs(kind, rec.Attachment)
	return deleteIn(ns, rec.Attachment, func(l link.Link) bool { return marked(l) || ours(l) && l.Made() && !l.Up })
}

func deleteIn(ns *netns.NS, att ipam.Attachment, match func(link.Link) bool) error {
	return ns.Do(func() error {
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		l, err := h.ByName(att.IfName)
		if errors.Is(err, link.ErrNotFound) {
			return nil
		}
		if err != nil || !match(l) {
			return err
		}
		return h.Delete(l.Index)
	})
}
