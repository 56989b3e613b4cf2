// Package service has the agent's ledger open and answers the plugins that ask
// for it on the socket cni.sock.
//
//   - It listens before it waits for the ledger's lock: plugins that are queued
//     for the lock find it, and come over.
//   - It stops listening before it lets go of the ledger. What it has read by
//     then it answers; what it has not is asked again of whoever comes next.
//   - Where its socket has been removed it makes another one.
//   - A ledger that gives out no addresses is let go of, with the socket, so
//     that plugins see for themselves and underlayctl can make it anew. It is
//     tried again from time to time.
//   - Only root is answered, and nobody who has gone or whose deadline is over.
//
// What a request does is package ipam/client's to say; that requests at the
// same time share a commit is the ledger's.
package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/event"
)

// ErrNotServing is returned while the service has no ledger.
var ErrNotServing = errors.New("the agent has no ledger open")

const (
	// retryAfter is when a ledger that could not be used is tried again.
	retryAfter = 10 * time.Second
	// drainTime is what requests have that are under way when the agent stops.
	drainTime = 5 * time.Second
	// atOnce is how many connections are read and answered at the same time.
	// The kernel queues the others.
	atOnce = 512
)

// Cluster is the agent's way to what other nodes have.
type Cluster interface {
	client.Cluster
	// Stir says that something has been released.
	Stir()
}

// Networks keep the routes and rules of the networks of the cluster.
type Networks interface {
	// Await waits, for two seconds at most, until what an attachment uses of its
	// network is there, or says why it is not.
	Await(ctx context.Context, u ipam.Uses) error
	// Stir says that such an attachment has come or gone.
	Stir()
}

// Segments keep the VXLAN segments of this node.
type Segments interface {
	// Await says why an attachment cannot be in its segment.
	Await(ctx context.Context, u ipam.Uses) error
	// VNI is that of a segment which has it by its name: prefer, unless 0, if it has
	// none yet. With look nothing is given, and 0 is one that it has yet to get.
	VNI(ctx context.Context, tenant, name string, prefer int, look bool) (int, error)
	// Stir says that an attachment in a segment has come or gone.
	Stir()
}

// Config of a Service.
type Config struct {
	// Ledger says where it is; required. ReadOnly must not be set.
	Ledger ledger.Options
	// Log is required.
	Log *slog.Logger
	// Registry takes the metrics; required.
	Registry prometheus.Registerer
	// Cluster gets what the ledger does not have; nil for a node on its own.
	Cluster Cluster
	// Networks have what attachments use of a network before they are made; nil
	// for a node on its own.
	Networks Networks
	// Segments have what attachments in one need; nil for nobody to be asked.
	Segments Segments
	// Ahead, unless nil, hears of each allocation. It must not wait.
	Ahead func(ipam.AllocateRequest)
	// Events hear of conflicts; default: the Log alone.
	Events *event.Log
	// RetryAfter overrides how long a refused ledger is left alone; default 10s.
	RetryAfter time.Duration
}

// Service is a task of the agent.
type Service struct {
	conf    Config
	log     *slog.Logger
	metrics *metrics
	ready   chan struct{}

	mu     sync.RWMutex // held for reading while the ledger is used
	ledger *ledger.Ledger
	why    error // why there is none
}

// New makes a Service.
func New(conf Config) (*Service, error) {
	if conf.Log == nil || conf.Registry == nil {
		return nil, errors.New("service: Log and Registry are required")
	}
	if conf.RetryAfter == 0 {
		conf.RetryAfter = retryAfter
	}
	if conf.Events == nil {
		conf.Events = event.New(event.Config{Slog: conf.Log})
	}
	s := &Service{conf: conf, log: conf.Log, metrics: newMetrics(conf.Registry), ready: make(chan struct{}), why: ErrNotServing}
	return s, nil
}

func (s *Service) String() string { return "ledger" }

// Ready is closed when plugins are first served.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// With runs f on the ledger, which stays open until f returns. The error wraps
// ErrNotServing when there is none.
func (s *Service) With(f func(*ledger.Ledger) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.ledger == nil {
		return s.why
	}
	return f(s.ledger)
}

func (s *Service) set(l *ledger.Ledger, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ledger, s.why = l, why
}

// Run serves until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	for {
		err := s.serve(ctx)
		if ctx.Err() != nil {
			return err
		}
		s.set(nil, fmt.Errorf("%w: %w", ErrNotServing, err))
		s.log.Error("the ledger cannot be used, plugins are left to themselves", "err", err, "again", s.conf.RetryAfter)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(s.conf.RetryAfter):
		}
	}
}

// serve has the ledger open until ctx ends, which is no error, or it cannot be
// used any more.
func (s *Service) serve(ctx context.Context) (err error) {
	listener, err := s.listen()
	if err != nil {
		return err
	}
	defer listener.Close()
	began := time.Now()
	l, err := ledger.Open(ctx, s.conf.Ledger)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer func() {
		s.set(nil, ErrNotServing) // waits for those who use it
		err = errors.Join(err, l.Close())
	}()
	if err := l.Refused(); err != nil {
		return err
	}
	s.set(l, nil)
	s.log.Info("serving plugins", "socket", listener.Addr().String(), "took", time.Since(began))
	select {
	case <-s.ready:
	default:
		close(s.ready)
	}
	return s.accept(ctx, listener, l)
}

// listen makes the socket. One that a dead agent has left is removed: there is
// no second agent, which package agent sees to.
func (s *Service) listen() (*net.UnixListener, error) {
	dir := s.conf.Ledger.RunDir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, wire.SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// Until here umask decides, and after it the credentials of the peer.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// accept answers connections until ctx ends or the ledger breaks.
func (s *Service) accept(ctx context.Context, listener *net.UnixListener, l *ledger.Ledger) error {
	broken := make(chan error, 1)
	accepted := make(chan error, 1)
	var handlers sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	// Those under way have their time when the agent is told to stop.
	serving, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	go func() {
		for {
			slots <- struct{}{}
			c, err := listener.AcceptUnix()
			if err != nil {
				accepted <- err
				return
			}
			handlers.Go(func() {
				defer func() { <-slots }()
				s.handle(serving, c, l)
				if err := l.Refused(); err != nil {
					select {
					case broken <- err:
					default:
					}
				}
			})
		}
	}()
	look := time.NewTicker(s.conf.RetryAfter)
	defer look.Stop()
	path := listener.Addr().String()
	made, err := os.Stat(path)
	for err == nil && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case err = <-broken:
		case err = <-accepted:
			accepted <- err
		case <-look.C:
			// Plugins that find no socket would wait for a lock that is not let go.
			if now, serr := os.Stat(path); serr != nil || !os.SameFile(made, now) {
				err = fmt.Errorf("the socket %q was removed or replaced", path)
			}
		}
	}
	if ctx.Err() != nil {
		err = nil
	}
	_ = listener.Close() // it also removes the socket
	timer := time.AfterFunc(drainTime, cut)
	defer timer.Stop()
	if aerr := <-accepted; err == nil && !errors.Is(aerr, net.ErrClosed) {
		err = aerr
	}
	handlers.Wait()
	return err
}
