package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam/client/wire"
)

var (
	// errNobody is returned by dial where no agent listens.
	errNobody = errors.New("no agent listens")
	// errLost is returned by exchange when the agent went without an answer.
	errLost = errors.New("the agent ended the connection without an answer")
	// errSilent is returned when the agent took no request, or gave no answer,
	// in the time there was.
	errSilent = errors.New("the agent does not answer")
	// errUnread is the errSilent of a request that the agent has not read, and
	// does nothing about when it does: it sees then that nobody waits.
	errUnread = fmt.Errorf("%w: it has not read the request", errSilent)
)

const (
	// poll is how long a wait for the agent lasts before it looks at the context.
	poll = 100 * time.Millisecond
	// unreadPatience is how long a request may lie unread. An agent that works
	// reads it at once, whatever it then has to wait for; one that starts opens the
	// ledger first.
	unreadPatience = 3 * time.Second
)

// socket is a connection to the agent. It is made with plain system calls:
// the poller of package net would cost a plugin more than the exchange does.
type socket int

// dial connects to the agent.
func (c *Client) dial(ctx context.Context) (socket, error) {
	path := filepath.Join(c.o.RunDir, wire.SocketName)
	for {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return -1, fmt.Errorf("connect to the agent: %w", err)
		}
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		if err == nil {
			return socket(fd), nil
		}
		unix.Close(fd)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EAGAIN):
			// There is no socket, or one that a dead agent has left, or no way
			// to it: in none of these does an agent have the ledger open for us.
			return -1, fmt.Errorf("%w: %w", errNobody, err)
		}
		// More wait to be served than the kernel lets queue.
		select {
		case <-ctx.Done():
			return -1, fmt.Errorf("%w: %w", errUnread, context.Cause(ctx))
		case <-time.After(poll):
		}
	}
}

func (s socket) close() { unix.Close(int(s)) }

// exchange sends a request and returns the response.
func (s socket) exchange(ctx context.Context, q *wire.Request) (*wire.Response, error) {
	request, err := wire.EncodeRequest(q)
	if err != nil {
		return nil, err
	}
	if len(request) > wire.MaxRequest {
		return nil, fmt.Errorf("request to the agent: %w", wire.ErrTooLong)
	}
	for len(request) > 0 {
		n, err := s.retry(ctx, unix.POLLOUT, func() (int, error) {
			return unix.SendmsgN(int(s), request, nil, nil, unix.MSG_NOSIGNAL)
		})
		if err != nil {
			return nil, err
		}
		request = request[n:]
	}
	r := &reader{ctx: ctx, s: s, sent: time.Now()}
	a, err := wire.ReadResponse(r)
	switch {
	case r.err != nil:
		return nil, r.err
	case err != nil:
		return nil, fmt.Errorf("response of the agent: %w", err)
	case a.Version != wire.Version:
		return nil, fmt.Errorf("response of the agent: version %d of the protocol, and this plugin speaks %d", a.Version, wire.Version)
	}
	return a, nil
}

// retry makes a system call, waiting until the socket is ready for it.
func (s socket) retry(ctx context.Context, event int16, call func() (int, error)) (int, error) {
	for {
		n, err := call()
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, errSilent):
			return 0, err
		case !errors.Is(err, unix.EAGAIN):
			return 0, fmt.Errorf("%w: %w", errLost, err)
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("%w: %w", errSilent, context.Cause(ctx))
		}
		wait := poll
		if end, ok := ctx.Deadline(); ok {
			wait = max(min(wait, time.Until(end)), time.Millisecond)
		}
		fds := []unix.PollFd{{Fd: int32(s), Events: event}}
		if _, err := unix.Poll(fds, int(wait.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("wait for the agent: %w", err)
		}
	}
}

// unread reports whether the agent has yet to read what was sent: a process that
// is stopped, or hangs, has.
func (s socket) unread() bool {
	n, err := unix.IoctlGetInt(int(s), unix.SIOCOUTQ)
	return err == nil && n > 0
}

// reader reads the response. err is why the connection, not the response, was
// no good.
type reader struct {
	ctx  context.Context
	s    socket
	sent time.Time // the request
	err  error
}

func (r *reader) Read(p []byte) (n int, err error) {
	n, r.err = r.s.retry(r.ctx, unix.POLLIN, func() (int, error) {
		n, err := unix.Read(int(r.s), p)
		if errors.Is(err, unix.EAGAIN) && time.Since(r.sent) > unreadPatience && r.s.unread() {
			// What is unread after this is read by somebody who sees the end.
			if err := unix.Shutdown(int(r.s), unix.SHUT_RDWR); err != nil || !r.s.unread() {
				return 0, errSilent
			}
			return 0, fmt.Errorf("%w for %s; is it stopped?", errUnread, unreadPatience)
		}
		return n, err
	})
	switch {
	case r.err != nil:
		return 0, r.err
	case n == 0:
		r.err = errLost
		return 0, io.EOF
	}
	return n, nil
}
