package arp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// socket hears the ARP, neighbour solicitations and advertisements that come in
// on one interface, and sends from that or another one: two AF_PACKET sockets
// if it is another, as each belongs to a network namespace.
type socket struct {
	in   int // descriptor
	out  int // the same or another
	from int // index of the interface that out sends from
}

// dial opens a socket that also hears the multicast groups.
func dial(index int, groups []mac) (_ *socket, err error) {
	fd, err := packetSocket()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return nil, fmt.Errorf("packet filter: %w", err)
	}
	// All protocols, as the kernel shows the frames of a macvlan or ipvlan
	// parent to such sockets only before its children take them.
	if err := bind(fd, index, unix.ETH_P_ALL); err != nil {
		return nil, err
	}
	// Binding to a link that is still down leaves ENETDOWN for the next call;
	// the kernel attaches the socket by itself when the link goes up.
	if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	for _, g := range groups {
		mreq := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_MULTICAST, Alen: uint16(len(g))}
		copy(mreq.Address[:], g[:])
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &mreq); err != nil {
			return nil, fmt.Errorf("join multicast group: %w", err)
		}
	}
	return &socket{in: fd, out: fd, from: index}, nil
}

func (s *socket) sendFrom(index int) error {
	fd, err := packetSocket()
	if err != nil {
		return err
	}
	if err := bind(fd, index, 0); err != nil {
		unix.Close(fd)
		return err
	}
	if s.out != s.in {
		_ = release(s.out) // nothing is lost with it
	}
	s.out, s.from = fd, index
	return nil
}

// packetSocket has protocol 0, which hears nothing: no frame gets past a filter
// before bind, and without another protocol there, none ever comes in.
func packetSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	return fd, nil
}

func bind(fd, index int, protocol uint16) error {
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(protocol), Ifindex: index}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	if ll, ok := name.(*unix.SockaddrLinklayer); !ok || ll.Hatype != unix.ARPHRD_ETHER {
		return errors.New("not an Ethernet interface")
	}
	return nil
}

// send sends a frame. A broadcast goes to each of a parent's children first,
// and a thousand of them fill the kernel's queue for this CPU. Where that is
// also the way to the wire, as with a veth for a parent, the frame is lost then,
// as others are on the wire: to send it again would only fill the queue again.
func (s *socket) send(frame []byte) error {
	to := unix.SockaddrLinklayer{Protocol: htons(binary.BigEndian.Uint16(frame[12:])), Ifindex: s.from}
	if err := unix.Sendto(s.out, frame, 0, &to); !errors.Is(err, unix.ENOBUFS) {
		return err
	}
	return nil
}

func (s *socket) receive(buf []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(s.in, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return 0, nil
		}
		return n, err
	}
}

func (s *socket) await(d time.Duration) error {
	timeout := unix.NsecToTimespec(d.Nanoseconds())
	fds := []unix.PollFd{{Fd: int32(s.in), Events: unix.POLLIN}}
	// The Go runtime sends threads signals: that is "earlier".
	if _, err := unix.Ppoll(fds, &timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	return nil
}

func (s *socket) close() error {
	fds := []int{s.in}
	if s.out != s.in {
		fds = append(fds, s.out)
	}
	s.in, s.out = -1, -1 // the numbers may soon be somebody else's
	return release(fds...)
}

// release closes packet sockets, which may outlive the call by some
// milliseconds.
//
// Closing one waits for an RCU grace period, 5 to 20 ms that the end of the
// process would wait for too. So the last references to them are left in the
// queue of a socket that only that queue refers to. Finding such cycles is a
// task of the kernel's own threads, which then do the waiting. Older kernels
// do it within our last close: that is no slower than plain ones.
func release(fds ...int) error {
	if pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		// If this fails, what follows is the plain close.
		_ = unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(append(fds, pair[1])...), nil, 0)
		defer unix.Close(pair[0])
		defer unix.Close(pair[1])
	}
	var errs []error
	for _, fd := range fds {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
