// Package record is the form that records have in the ledger's file: a version
// and the fields in the order of their struct, numbers as varints, texts and
// addresses with their length before them, times in microseconds. JSON would
// cost an ADD more than the transaction does, since a process that lives for
// milliseconds pays for learning the types each time.
//
// A value is decoded whole or not at all. What the fields mean, and whether
// they fit each other, is the ledger's to say.
package record

import (
	"net/netip"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam"
)

// Versions of the forms. Older ones are read too.
const (
	Version     = 2 // 1 has no PoolUUID
	PoolVersion = 4 // 1 has no UUID, 2 no Routes, 3 no BlockBits
	HoldVersion = 1
)

// poolVersion is the oldest version from 2 on that can tell a pool.
func poolVersion(p ipam.Pool) uint64 {
	switch {
	case slices.ContainsFunc(slices.Concat(p.Sets...), func(r ipam.Range) bool { return r.BlockBits != 0 }):
		return PoolVersion
	case len(p.Routes) > 0:
		return 3
	}
	return 2
}

// Versions of an attachment's record, from which on it has Uses.Port,
// Uses.Network with what belongs to that, Uses.Segment, and Token.
const (
	withPort    = 2
	withNetwork = 3
	withSegment = 4
	withToken   = 5
)

// AttachmentVersion is the oldest version that can tell what an attachment
// uses, and its token: all that an ADD makes has one, what a rebuild finds has none.
func AttachmentVersion(u ipam.Uses, token uint64) int {
	switch {
	case token != 0:
		return withToken
	case u.Segment != ipam.Segment{}:
		return withSegment
	case u.Network != "":
		return withNetwork
	case u.Port != "":
		return withPort
	}
	return 1
}

// Encode returns the form of the record of an address.
func Encode(r ipam.Record) []byte {
	w := writer{}
	w.number(uint64(r.Version))
	w.text(r.Pool)
	if r.Version > 1 {
		w.text(r.PoolUUID)
	}
	w.prefix(r.Address)
	w.addr(r.Gateway)
	w.text(string(r.State))
	w.attachment(r.Attachment)
	w.text(r.Runtime)
	w.netns(r.Netns)
	w.text(r.BootID)
	w.text(r.MAC)
	w.text(r.Owner)
	w.time(r.Since)
	w.time(r.Until)
	w.flag(r.Strict)
	w.text(r.Reason)
	w.time(r.MissedAt)
	return w.b
}

// Decode is the inverse of Encode.
func Decode(value []byte) (r ipam.Record, err error) {
	d := reader{b: value}
	r.Version = d.version(Version)
	r.Pool = d.text()
	if r.Version > 1 {
		r.PoolUUID = d.text()
	}
	r.Address = d.prefix()
	r.Gateway = d.addr()
	r.State = ipam.State(d.text())
	r.Attachment = d.attachment()
	r.Runtime = d.text()
	r.Netns = d.netns()
	r.BootID = d.text()
	r.MAC = d.text()
	r.Owner = d.text()
	r.Since = d.time()
	r.Until = d.time()
	r.Strict = d.flag()
	r.Reason = d.text()
	r.MissedAt = d.time()
	return r, d.end()
}

// EncodeAttachment returns the form of the record of an attachment.
func EncodeAttachment(r ipam.AttachmentRecord) []byte {
	w := writer{}
	w.number(uint64(r.Version))
	w.attachment(r.Attachment)
	w.text(r.Runtime)
	w.netns(r.Netns)
	w.text(r.BootID)
	w.text(r.MAC)
	w.text(r.Uses.Parent)
	w.number(uint64(r.Uses.VLAN))
	w.flag(r.Uses.HostAccess)
	if r.Version >= withPort {
		w.text(r.Uses.Port)
	}
	if r.Version >= withNetwork {
		w.text(r.Uses.Network)
		w.flag(r.Uses.Masquerade)
	}
	if r.Version >= withSegment {
		w.number(uint64(r.Uses.Segment.VNI))
		w.number(uint64(r.Uses.Segment.Port))
	}
	w.number(uint64(len(r.Addresses)))
	for _, a := range r.Addresses {
		w.addr(a)
	}
	w.time(r.Since)
	w.time(r.MissedAt)
	if r.Version >= withToken {
		w.number(r.Token)
	}
	return w.b
}

// DecodeAttachment is the inverse of EncodeAttachment.
func DecodeAttachment(value []byte) (r ipam.AttachmentRecord, err error) {
	d := reader{b: value}
	r.Version = d.version(withToken)
	r.Attachment = d.attachment()
	r.Runtime = d.text()
	r.Netns = d.netns()
	r.BootID = d.text()
	r.MAC = d.text()
	r.Uses = ipam.Uses{Parent: d.text(), VLAN: d.small(), HostAccess: d.flag()}
	if r.Version >= withPort {
		r.Uses.Port = d.text()
	}
	if r.Version >= withNetwork {
		r.Uses.Network, r.Uses.Masquerade = d.text(), d.flag()
	}
	if r.Version >= withSegment {
		r.Uses.Segment = ipam.Segment{VNI: d.upTo(1<<24 - 1), Port: d.upTo(1<<16 - 1)}
	}
	r.Addresses = list(&d, (*reader).addr)
	r.Since = d.time()
	r.MissedAt = d.time()
	if r.Version >= withToken {
		r.Token = d.number()
	}
	return r, d.end()
}

