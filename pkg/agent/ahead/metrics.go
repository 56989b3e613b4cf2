package ahead

import "github.com/prometheus/client_golang/prometheus"

type metrics struct{ asked, conflicts prometheus.Counter }

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		asked: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "underlay_ahead_asked_total",
			Help: "Addresses that the wire was asked for before an ADD needed them.",
		}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "underlay_ahead_conflicts_total",
			Help: "Of these, that went into quarantine because somebody else answered.",
		}),
	}
	reg.MustRegister(m.asked, m.conflicts)
	return m
}
