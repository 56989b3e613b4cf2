package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Capture holds the frames that passed an interface since the capture began.
type Capture struct {
	socket *os.File
	forget func() bool   // the context
	done   chan struct{} // closed when the reader has ended

	mu     sync.Mutex
	frames []Frame
	more   chan struct{} // closed, and replaced, when frames grows
}

// Capture records the frames that pass an interface of the namespace, in both
// directions, until ctx is done or Close is called. It is listening when it
// returns.
//
// A host's port on the switch shows what the host has on the wire. A host's
// eth1 shows that too, but not what its macvlans say to each other.
func (n *Namespace) Capture(ctx context.Context, ifName string) (*Capture, error) {
	c := &Capture{done: make(chan struct{}), more: make(chan struct{})}
	err := n.Do(func() (err error) {
		c.socket, err = listen(ifName)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %q of %q: %w", ifName, n.ID, err)
	}
	go c.read()
	c.forget = context.AfterFunc(ctx, c.end)
	return c, nil
}

// listen opens a packet socket for all protocols on one interface.
func listen(ifName string) (*os.File, error) {
	link, err := net.InterfaceByName(ifName)
	if err != nil {
		return nil, err
	}
	// Protocol 0 hears nothing: before bind, it would be every interface.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)) // the kernel wants network order
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), ifName), nil
}

// end lets the reader take what the socket holds already, and then close it.
func (c *Capture) end() { c.socket.SetReadDeadline(time.Unix(1, 0)) }

func (c *Capture) read() {
	defer close(c.done)
	defer c.socket.Close()
	conn, err := c.socket.SyscallConn()
	if err != nil {
		return
	}
	buffer := make([]byte, 1<<16)
	conn.Read(func(fd uintptr) bool { // until the deadline that end sets
		c.drain(int(fd), buffer)
		return false
	})
	conn.Control(func(fd uintptr) { c.drain(int(fd), buffer) })
}

// drain records all frames that the socket holds.
func (c *Capture) drain(fd int, buffer []byte) {
	for {
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if err == unix.EAGAIN {
			return
		}
		if err != nil || n < headerLen { // the interface may go down and come back
			continue
		}
		frame := Frame{Time: time.Now(), Raw: append([]byte(nil), buffer[:n]...)}
		if link, ok := from.(*unix.SockaddrLinklayer); ok {
			frame.Outgoing = link.Pkttype == unix.PACKET_OUTGOING
		}
		c.mu.Lock()
		c.frames = append(c.frames, frame)
		close(c.more)
		c.more = make(chan struct{})
		c.mu.Unlock()
	}
}

// Frames returns what was captured so far.
func (c *Capture) Frames() []Frame {
	frames, _ := c.state()
	return frames
}

func (c *Capture) state() ([]Frame, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frames[:len(c.frames):len(c.frames)], c.more
}

// Wait returns the first frame, of those captured so far and those to come,
// that matches. It fails when ctx is done or the capture has ended.
func (c *Capture) Wait(ctx context.Context, match func(Frame) bool) (Frame, error) {
	for seen := 0; ; {
		frames, more := c.state()
		for _, f := range frames[seen:] {
			if match(f) {
				return f, nil
			}
		}
		seen = len(frames)
		select {
		case <-more:
		case <-c.done:
			return Frame{}, fmt.Errorf("no matching frame among %d: capture ended", seen)
		case <-ctx.Done():
			return Frame{}, fmt.Errorf("no matching frame among %d: %w", seen, ctx.Err())
		}
	}
}

// Close ends the capture and returns all frames that passed before. It may be
// repeated.
func (c *Capture) Close() []Frame {
	c.forget()
	c.end()
	<-c.done
	return c.Frames()
}
