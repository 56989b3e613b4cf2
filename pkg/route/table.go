package route

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// table is the kernel's, as far as the routes in it are ours.
type table struct {
	conn     *nlsock.Conn
	names    *nlsock.Names
	protocol uint8
	id       int
	owns     func(Route) bool
}

var _ Kernel = (*table)(nil)

func openTable(cfg Config) (*table, error) {
	fd := -1
	if cfg.Netns != nil {
		fd = cfg.Netns.Fd()
	}
	conn, err := nlsock.Dial(fd)
	if err != nil {
		return nil, err
	}
	t := &table{conn: conn, names: nlsock.NewNames(conn), protocol: cfg.Protocol, id: cfg.Table, owns: cfg.Owns}
	if t.protocol == 0 {
		t.protocol = Protocol
	}
	if t.id == 0 {
		t.id = unix.RT_TABLE_MAIN
	}
	if t.owns == nil {
		t.owns = func(Route) bool { return true }
	}
	return t, nil
}

// Close implements Kernel.
func (t *table) Close() error {
	t.conn.Close()
	return nil
}

// List implements Kernel.
func (t *table) List(ctx context.Context) (out []Route, err error) {
	t.names.Forget()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		// A kernel before 4.20 does not filter.
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
		req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: family, Protocol: t.protocol}})
		req.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(t.id))))
		payloads, err := t.conn.Dump(req)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // there is no such table yet, or no IPv6
		}
		for i := 0; i < len(payloads) && err == nil; i++ {
			var r Route
			var ours bool
			if r, ours, err = t.parse(payloads[i], family); ours && t.owns(r) {
				out = append(out, r)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
	}
	return out, nil
}

// Change implements Kernel.
func (t *table) Change(ctx context.Context, changes []reconcile.Change[Route]) ([]error, error) {
	var reqs []*nl.NetlinkRequest
	var of []int // the change that the request is a part of
	verdicts := make([]error, len(changes))
	for i, c := range changes {
		steps, err := t.steps(c)
		if err != nil {
			verdicts[i] = explain(c, err)
		}
		for _, req := range steps {
			reqs, of = append(reqs, req), append(of, i)
		}
	}
	answers, err := t.conn.Batch(ctx, reqs)
	for j, answer := range answers {
		gone := reqs[j].Type == unix.RTM_DELROUTE && (errors.Is(answer, unix.ESRCH) || errors.Is(answer, unix.ENODEV))
		if answer != nil && !gone {
			c := changes[of[j]]
			verdicts[of[j]] = errors.Join(verdicts[of[j]], explain(c, answer))
		}
	}
	if err != nil {
		known := len(changes)
		if len(answers) < len(of) {
			known = of[len(answers)]
		}
		return verdicts[:known], fmt.Errorf("change routes: %w", err)
	}
	return verdicts, nil
}

// steps are the messages for one change. Two routes of one key can be there at
// a time: then the new one is made first.
func (t *table) steps(c reconcile.Change[Route]) ([]*nl.NetlinkRequest, error) {
	if c.Verb == reconcile.Delete {
		del, err := t.deletion(c.Old)
		if err != nil {
			return nil, err
		}
		return []*nl.NetlinkRequest{del}, nil
	}
	add, err := t.addition(c.New)
	if err != nil || c.Verb == reconcile.Add {
		if add == nil {
			return nil, err
		}
		// Not beside another's: which of the two counts would be an accident.
		add.Flags |= unix.NLM_F_EXCL
		return []*nl.NetlinkRequest{add}, nil
	}
	del, err := t.deletion(c.Old)
	if err != nil {
		return nil, err
	}
	if !apart(c.New, c.Old) {
		add.Flags |= unix.NLM_F_EXCL
		return []*nl.NetlinkRequest{del, add}, nil
	}
	add.Flags |= unix.NLM_F_APPEND
	return []*nl.NetlinkRequest{add, del}, nil
}

// apart reports whether deleting old is sure to leave next alone. IPv4 compares
// all there is to a route and has the older one first. IPv6 compares next hops,
// where there are two.
func apart(next, old Route) bool {
	if old.odd != (odd{}) {
		return false
	}
	return old.Dst.Addr().Is4() || next.Via.IsValid() && old.Via.IsValid() && next.Via != old.Via
}

func (t *table) addition(r Route) (*nl.NetlinkRequest, error) {
	msg := nl.NewRtMsg()
	msg.Scope = unix.RT_SCOPE_UNIVERSE
	switch {
	case r.Unreachable:
	case !r.Via.IsValid():
		msg.Scope = unix.RT_SCOPE_LINK
	case r.Dst.Addr().Is4():
		msg.Scope = interior(r.Dst)
	}
	return t.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, msg, r)
}

// interior is the scope of an IPv4 route to a peer: one of many that all mean the
// same, farther than RT_SCOPE_SITE, as rtnetlink.h has it for interior routes.
// IPv4 looks for a next hop among all of one scope and device before it makes
// another, without a look at the gateway: 5,000 of one scope take 0.5 s, of these
// 0.1 s. What is in the way, what goes first and what leads where does not depend
// on it, and a deletion means any.
func interior(dst netip.Prefix) uint8 {
	const scopes = 64
	addr := dst.Addr().As4()
	return uint8(1 + binary.BigEndian.Uint32(addr[:])>>(32-dst.Bits())%scopes)
}

func (t *table) deletion(r Route) (*nl.NetlinkRequest, error) {
	return t.request(unix.RTM_DELROUTE, 0, nl.NewRtDelMsg(), r)
}

func (t *table) request(kind, flags int, msg *nl.RtMsg, r Route) (*nl.NetlinkRequest, error) {
	req := nl.NewNetlinkRequest(kind, flags)
	msg.Family, msg.Dst_len, msg.Tos = family(r.Dst.Addr()), uint8(r.Dst.Bits()), r.odd.tos
	msg.Protocol, msg.Table = t.protocol, unix.RT_TABLE_UNSPEC // one octet; the attribute has four
	switch {
	case r.Unreachable:
		msg.Type = unix.RTN_UNREACHABLE
	case r.odd.kind != 0:
		msg.Type = r.odd.kind
	default:
		msg.Type = unix.RTN_UNICAST
	}
	if r.Onlink {
		msg.Flags = unix.RTNH_F_ONLINK
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(t.id))))
	if r.Dst.Bits() > 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_DST, r.Dst.Addr().AsSlice()))
	}
	if r.Via.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, r.Via.AsSlice()))
	}
	if r.Dev != "" {
		index, err := t.names.Index(r.Dev)
		if err != nil {
			return nil, err
		}
		req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	}
	if r.Src.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, r.Src.AsSlice()))
	}
	if metric := r.Metric; metric != 0 || r.Dst.Addr().Is6() {
		if metric == 0 {
			metric = defaultMetric // a deletion without one means any
		}
		req.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(metric))))
	}
	if r.MTU != 0 {
		metrics := nl.NewRtAttr(unix.RTA_METRICS, nil)
		metrics.AddRtAttr(unix.RTAX_MTU, nl.Uint32Attr(uint32(r.MTU)))
		req.AddData(metrics)
	}
	return req, nil
}

// explain says what was tried, and what the kernel means where its words tell
// less than is known here.
func explain(c reconcile.Change[Route], err error) error {
	switch {
	case c.Verb == reconcile.Delete:
		return fmt.Errorf("delete route %s: %w", c.Old, err)
	case errors.Is(err, unix.EEXIST):
		err = ErrForeign
	}
	return fmt.Errorf("add route %s: %w", c.New, err)
}
