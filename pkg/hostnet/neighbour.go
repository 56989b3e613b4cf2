package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// Ask has the kernel find out where neighbours are, as if there were a packet
// for each. It does not wait for their answers, which Answers tells: a silent
// one takes three seconds. The kernel's table has 1,024 places by default, so
// few are asked at a time.
func (h *Host) Ask(ctx context.Context, all []Neighbour) error {
	return h.with(ctx, "ask neighbours", func() error {
		h.names.Forget()
		var reqs []*nl.NetlinkRequest
		for _, n := range all {
			index, err := h.names.Index(n.Dev)
			if errors.Is(err, nlsock.ErrNoInterface) {
				continue
			}
			if err != nil {
				return err
			}
			req := nl.NewNetlinkRequest(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE)
			msg := make(ndMsg, unix.SizeofNdMsg)
			msg[0], msg[10] = family(n.Addr), unix.NTF_USE
			binary.NativeEndian.PutUint32(msg[4:], uint32(index))
			req.AddData(msg)
			req.AddData(nl.NewRtAttr(unix.NDA_DST, n.Addr.AsSlice()))
			reqs = append(reqs, req)
		}
		// A link that went down meanwhile, or a table that is full, leaves the
		// neighbour unknown, which is what it is.
		_, err := h.conn.Batch(ctx, reqs)
		return err
	})
}

// Answers reads what the kernel knows of the neighbours on some interfaces. One
// that is missing is Unknown.
func (h *Host) Answers(ctx context.Context, devs []string) (map[Neighbour]Answer, error) {
	out := make(map[Neighbour]Answer)
	err := h.with(ctx, "read neighbours", func() error {
		h.names.Forget()
		for _, dev := range devs {
			index, err := h.names.Index(dev)
			if errors.Is(err, nlsock.ErrNoInterface) {
				continue
			}
			if err != nil {
				return err
			}
			req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
			req.AddData(make(ndMsg, unix.SizeofNdMsg))
			req.AddData(nl.NewRtAttr(unix.NDA_IFINDEX, nl.Uint32Attr(uint32(index))))
			payloads, err := h.conn.Dump(req)
			if errors.Is(err, unix.ENODEV) {
				continue
			}
			if err != nil {
				return err
			}
			for _, p := range payloads {
				a, of, answer, err := parseNeighbour(p)
				if err != nil {
					return err
				}
				if of == index && a.IsValid() {
					out[Neighbour{dev, a}] = answer
				}
			}
		}
		return nil
	})
	return out, err
}

// parseNeighbour reads what RTM_NEWNEIGH says (linux/neighbour.h).
func parseNeighbour(payload []byte) (a netip.Addr, index int, answer Answer, err error) {
	if len(payload) < unix.SizeofNdMsg {
		return a, 0, Unknown, nlsock.ErrCutOff
	}
	attrs, err := nlsock.Attributes(payload[unix.SizeofNdMsg:])
	for _, attr := range attrs {
		if attr.Kind == unix.NDA_DST {
			a, _ = netip.AddrFromSlice(attr.Value)
		}
	}
	switch state := binary.NativeEndian.Uint16(payload[8:]); {
	case state&unix.NUD_FAILED != 0:
		answer = Silent
	case state&unix.NUD_INCOMPLETE != 0:
		answer = Asking
	case state&(unix.NUD_REACHABLE|unix.NUD_STALE|unix.NUD_DELAY|unix.NUD_PROBE|unix.NUD_PERMANENT|unix.NUD_NOARP) != 0:
		answer = Found
	}
	return a, int(binary.NativeEndian.Uint32(payload[4:])), answer, err
}

// ndMsg is struct ndmsg of linux/neighbour.h.
type ndMsg []byte

func (m ndMsg) Len() int          { return len(m) }
func (m ndMsg) Serialize() []byte { return m }
