// Package admin serves the Admin API of the agent, and its metrics, on a unix
// socket. Whoever may open the socket may call all of it. The documents are
// those of package api; what they say comes from the ledger, or from the
// registry of the cluster, at the moment of the call.
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
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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
	l, err := s.listen()
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           s.handler(),
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

func (s *Server) listen() (net.Listener, error) {
	path := s.conf.Socket
	gid := 0
	if s.conf.Group != "" {
		g, err := user.LookupGroup(s.conf.Group)
		if err != nil {
			return nil, fmt.Errorf("api.group: %w", err)
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return nil, fmt.Errorf("api.group: %w", err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	// The group first: until the mode is set umask decides, which spares none.
	if err := errors.Join(os.Chown(path, 0, gid), os.Chmod(path, 0o660)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
