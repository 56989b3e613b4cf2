package nlsock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
)

// ErrOverrun is returned when more has changed than the kernel could tell. The
// watcher goes on; its owner reads everything again.
var ErrOverrun = errors.New("more has changed than the kernel could tell")

// Watcher hears what changes in the kernel.
type Watcher struct {
	file *os.File // so that Close ends a Read
	conn syscall.RawConn
	buf  []byte
}

// Watch listens to groups (unix.RTNLGRP_..., NFNLGRP_...) of a protocol
// (unix.NETLINK_...) in the namespace that fd refers to, or, if fd is negative,
// in that of the calling thread. What happens from now on is not missed.
func Watch(fd, protocol int, groups ...int) (w *Watcher, err error) {
	if fd >= 0 {
		err = netns.DoAt(fd, func() error {
			w, err = Watch(-1, protocol, groups...)
			return err
		})
		return w, err
	}
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("watch the kernel: %w", err)
	}
	file := os.NewFile(uintptr(s), "netlink")
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	if err := unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("watch the kernel: %w", err)
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(s, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			return nil, fmt.Errorf("watch the kernel: join group %d: %w", g, err)
		}
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("watch the kernel: %w", err)
	}
	return &Watcher{file: file, conn: conn, buf: make([]byte, 64<<10)}, nil
}

// Watch listens to groups of the routing protocol in the namespace of the
// socket, and leaves out what c causes itself, as far as the kernel says who it
// was: its owner knows, and thousands of its own changes would hide one of
// another.
func (c *Conn) Watch(groups ...int) (*Watcher, error) {
	fd, err := c.Netns()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	w, err := Watch(fd, unix.NETLINK_ROUTE, groups...)
	if err != nil {
		return nil, err
	}
	if err := w.ignore(c); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *Watcher) ignore(c *Conn) error {
	name, err := unix.Getsockname(c.fd)
	if err != nil {
		return fmt.Errorf("watch the kernel: %w", err)
	}
	// The filter takes the word for big-endian, the kernel wrote it as its own.
	port := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, name.(*unix.SockaddrNetlink).Pid))
	const offsetOfPid = 12
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offsetOfPid},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: port, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
	}
	var failed error
	err = w.conn.Control(func(fd uintptr) {
		failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("watch the kernel: filter out own changes: %w", err)
	}
	return nil
}

// Read waits until something has changed and passes what it is told to fn. The
// error is ErrOverrun where that is not all of it, and wraps os.ErrClosed after
// Close.
func (w *Watcher) Read(fn func(Message)) error {
	var n int
	var failed error
	err := w.conn.Read(func(fd uintptr) (done bool) {
		n, _, failed = unix.Recvfrom(int(fd), w.buf, unix.MSG_TRUNC)
		return !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
	})
	switch {
	case err != nil: // the poller's, which has an error of its own for it
		return fmt.Errorf("watch the kernel: %w", os.ErrClosed)
	case errors.Is(failed, unix.ENOBUFS), n > len(w.buf):
		return ErrOverrun
	case failed != nil:
		return fmt.Errorf("watch the kernel: %w", failed)
	}
	for m, err := range messages(w.buf[:n]) {
		if err != nil {
			return ErrOverrun
		}
		fn(m)
	}
	return nil
}

// Listen reads until ctx ends, and closes the watcher. It calls overrun where
// heard has not been told all.
func (w *Watcher) Listen(ctx context.Context, heard func(Message), overrun func()) error {
	defer w.Close()
	defer context.AfterFunc(ctx, func() { w.Close() })()
	for {
		switch err := w.Read(heard); {
		case errors.Is(err, ErrOverrun):
			overrun()
		case err != nil:
			return errors.Join(ctx.Err(), err)
		}
	}
}

// Close ends the watch, and a Read that waits.
func (w *Watcher) Close() error { return w.file.Close() }
