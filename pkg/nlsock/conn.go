// Package nlsock is a netlink socket for packages that each keep one kind of
// kernel object: it sends requests that the library builds, one by one or many
// at once, reads lists again that changed while they were read, and tells what
// changed in the kernel since. It knows nothing of the objects but the names
// and numbers of interfaces, which all of them refer to.
//
// The library's own handle is not used, since it cannot express all messages,
// hands every answer to the poller's thread, takes 64 KiB anew for each, and
// waits for the answer to one message before it sends the next.
package nlsock

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
)

// Conn is one routing netlink socket, for one goroutine at a time. Close it.
type Conn struct {
	fd  int
	buf []byte
}

// Dial opens a socket in the namespace that fd refers to, or, if fd is
// negative, in that of the calling thread.
func Dial(fd int) (c *Conn, err error) {
	if fd >= 0 {
		err = netns.DoAt(fd, func() error {
			c, err = Dial(-1)
			return err
		})
		return c, err
	}
	return dialHere(make([]byte, maxAnswer))
}

// DialHere opens another socket in the namespace of the calling thread, which
// shares c's buffer, by far the most of a Conn: only one of them is used at a
// time.
func (c *Conn) DialHere() (*Conn, error) { return dialHere(c.buf) }

func dialHere(buf []byte) (*Conn, error) {
	byteOrder()
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
	return &Conn{fd: s, buf: buf}, nil
}

// byteOrder makes the library find out the machine's byte order, which it does
// when it first builds a message, in whatever goroutine, without a lock.
var byteOrder = sync.OnceFunc(func() { nl.NativeEndian() })

// maxAnswer is more than the longest answer. The kernel collects lists in
// 32 KiB, but makes room for any one link; of what is asked for here, its kind's
// own data and its alternative names may each have the 64 KiB of an attribute.
const maxAnswer = 160 << 10

// Close releases the socket. What is asked later gets an error, and never the
// answer of whatever has the descriptor then.
func (c *Conn) Close() {
	unix.Close(c.fd)
	c.fd = -1
}

// Netns opens the namespace that the socket is in. Close the descriptor.
func (c *Conn) Netns() (fd int, err error) {
	if fd, err = unix.IoctlRetInt(c.fd, unix.SIOCGSKNS); err != nil {
		return -1, fmt.Errorf("open the namespace of a socket: %w", err)
	}
	return fd, nil
}

// Execute sends a request that is answered by an acknowledgement alone.
func (c *Conn) Execute(req *nl.NetlinkRequest) error {
	req.Flags |= unix.NLM_F_ACK
	return c.exchange(req, nil)
}

// Get sends a request for one object.
func (c *Conn) Get(req *nl.NetlinkRequest) (payload []byte, err error) {
	req.Flags |= unix.NLM_F_ACK
	err = c.exchange(req, func(p []byte) { payload = p })
	return payload, err
}

// Dump sends a request for a list, again if something changed while it was
// being read; the error wraps ErrInterrupted if it kept changing.
func (c *Conn) Dump(req *nl.NetlinkRequest) (payloads [][]byte, err error) {
	req.Flags |= unix.NLM_F_DUMP
	const tries = 16
	for range tries {
		payloads = nil
		err = c.exchange(req, func(p []byte) { payloads = append(payloads, p) })
		if !errors.Is(err, ErrInterrupted) {
			break
		}
	}
	return payloads, err
}

// ErrInterrupted is returned for a list that changed under the reader.
var ErrInterrupted = errors.New("the kernel's list kept changing while it was read")

// exchange sends req and passes the payload of each answer to fn, up to the
// one that ends them.
func (c *Conn) exchange(req *nl.NetlinkRequest, fn func(payload []byte)) error {
	if err := c.send(req.Serialize()); err != nil {
		return err
	}
	var interrupted error
	for {
		datagram, err := c.receive()
		if err != nil {
			return err
		}
		for m, err := range messages(datagram) {
			switch {
			case err != nil:
				return err
			case m.Seq != req.Seq:
				continue // to a request that was given up
			case m.Flags&unix.NLM_F_DUMP_INTR != 0:
				interrupted = ErrInterrupted
			}
			switch m.Type {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				return errors.Join(verdict(m.NlMsghdr, m.Body), interrupted)
			default:
				if fn != nil {
					fn(append([]byte(nil), m.Body...))
				}
			}
		}
	}
}

func (c *Conn) send(b []byte) error {
	return unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// receive waits for a datagram, which is good until the next one.
func (c *Conn) receive() ([]byte, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, err
		case n > len(c.buf):
			return nil, fmt.Errorf("netlink answer of %d bytes: %w", n, unix.EMSGSIZE)
		case n < unix.NLMSG_HDRLEN:
			return nil, ErrCutOff
		}
		return c.buf[:n], nil
	}
}
