package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// ioTime is what a plugin has to send its request, and to take the response.
const ioTime = 5 * time.Second

// errGone is why a request is dropped. Mostly nobody is there to be told, but one
// whose time ends right now may hear of it.
var errGone = &goneError{}

type goneError struct{}

func (*goneError) Error() string { return "the plugin waits no longer" }

// CNICode asks the runtime to try again later.
func (*goneError) CNICode() uint { return ipam.CodeTryAgainLater }

// handle answers one connection.
func (s *Service) handle(ctx context.Context, c *net.UnixConn, l *ledger.Ledger) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	began := time.Now()
	if err := checkPeer(c); err != nil {
		s.log.Warn("refused a connection", "err", err)
		s.metrics.refused.Inc()
		s.respond(c, &wire.Response{Version: wire.Version, Failure: wire.NewFailure(err)})
		return
	}
	_ = c.SetReadDeadline(began.Add(ioTime))
	q, err := wire.ReadRequest(c)
	var bad *wire.BadRequest
	switch {
	case errors.As(err, &bad):
		s.log.Warn("bad request", "err", err)
		s.metrics.observe("none", "bad", began)
		s.respond(c, &wire.Response{Version: wire.Version, Failure: wire.NewFailure(err)})
		return
	case err != nil:
		return // a look whether somebody listens
	}
	if !s.mine(q.DataDir) {
		s.metrics.observe(string(q.Op), "elsewhere", began)
		s.respond(c, &wire.Response{Version: wire.Version, Failure: wire.NewFailure(wire.ErrElsewhere)})
		return
	}
	wanted := func() error {
		switch {
		case int64(wire.Boottime()) > q.Deadline:
			return fmt.Errorf("%w: %w", errGone, context.DeadlineExceeded)
		case hungUp(c):
			return errGone
		}
		return nil
	}
	if wanted() != nil {
		s.metrics.observe(string(q.Op), "dropped", began)
		return
	}
	a := s.answer(ctx, l, q, wanted)
	s.respond(c, a)
	s.tellConflicts(q, a)
	if q.Allocate != nil && a.Allocation != nil && s.conf.Ahead != nil {
		s.conf.Ahead(*q.Allocate)
	}
	result := "ok"
	if a.Failure != nil {
		// Not an error of ours for the most part: a pool is exhausted, a key of
		// a configuration is wrong. The plugin's caller hears of it.
		result = "error"
	}
	s.metrics.observe(string(q.Op), result, began)
}

// answer does what is asked. An attachment that reaches a network's peers is not
// made before there are routes to them.
func (s *Service) answer(ctx context.Context, l *ledger.Ledger, q *wire.Request, wanted func() error) *wire.Response {
	networked := q.Allocate != nil && q.Allocate.Uses.Network != ""
	if networked {
		if err := s.await(ctx, q.Allocate.Uses); err != nil {
			return &wire.Response{Version: wire.Version, Failure: wire.NewFailure(err)}
		}
	}
	if q.Op == wire.OpVNI && s.conf.Segments != nil {
		return s.vni(ctx, l, q)
	}
	segmented := s.conf.Segments != nil && q.Allocate != nil && q.Allocate.Uses.Segment.VNI != 0
	if segmented {
		if err := s.conf.Segments.Await(ctx, q.Allocate.Uses); err != nil {
			return &wire.Response{Version: wire.Version, Failure: wire.NewFailure(err)}
		}
	}
	a := client.Answer(ctx, l, s.cluster(), q, wanted)
	if q.Op == wire.OpRelease && s.conf.Cluster != nil {
		s.conf.Cluster.Stir()
	}
	networked = networked || a.Released != nil && a.Released.Uses.Network != ""
	if networked && s.conf.Networks != nil {
		s.conf.Networks.Stir()
	}
	gone := a.Released != nil && a.Released.Uses.Segment.VNI != 0 || a.Allocation != nil && a.Allocation.Replaced.Uses.Segment.VNI != 0
	if s.conf.Segments != nil && (segmented || gone) {
		s.conf.Segments.Stir()
	}
	return a
}

