// Package sweep gives back what containers hold that went without a DEL: every
// minute it compares the ledger with the namespaces of this node. An attachment
// is released when its namespace is gone at two looks that lie apart in time.
// So is one whose container its runtime does not know, if that was asked and
// nobody is in the namespace.
//
// When to doubt what it sees, and what counts as gone, is package ipam/client's
// to say, which does the same for an ADD that finds its pool exhausted. What a
// reboot has ended the ledger itself knows.
package sweep

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/agent/event"
)

// Ledger is the agent's.
type Ledger interface {
	// With runs a function on the ledger, or says why there is none.
	With(func(*ledger.Ledger) error) error
}

// Config of a Sweep.
type Config struct {
	// Ledger, Log and Registry are required.
	Ledger   Ledger
	Log      *slog.Logger
	Registry prometheus.Registerer
	// Events hear of what was released; default: the Log alone.
	Events *event.Log
	// Every is the time between two looks; default 1m.
	Every time.Duration
	// Containers are asked which there are; nil for nobody to be asked. Left then
	// says what is left of each attachment; default: what this node's namespaces
	// have.
	Containers Containers
	Left       func([]ipam.AttachmentRecord) ([]Left, error)
	// Freed, unless nil, hears that attachments were released. It must not wait.
	Freed func()
	// Reclaim looks once; default: client.Reclaim of all pools.
	Reclaim func(*ledger.Ledger) (client.Reclaimed, error)
}

// Sweep is a task of the agent.
type Sweep struct {
	conf    Config
	metrics *metrics
	ready   chan struct{}
	doubt   string // of the last look, which is told once
	unasked string // why Containers were not believed, which is told once
	unknown map[ipam.Attachment]unknown
}

type metrics struct {
	released prometheus.Counter
	dead     prometheus.Gauge
	doubts   prometheus.Counter
}

// New makes a Sweep.
func New(conf Config) (*Sweep, error) {
	if conf.Ledger == nil || conf.Log == nil || conf.Registry == nil {
		return nil, errors.New("sweep: Ledger, Log and Registry are required")
	}
	if conf.Every == 0 {
		conf.Every = time.Minute
	}
	if conf.Reclaim == nil {
		conf.Reclaim = func(l *ledger.Ledger) (client.Reclaimed, error) { return client.Reclaim(l, "") }
	}
	if conf.Events == nil {
		conf.Events = event.New(event.Config{Slog: conf.Log})
	}
	if conf.Freed == nil {
		conf.Freed = func() {}
	}
	if conf.Left == nil {
		conf.Left = lookAt
	}
	m := &metrics{
		released: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "underlay_leaks_released_total",
			Help: "Attachments released because their namespace was gone, or their container was not known to its runtime.",
		}),
		dead: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "underlay_leaks",
			Help: "Attachments whose namespace was gone at the last look.",
		}),
		doubts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "underlay_leak_doubts_total",
			Help: "Looks that were not trusted: too much was gone at once, or this process cannot see.",
		}),
	}
	conf.Registry.MustRegister(m.released, m.dead, m.doubts)
	return &Sweep{conf: conf, metrics: m, ready: make(chan struct{})}, nil
}

func (s *Sweep) String() string { return "sweep" }

// Ready is closed as soon as it runs: nobody waits for the first look.
func (s *Sweep) Ready() <-chan struct{} { return s.ready }

// Run looks until ctx ends.
func (s *Sweep) Run(ctx context.Context) error {
	close(s.ready)
	tick := time.NewTicker(s.conf.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.look(ctx)
		}
	}
}

func (s *Sweep) look(ctx context.Context) {
	var found client.Reclaimed
	err := s.conf.Ledger.With(func(l *ledger.Ledger) (err error) {
		// What plugins have spooled is not a leak.
		if err := l.Drain(); err != nil {
			return err
		}
		found, err = s.conf.Reclaim(l)
		return err
	})
	if err != nil {
		s.conf.Log.Warn("leaks were not looked for", "err", err)
		return
	}
	s.metrics.dead.Set(float64(found.Dead - len(found.Released)))
	s.metrics.released.Add(float64(len(found.Released)))
	if found.Doubt != "" {
		s.metrics.doubts.Inc()
		if found.Doubt != s.doubt {
			s.conf.Log.Warn("leaks are not released", "why", found.Doubt)
		}
	}
	s.doubt = found.Doubt
	for _, a := range found.Released {
		s.conf.Events.Add(api.Event{Kind: api.LeakReleased, Network: a.Network, Container: a.ContainerID, IfName: a.IfName,
			Text: "released a leak: its namespace is gone"})
	}
	if len(found.Released) > 0 {
		s.conf.Freed()
	}
	// Who cannot see namespaces cannot see what is left in them.
	if s.conf.Containers == nil || found.Doubt != "" {
		return
	}
	why := ""
	if err := s.lookUnknown(ctx); err != nil && ctx.Err() == nil {
		s.metrics.doubts.Inc()
		if why = err.Error(); why != s.unasked {
			s.conf.Log.Warn("containers that their runtime does not know are not looked for", "err", err)
		}
	}
	s.unasked = why
}
