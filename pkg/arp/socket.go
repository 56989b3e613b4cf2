package arp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// socket is an AF_PACKET socket on one interface. It hears the ARP, neighbour
// solicitations and advertisements that come in there.
type socket struct {
	fd    int
	index int
}

// dial opens a socket that also hears the multicast groups.
func dial(ifc Iface, groups []mac) (_ *socket, err error) {
	// Protocol 0 hears nothing, so no frame gets past the filter before bind.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
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
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifc.Index}); err != nil {
		return nil, fmt.Errorf("bind packet socket: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	if ll, ok := name.(*unix.SockaddrLinklayer); !ok || ll.Hatype != unix.ARPHRD_ETHER {
		return nil, errors.New("not an Ethernet interface")
	}
	// Binding to a link that is still down leaves ENETDOWN for the next call;
	// the kernel attaches the socket by itself when the link goes up.
	if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	for _, g := range groups {
		mreq := unix.PacketMreq{Ifindex: int32(ifc.Index), Type: unix.PACKET_MR_MULTICAST, Alen: uint16(len(g))}
		copy(mreq.Address[:], g[:])
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &mreq); err != nil {
			return nil, fmt.Errorf("join multicast group: %w", err)
		}
	}
	return &socket{fd: fd, index: ifc.Index}, nil
}

// send sends a frame. A broadcast goes to each of a parent's children first, and
// where there are a thousand of them, that fills the kernel's queue before it
// comes to the wire. The frame is lost then, as others are on the wire: to send
// it again would only fill the queue again.
func (s *socket) send(frame []byte) error {
	to := unix.SockaddrLinklayer{Protocol: htons(binary.BigEndian.Uint16(frame[12:])), Ifindex: s.index}
	if err := unix.Sendto(s.fd, frame, 0, &to); !errors.Is(err, unix.ENOBUFS) {
		return err
	}
	return nil
}

func (s *socket) receive(buf []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(s.fd, buf, 0)
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
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
	// The Go runtime sends threads signals: that is "earlier".
	if _, err := unix.Ppoll(fds, &timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	return nil
}

// close lets go of the socket, which may outlive the call by some milliseconds.
//
// Closing a packet socket waits for an RCU grace period, 5 to 20 ms that the
// end of the process would wait for too. So the last reference to it is left
// in the queue of a socket that only that queue refers to. Finding such cycles
// is a task of the kernel's own threads, which then do the waiting. Older
// kernels do it within our last close: that is no slower than a plain one.
func (s *socket) close() error {
	fd := s.fd
	s.fd = -1 // the number may soon be somebody else's
	if pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		// If this fails, what follows is the plain close.
		_ = unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fd, pair[1]), nil, 0)
		defer unix.Close(pair[0])
		defer unix.Close(pair[1])
	}
	return unix.Close(fd)
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