// vni answers with the VNI that the cluster has given a segment's name. While the
// registry is away it is that of who is in the segment here.
func (s *Service) vni(ctx context.Context, l *ledger.Ledger, q *wire.Request) *wire.Response {
	known := client.Answer(ctx, l, nil, q, nil)
	if known.Failure != nil {
		return known
	}
	vni, err := s.conf.Segments.VNI(ctx, q.VNI.Tenant, q.VNI.Name, known.VNI, q.VNI.Look)
	var coded interface{ CNICode() uint }
	switch {
	case err == nil:
		known.VNI = vni
	case errors.As(err, &coded):
		return &wire.Response{Version: wire.Version, Failure: wire.NewFailure(err)}
	case known.VNI == 0:
		err = &ipam.FieldError{Place: "vni", Code: ipam.CodeTryAgainLater, Msg: fmt.Sprintf("is missing, and the cluster does not tell the one that it has given network %q: %v", q.VNI.Name, err)}
		return &wire.Response{Version: wire.Version, Failure: wire.NewFailure(err)}
	}
	return known
}

func (s *Service) await(ctx context.Context, u ipam.Uses) error {
	if s.conf.Networks == nil {
		return &ipam.FieldError{Place: "network", Msg: fmt.Sprintf(`the agent has no registry, so it knows no network %q; say where it is with "registry" in underlayd.json`, u.Network)}
	}
	return s.conf.Networks.Await(ctx, u)
}

// tellConflicts tells of addresses that a plugin has found to be in use by
// somebody else. The ADD goes on with others, so nobody would hear of them.
func (s *Service) tellConflicts(q *wire.Request, a *wire.Response) {
	if q.Release == nil || a.Released == nil {
		return
	}
	for _, c := range q.Release.Conflict {
		for _, rec := range a.Released.Records {
			if rec.Address.Addr() != c.Address {
				continue
			}
			att := q.Release.Attachment
			s.conf.Events.Add(api.Event{Kind: api.AddressConflict, Network: att.Network, Container: att.ContainerID, IfName: att.IfName,
				Pool: rec.Pool, Addr: c.Address, Text: "an address is in use by somebody else, and goes into quarantine: " + c.Reason})
		}
	}
}

// cluster is nil, not an interface that has nil, where there is none.
func (s *Service) cluster() client.Cluster {
	if s.conf.Cluster == nil {
		return nil
	}
	return s.conf.Cluster
}

func (s *Service) respond(c *net.UnixConn, a *wire.Response) {
	b, err := wire.Encode(a)
	if err == nil && len(b) > wire.MaxResponse {
		err = wire.ErrTooLong
	}
	if err != nil {
		s.log.Error("encode a response", "err", err)
		return // the plugin asks again, or gives up
	}
	_ = c.SetWriteDeadline(time.Now().Add(ioTime))
	_, _ = c.Write(b) // one that is gone asks again
}

// mine reports whether dir is the folder of this ledger, by whatever path.
func (s *Service) mine(dir string) bool {
	own := s.conf.Ledger.DataDir
	if dir == filepath.Clean(own) {
		return true
	}
	a, err := os.Stat(own)
	if err != nil {
		return false
	}
	b, err := os.Stat(dir)
	return err == nil && os.SameFile(a, b)
}

// checkPeer lets root pass alone, root of this user namespace: the kernel
// translates.
func checkPeer(c *net.UnixConn) error {
	var cred *unix.Ucred
	err := withFd(c, func(fd int) (err error) {
		cred, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		return err
	})
	if err != nil {
		return fmt.Errorf("credentials of the peer: %w", err)
	}
	if cred.Uid != 0 {
		return fmt.Errorf("only root is served here, and process %d is of user %d", cred.Pid, cred.Uid)
	}
	return nil
}

// hungUp reports whether the peer has closed its end, without reading.
func hungUp(c *net.UnixConn) bool {
	gone := false
	_ = withFd(c, func(fd int) error {
		var b [1]byte
		n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
		return nil
	})
	return gone
}

func withFd(c *net.UnixConn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = raw.Control(func(fd uintptr) { ferr = f(int(fd)) })
	return errors.Join(err, ferr)
}
