package cluster

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	unread    prometheus.Gauge
	rounds    *prometheus.CounterVec
	waits     *prometheus.CounterVec
	lost      prometheus.Counter
	connected prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		unread: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "underlay_registry_unread_values",
			Help: "Values of the registry that were skipped because they cannot be understood.",
		}),
		rounds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "underlay_registry_rounds_total",
			Help: "Rounds of comparing ledger and registry, by result.",
		}, []string{"result"}),
		waits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "underlay_lease_waits_total",
			Help: "ADDs that needed an address which this node did not have, by result.",
		}, []string{"result"}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "underlay_lease_lost_addresses_total",
			Help: "Addresses that are in use here and another node's by the registry. Any is an error.",
		}),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "underlay_registry_connected",
			Help: "1 if the registry is followed.",
		}),
	}
	// A counter that appears with its first count hides that one from rules, which
	// look at what it was before.
	for _, v := range []*prometheus.CounterVec{m.rounds, m.waits} {
		v.WithLabelValues("ok")
		v.WithLabelValues("error")
	}
	reg.MustRegister(m.unread, m.rounds, m.waits, m.lost, m.connected)
	return m
}
