package service

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the service.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	refused  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "underlay_requests_total",
			Help: "Requests of plugins, by operation and what came of them: ok, error, dropped (nobody waits any more), elsewhere (another ledger), bad.",
		}, []string{"op", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "underlay_request_seconds",
			Help:    "Time from the connection of a plugin to the response.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5},
		}, []string{"op"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "underlay_connections_refused_total",
			Help: "Connections of processes that are not root's.",
		}),
	}
	reg.MustRegister(m.requests, m.seconds, m.refused)
	return m
}

func (m *metrics) observe(op, result string, began time.Time) {
	m.requests.WithLabelValues(op, result).Inc()
	m.seconds.WithLabelValues(op).Observe(time.Since(began).Seconds())
}
