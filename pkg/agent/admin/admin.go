// Package admin serves the Admin API of the agent, and its metrics, on a unix
// socket. Root and the members of one group may call all of it; the kernel says
// who calls, besides the mode of the socket. The documents are those of package
// api; what they say comes from the ledger, or from the registry of the cluster,
// at the moment of the call.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/agent/event"
)

// SocketName is that of the socket in the run folder.
const SocketName = api.SocketName

// Ledger is the agent's.
type Ledger interface {
	// With runs a function on the ledger, or says why there is none.
	With(func(*ledger.Ledger) error) error
}

// Networks keep the routes and rules of the networks of the cluster.
type Networks interface {
	// Peers tells how the peers of a network are reached, or of all if that is "".
	Peers(network string) []api.Peer
	// Routing tells how far this node is with what its routes to peers need.
	Routing() api.Routing
}

// Segments keep the VXLAN segments that this node is in.
type Segments interface {
	// Segments tells of them all.
	Segments() []api.Segment
	// Segment tells who is in one; ok is false if this node is not.
	Segment(vni int) (s api.SegmentDetail, ok bool)
}

// none is a node without segments.
type none struct{}

func (none) Segments() []api.Segment                   { return []api.Segment{} }
func (none) Segment(int) (s api.SegmentDetail, _ bool) { return s, false }

// Config of a Server. All but Group, Cluster, Networks, Segments and Events are
// required.
type Config struct {
	// Node is the node's name, Version the agent's.
	Node, Version string
	// Socket is where to listen, DataDir the folder of the ledger.
	Socket, DataDir string
	// Group may use the socket beside root; "" is root's own.
	Group string
	// Ledger is what is asked about.
	Ledger Ledger
	// Pending lists the tasks of the agent that are not ready.
	Pending func() []string
	Log     *slog.Logger
	// Registry takes the metrics of the ledger, and gives out all of them.
	Registry *prometheus.Registry
	// Cluster returns the registry of the cluster, or says why it cannot be used
	// now; nil where the agent has none.
	Cluster func() (registry.Registry, error)
	// Networks are asked for peers; nil where the agent has no cluster.
	Networks Networks
	// Segments are asked for those of this node; default: there are none.
	Segments Segments
	// Events are what is told of; default: none.
	Events *event.Log
}

// Server is a task of the agent.
type Server struct {
	conf    Config
	ready   chan struct{}
	closing chan struct{} // closed when the server is about to end
}

// New makes a Server.
func New(conf Config) (*Server, error) {
	if conf.Ledger == nil || conf.Pending == nil || conf.Log == nil || conf.Registry == nil || conf.Socket == "" {
		return nil, errors.New("admin: a required field is missing")
	}
	if conf.Events == nil {
		conf.Events = event.New(event.Config{Slog: conf.Log})
	}
	if conf.Segments == nil {
		conf.Segments = none{}
	}
	conf.Registry.MustRegister(newMetrics(conf.Ledger))
	return &Server{conf: conf, ready: make(chan struct{}), closing: make(chan struct{})}, nil
}

func (s *Server) String() string { return "api" }

// Ready is closed when the API is served.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	l, gid, err := s.listen()
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: s.known(s.handler()),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, checkPeer(c, gid))
		},
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.conf.Log.Handler(), slog.LevelWarn),
	}
	// Who follows events would keep the server from its end.
	server.RegisterOnShutdown(func() { close(s.closing) })
	close(s.ready)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		_ = server.Close() // whoever is still reading has had time
	}
	<-served
	return nil
}

// listen makes the socket, and says which group may use it.
func (s *Server) listen() (l net.Listener, gid int, err error) {
	path := s.conf.Socket
	if s.conf.Group != "" {
		g, err := user.LookupGroup(s.conf.Group)
		if err != nil {
			return nil, 0, fmt.Errorf("api.group: %w", err)
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return nil, 0, fmt.Errorf("api.group: %w", err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err
	}
	if l, err = net.Listen("unix", path); err != nil {
		return nil, 0, err
	}
	// Until the mode is set umask decides who may connect, and the credentials of
	// the peer who is answered.
	if err := errors.Join(os.Chown(path, 0, gid), os.Chmod(path, 0o660)); err != nil {
		return nil, 0, errors.Join(err, l.Close())
	}
	return l, gid, nil
}

// peerKey is that of what checkPeer has said, in the context of a connection.
type peerKey struct{}

// known answers those that checkPeer lets pass, and tells the others why not.
func (s *Server) known(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err, _ := r.Context().Value(peerKey{}).(error); err != nil {
			s.conf.Log.Warn("refused a call", "err", err)
			w.Header().Set("Connection", "close")
			write(w, http.StatusForbidden, api.Problem{Error: wire.NewFailure(err)})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// checkPeer lets root pass, and members of the group: what they were when they
// connected, and root of this user namespace, since the kernel translates.
func checkPeer(c net.Conn, gid int) error {
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("%T tells no credentials", c)
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var groups []uint32
	cerr := raw.Control(func(fd uintptr) {
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			groups, err = peerGroups(fd)
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		return fmt.Errorf("credentials of the peer: %w", err)
	}
	if cred.Uid == 0 || int(cred.Gid) == gid || slices.Contains(groups, uint32(gid)) {
		return nil
	}
	return fmt.Errorf(`only root and the group %d are served here, and process %d is of user %d; "api.group" in underlayd.json names the group`, gid, cred.Pid, cred.Uid)
}

// peerGroups are the supplementary groups of the peer.
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups)) * 4
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case e == 0:
			return groups[:size/4], nil
		case e != unix.ERANGE || int(size)/4 <= len(groups):
			return nil, e
		}
		groups = make([]uint32, size/4) // the kernel has said how many there are
	}
}
