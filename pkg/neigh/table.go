package neigh

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/nlsock"
	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// table is the kernel's, as far as it is about our devices.
type table struct {
	conn    *nlsock.Conn
	names   *nlsock.Names
	devices []string
}

var _ Kernel = (*table)(nil)

func openTable(n *netns.NS, devices []string) (*table, error) {
	fd := -1
	if n != nil {
		fd = n.Fd()
	}
	conn, err := nlsock.Dial(fd)
	if err != nil {
		return nil, err
	}
	return &table{conn, nlsock.NewNames(conn), devices}, nil
}

// Close implements Kernel.
func (t *table) Close() error {
	t.conn.Close()
	return nil
}

// List implements Kernel.
func (t *table) List(ctx context.Context) (out []Entry, err error) {
	t.names.Forget()
	for _, dev := range t.devices {
		index, err := t.names.Index(dev)
		if errors.Is(err, nlsock.ErrNoInterface) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, list := range []*nl.NetlinkRequest{neighboursOf(index), fdbOf(index)} {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			payloads, err := t.conn.Dump(list)
			if errors.Is(err, unix.ENODEV) {
				break // it is gone by now
			}
			for i := 0; i < len(payloads) && err == nil; i++ {
				var e Entry
				var of int
				if e, of, err = parse(payloads[i]); e.Kind != 0 && of == index {
					e.Dev = dev
					out = append(out, e)
				}
			}
			if err != nil {
				return nil, fmt.Errorf("list neighbours and FDB of %q: %w", dev, err)
			}
		}
	}
	return out, nil
}

func neighboursOf(index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(ndMsg{})
	req.AddData(nl.NewRtAttr(unix.NDA_IFINDEX, nl.Uint32Attr(uint32(index))))
	return req
}

func fdbOf(index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(ndMsg{family: unix.AF_BRIDGE, index: index})
	return req
}

// Change implements Kernel.
func (t *table) Change(ctx context.Context, changes []reconcile.Change[Entry]) ([]error, error) {
	verdicts := make([]error, len(changes))
	var reqs []*nl.NetlinkRequest
	var of []int // the change that the request is for
	for i, c := range changes {
		req, err := t.request(c)
		if err != nil {
			verdicts[i] = explain(c, err)
			continue
		}
		reqs, of = append(reqs, req), append(of, i)
	}
	answers, err := t.conn.Batch(ctx, reqs)
	for j, answer := range answers {
		c := changes[of[j]]
		gone := c.Verb == reconcile.Delete && (errors.Is(answer, unix.ENOENT) || errors.Is(answer, unix.ENODEV))
		if answer != nil && !gone {
			verdicts[of[j]] = explain(c, answer)
		}
	}
	if err != nil {
		known := len(changes)
		if len(answers) < len(of) {
			known = of[len(answers)]
		}
		return verdicts[:known], fmt.Errorf("change neighbours and FDB: %w", err)
	}
	return verdicts, nil
}

// request is the message for one change. The kernel puts a new entry in the
// place of the old one, also of one that it has learned.
func (t *table) request(c reconcile.Change[Entry]) (*nl.NetlinkRequest, error) {
	e, kind, flags := c.New, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE
	if c.Verb == reconcile.Delete {
		e, kind, flags = c.Old, unix.RTM_DELNEIGH, 0
	} else if e.flood() {
		flags = unix.NLM_F_CREATE | unix.NLM_F_APPEND
	}
	if !slices.Contains(t.devices, e.Dev) {
		return nil, errors.New("the device is not one of ours")
	}
	index, err := t.names.Index(e.Dev)
	if err != nil {
		return nil, err
	}
	msg := ndMsg{family: unix.AF_BRIDGE, index: index}
	switch e.Kind {
	case Neighbour:
		msg.family, msg.state = family(e.Addr), unix.NUD_PERMANENT
	case Self:
		msg.state, msg.flags = unix.NUD_PERMANENT, unix.NTF_SELF
	case Master:
		msg.state, msg.flags = unix.NUD_NOARP, unix.NTF_MASTER // "static"; permanent is for a bridge's own
	}
	req := nl.NewNetlinkRequest(kind, flags)
	req.AddData(msg)
	if e.Addr.IsValid() && !e.odd { // without an address, all of that MAC are deleted
		req.AddData(nl.NewRtAttr(unix.NDA_DST, e.Addr.AsSlice()))
	}
	if e.Kind != Neighbour || c.Verb != reconcile.Delete {
		req.AddData(nl.NewRtAttr(unix.NDA_LLADDR, e.MAC[:]))
	}
	return req, nil
}

