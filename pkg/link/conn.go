package link

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
)

// conn is one routing netlink socket. The library builds the messages; its
// own handle is not used, since it cannot express all of them, hands every
// answer to the poller's thread and takes 64 KiB anew for each.
type conn struct {
	fd  int
	buf []byte
}

// dial opens a socket in the namespace that fd refers to, or, if fd is
// negative, in that of the calling thread.
func dial(fd int) (c *conn, err error) {
	if fd >= 0 {
		err = netns.DoAt(fd, func() error {
			c, err = dial(-1)
			return err
		})
		return c, err
	}
	return dialHere(make([]byte, maxAnswer))
}

// dialHere opens a socket in the namespace of the calling thread. Of the
// buffer, maxAnswer long, there may be several users, one at a time.
func dialHere(buf []byte) (*conn, error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// The kernel says in words what is wrong, and filters dumps by interface.
	// One that is too old for either gives numbers, and everything.
	_ = unix.SetsockoptInt(s, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(s, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	if err := unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(s)
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &conn{fd: s, buf: buf}, nil
}

// maxAnswer is more than the longest answer. The kernel collects lists in
// 32 KiB, but makes room for any one link; of what is asked for here, its kind's
// own data and its alternative names may each have the 64 KiB of an attribute.
const maxAnswer = 160 << 10

func (c *conn) close() { unix.Close(c.fd) }

// execute sends a request that is answered by an acknowledgement alone.
func (c *conn) execute(req *nl.NetlinkRequest) error {
	req.Flags |= unix.NLM_F_ACK
	return c.exchange(req, nil)
}

// get sends a request for one object.
func (c *conn) get(req *nl.NetlinkRequest) (payload []byte, err error) {
	req.Flags |= unix.NLM_F_ACK
	err = c.exchange(req, func(p []byte) { payload = p })
	return payload, err
}

// dump sends a request for a list, again if something changed while it was
// being read.
func (c *conn) dump(req *nl.NetlinkRequest) (payloads [][]byte, err error) {
	req.Flags |= unix.NLM_F_DUMP
	const tries = 16
	for range tries {
		payloads = nil
		err = c.exchange(req, func(p []byte) { payloads = append(payloads, p) })
		if !errors.Is(err, errInterrupted) {
			break
		}
	}
	return payloads, err
}

// errInterrupted is returned for a list that changed under the reader.
var errInterrupted = errors.New("the kernel's list kept changing while it was read")

// exchange sends req and passes the payload of each answer to fn, up to the
// one that ends them.
func (c *conn) exchange(req *nl.NetlinkRequest, fn func(payload []byte)) error {
	if err := unix.Sendto(c.fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	var interrupted error
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n > len(c.buf):
			return fmt.Errorf("netlink answer of %d bytes: %w", n, unix.EMSGSIZE)
		case n < unix.NLMSG_HDRLEN:
			return errCutOff
		}
		for rest := c.buf[:n]; len(rest) >= unix.NLMSG_HDRLEN; {
			h := header(rest)
			if h.Len < unix.NLMSG_HDRLEN || int(h.Len) > len(rest) {
				return errCutOff
			}
			body := rest[unix.NLMSG_HDRLEN:h.Len]
			rest = rest[min(len(rest), nlAlign(int(h.Len))):]
			if h.Seq != req.Seq {
				continue // to a request that was given up
			}
			if h.Flags&unix.NLM_F_DUMP_INTR != 0 {
				interrupted = errInterrupted
			}
			switch h.Type {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				return errors.Join(verdict(h, body), interrupted)
			default:
				if fn != nil {
					fn(append([]byte(nil), body...))
				}
			}
		}
	}
}

func header(b []byte) unix.NlMsghdr {
	o := binary.NativeEndian
	return unix.NlMsghdr{Len: o.Uint32(b), Type: o.Uint16(b[4:]), Flags: o.Uint16(b[6:]), Seq: o.Uint32(b[8:]), Pid: o.Uint32(b[12:])}
}

func nlAlign(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// errCutOff is returned for an answer that is shorter than it says.
var errCutOff = errors.New("the kernel's answer is cut off")

// verdict reads the message that ends an exchange: a negative errno or 0, in
// an error followed by the request, and words about it where the kernel has
// any.
func verdict(h unix.NlMsghdr, body []byte) error {
	if len(body) < 4 {
		if h.Type == unix.NLMSG_ERROR {
			return errCutOff
		}
		return nil // the end of a list, without more ado
	}
	code := int32(binary.NativeEndian.Uint32(body))
	if code >= 0 {
		return nil
	}
	err := unix.Errno(-code)
	if h.Flags&unix.NLM_F_ACK_TLVS == 0 {
		return err
	}
	rest := body[4:]
	if h.Type == unix.NLMSG_ERROR {
		// The request follows, or only its header.
		if len(rest) < unix.NLMSG_HDRLEN {
			return err
		}
		request := uint64(unix.NLMSG_HDRLEN)
		if h.Flags&unix.NLM_F_CAPPED == 0 {
			request = uint64(header(rest).Len)
		}
		if request < unix.NLMSG_HDRLEN || request > uint64(len(rest)) {
			return err
		}
		rest = rest[min(len(rest), nlAlign(int(request))):]
	}
	words, _ := attributes(rest) // the errno says the most of it
	for _, a := range words {
		if a.kind == unix.NLMSGERR_ATTR_MSG {
			return fmt.Errorf("%w: %s", err, unix.ByteSliceToString(a.value))
		}
	}
	return err
}

// attribute is one of the typed values that follow a message's fixed part.
type attribute struct {
	kind  uint16 // without the flags for nesting and byte order
	value []byte
}

// attributes splits b. The library's own function panics where the last one
// lacks its padding.
func attributes(b []byte) (out []attribute, err error) {
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return out, errCutOff
		}
		kind := binary.NativeEndian.Uint16(b[2:]) & (1<<14 - 1) // NLA_TYPE_MASK
		out = append(out, attribute{kind, b[unix.SizeofNlAttr:size]})
		b = b[min(len(b), nlAlign(size)):]
	}
	return out, nil
}