// EncodePool returns the form of a pool.
func EncodePool(p ipam.Pool) []byte {
	w := writer{}
	version := poolVersion(p)
	w.number(version)
	w.text(p.Name)
	w.text(p.UUID)
	w.number(uint64(len(p.Sets)))
	for _, set := range p.Sets {
		w.number(uint64(len(set)))
		for _, r := range set {
			w.prefix(r.Subnet)
			w.interval(r.Interval)
			w.addr(r.Gateway)
			w.number(uint64(len(r.Exclude)))
			for _, x := range r.Exclude {
				w.interval(x)
			}
			if version > 3 {
				w.number(uint64(r.BlockBits))
			}
		}
	}
	w.number(uint64(p.CoolDown))
	w.number(uint64(p.Quarantine))
	w.text(string(p.Sticky))
	w.number(uint64(p.StickyFor))
	if version > 2 {
		w.number(uint64(len(p.Routes)))
		for _, r := range p.Routes {
			w.route(r)
		}
	}
	return w.b
}

// DecodePool is the inverse of EncodePool.
func DecodePool(value []byte) (p ipam.Pool, err error) {
	d := reader{b: value}
	version := d.version(PoolVersion)
	p.Name = d.text()
	if version > 1 {
		p.UUID = d.text()
	}
	p.Sets = list(&d, func(d *reader) ipam.RangeSet {
		return list(d, func(d *reader) ipam.Range {
			r := ipam.Range{Subnet: d.prefix(), Interval: d.interval(), Gateway: d.addr(), Exclude: list(d, (*reader).interval)}
			if version > 3 {
				r.BlockBits = d.small()
			}
			return r
		})
	})
	p.CoolDown = time.Duration(d.number())
	p.Quarantine = time.Duration(d.number())
	p.Sticky = ipam.Sticky(d.text())
	p.StickyFor = time.Duration(d.number())
	if version > 2 {
		p.Routes = list(&d, (*reader).route)
	}
	return p, d.end()
}

// EncodeHold returns the form of a hold, without its address.
func EncodeHold(h ipam.Hold) []byte {
	w := writer{}
	w.number(HoldVersion)
	w.attachment(h.Attachment)
	w.text(h.Netns)
	w.text(h.MAC)
	w.text(h.Owner)
	w.text(h.BootID)
	w.time(h.Since)
	w.time(h.Until)
	return w.b
}

// DecodeHold is the inverse of EncodeHold.
func DecodeHold(value []byte) (h ipam.Hold, err error) {
	d := reader{b: value}
	d.version(HoldVersion)
	h.Attachment = d.attachment()
	h.Netns = d.text()
	h.MAC = d.text()
	h.Owner = d.text()
	h.BootID = d.text()
	h.Since = d.time()
	h.Until = d.time()
	return h, d.end()
}

func (w *writer) attachment(a ipam.Attachment) {
	w.text(a.Network)
	w.text(a.ContainerID)
	w.text(a.IfName)
}

func (d *reader) attachment() ipam.Attachment {
	return ipam.Attachment{Network: d.text(), ContainerID: d.text(), IfName: d.text()}
}

func (w *writer) netns(n ipam.Netns) {
	w.text(n.Path)
	w.number(n.Dev)
	w.number(n.Inode)
}

func (d *reader) netns() ipam.Netns {
	return ipam.Netns{Path: d.text(), Dev: d.number(), Inode: d.number()}
}

func (w *writer) interval(i ipam.Interval) {
	w.addr(i.First)
	w.addr(i.Last)
}

func (d *reader) interval() ipam.Interval {
	return ipam.Interval{First: d.addr(), Last: d.addr()}
}

func (w *writer) route(r ipam.Route) {
	w.prefix(r.Dst)
	w.addr(r.GW)
	for _, n := range []int{r.MTU, r.AdvMSS, r.Priority} {
		w.signed(int64(n))
	}
	for _, n := range []*int{r.Table, r.Scope} {
		if w.flag(n != nil); n != nil {
			w.signed(int64(*n))
		}
	}
}

func (d *reader) route() ipam.Route {
	r := ipam.Route{Dst: d.prefix(), GW: d.addr(), MTU: int(d.signed()), AdvMSS: int(d.signed()), Priority: int(d.signed())}
	for _, n := range []**int{&r.Table, &r.Scope} {
		if d.flag() {
			*n = new(int)
			**n = int(d.signed())
		}
	}
	return r
}

// The zero Prefix and Addr have the length 0.

func (w *writer) prefix(p netip.Prefix) {
	w.addr(p.Addr())
	w.number(uint64(p.Bits() + 1)) // -1 is that of the zero Prefix
}

func (d *reader) prefix() netip.Prefix {
	a, bits := d.addr(), d.small()-1
	if !a.IsValid() && bits < 0 {
		return netip.Prefix{}
	}
	p := netip.PrefixFrom(a, bits)
	if !p.IsValid() {
		d.fail("a prefix length is out of range")
	}
	return p
}

func (w *writer) addr(a netip.Addr) { w.text(string(a.AsSlice())) }

func (d *reader) addr() netip.Addr {
	b := d.bytes()
	if len(b) == 0 {
		return netip.Addr{}
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		d.fail("an address is neither IPv4 nor IPv6")
	}
	return a
}

// The zero time, which is before all that is recorded, is 0.

func (w *writer) time(t time.Time) {
	if t.IsZero() {
		w.number(0)
		return
	}
	w.signed(t.UnixMicro())
}

func (d *reader) time() time.Time {
	if us := d.signed(); us != 0 {
		return time.UnixMicro(us).UTC()
	}
	return time.Time{}
}