func explain(c reconcile.Change[Entry], err error) error {
	if c.Verb == reconcile.Delete {
		return fmt.Errorf("delete %s: %w", c.Old, err)
	}
	return fmt.Errorf("set %s: %w", c.New, err)
}

// Watch implements Kernel.
func (t *table) Watch(ctx context.Context, heard func(reconcile.News)) error {
	w, err := t.conn.Watch(unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH)
	if err != nil {
		return err
	}
	heard(reconcile.Around)
	return w.Listen(ctx, func(m nlsock.Message) {
		if n := t.news(m); n != 0 {
			heard(n)
		}
	}, func() { heard(reconcile.Around) })
}

// news is what a message means; 0 is nothing. Neighbours come and go on other
// devices all the time.
func (t *table) news(m nlsock.Message) reconcile.News {
	switch m.Type {
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if len(m.Body) < unix.SizeofNdMsg {
			break
		}
		if index := int(binary.NativeEndian.Uint32(m.Body[4:])); !t.names.Knows(index, "") {
			return 0
		}
		return reconcile.Ours
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if !t.names.KnowsLink(m) {
			return 0
		}
	}
	return reconcile.Around
}

// parse reads what RTM_NEWNEIGH says (linux/neighbour.h): an entry without its
// device, and the index of that; Kind is 0 if the entry is none of ours.
func parse(payload []byte) (e Entry, index int, err error) {
	if len(payload) < unix.SizeofNdMsg {
		return e, 0, nlsock.ErrCutOff
	}
	index = int(binary.NativeEndian.Uint32(payload[4:]))
	state, flags := binary.NativeEndian.Uint16(payload[8:]), payload[10]
	attrs, err := nlsock.Attributes(payload[unix.SizeofNdMsg:])
	if err != nil {
		return e, index, err
	}
	bridged, vlan := false, false
	for _, a := range attrs {
		switch a.Kind {
		case unix.NDA_DST:
			e.Addr, _ = netip.AddrFromSlice(a.Value)
		case unix.NDA_LLADDR:
			copy(e.MAC[:], a.Value)
		case unix.NDA_MASTER:
			bridged = true
		case unix.NDA_VLAN:
			vlan = true
		case unix.NDA_PORT, unix.NDA_VNI, unix.NDA_IFINDEX:
			e.odd = true
		}
	}
	switch {
	case payload[0] != unix.AF_BRIDGE:
		if e.odd = false; state&unix.NUD_PERMANENT != 0 && e.Addr.IsValid() {
			e.Kind = Neighbour
		}
	case bridged:
		if e.odd = false; state == unix.NUD_NOARP && !vlan && flags&unix.NTF_EXT_LEARNED == 0 {
			e.Kind, e.Addr = Master, netip.Addr{}
		}
	case state&unix.NUD_PERMANENT != 0 && flags&unix.NTF_SELF != 0 && e.Addr.IsValid():
		e.Kind = Self
	}
	return e, index, nil
}

// ndMsg is struct ndmsg of linux/neighbour.h.
type ndMsg struct {
	family uint8
	index  int
	state  uint16
	flags  uint8
}

func (m ndMsg) Len() int { return unix.SizeofNdMsg }

func (m ndMsg) Serialize() []byte {
	b := make([]byte, unix.SizeofNdMsg)
	b[0], b[10] = m.family, m.flags
	binary.NativeEndian.PutUint32(b[4:], uint32(m.index))
	binary.NativeEndian.PutUint16(b[8:], m.state)
	return b
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
