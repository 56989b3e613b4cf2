// Package event is the agent's memory of what changed on this node: the tasks
// say it here, once, and the log, the metrics, the Admin API and underlayctl
// have it from here. It is forgotten when the agent ends, and keeps the last
// Size events.
//
// Left out: what fails and is tried again, which is the log's, and how things
// are at the moment, which is the ledger's and the registry's.
package event

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// Size is how many events are remembered.
const Size = 4096

// Config of a Log.
type Config struct {
	// Slog takes a line for each event; required.
	Slog *slog.Logger
	// Registry takes the metrics; nil for none.
	Registry prometheus.Registerer
	// Size overrides how many events are remembered; default Size.
	Size int
	// Now is the wall clock; default time.Now.
	Now func() time.Time
}

// Log has the events. It may be used by many at the same time.
type Log struct {
	conf  Config
	count *prometheus.CounterVec

	mu   sync.Mutex
	ring []api.Event // of Size at most
	next int         // where in a full ring the next one goes
	seq  uint64      // of the last
	news chan struct{}
}

// New makes a Log.
func New(conf Config) *Log {
	if conf.Size == 0 {
		conf.Size = Size
	}
	if conf.Now == nil {
		conf.Now = time.Now
	}
	l := &Log{conf: conf, news: make(chan struct{}), count: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "underlay_events_total",
		Help: "What changed on this node, by kind.",
	}, []string{"kind"})}
	for _, k := range api.EventKinds() {
		l.count.WithLabelValues(string(k)) // a rate needs its zero
	}
	if conf.Registry != nil {
		conf.Registry.MustRegister(l.count)
	}
	// Whoever followed the agent before this one goes on with what is new.
	l.seq = uint64(conf.Now().UnixMicro())
	return l
}

// Add takes in an event, whose Seq and Time it sets.
func (l *Log) Add(e api.Event) {
	l.mu.Lock()
	l.seq++
	e.Seq, e.Time = l.seq, l.conf.Now().UTC()
	if len(l.ring) < l.conf.Size {
		l.ring = append(l.ring, e)
	} else {
		l.ring[l.next] = e
		l.next = (l.next + 1) % l.conf.Size
	}
	close(l.news)
	l.news = make(chan struct{})
	l.mu.Unlock()
	l.count.WithLabelValues(string(e.Kind)).Inc()
	l.write(e)
}

// Since lists the events after a Seq that are remembered, the oldest first.
// more is closed when there is another one.
func (l *Log) Since(seq uint64) (events []api.Event, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.ring {
		if e := l.ring[(l.next+i)%len(l.ring)]; e.Seq > seq {
			events = append(events, e)
		}
	}
	return events, l.news
}

func level(k api.EventKind) slog.Level {
	switch k {
	case api.AddressLost:
		return slog.LevelError
	case api.AddressConflict, api.RegistryAway, api.RegistryFrozen, api.NodeRenewed:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// write writes the line of an event. The node that it names has another key
// than this one, whose log it is.
func (l *Log) write(e api.Event) {
	attrs := []slog.Attr{slog.String("event", string(e.Kind))}
	for _, f := range []struct{ key, value string }{{"network", e.Network}, {"container", e.Container}, {"ifname", e.IfName}, {"pool", e.Pool}, {"other", e.Node}} {
		if f.value != "" {
			attrs = append(attrs, slog.String(f.key, f.value))
		}
	}
	if e.Addr.IsValid() {
		attrs = append(attrs, slog.String("addr", e.Addr.String()))
	}
	if e.Block.IsValid() {
		attrs = append(attrs, slog.String("block", e.Block.String()))
	}
	l.conf.Slog.LogAttrs(context.Background(), level(e.Kind), e.Text, attrs...)
}
