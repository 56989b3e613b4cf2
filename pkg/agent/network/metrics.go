package network

import (
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/agent/network/plan"
)

// metrics are read when they are asked for.
type metrics struct {
	task *Task

	peers, changes, passes, skipped, rules, drops *prometheus.Desc
}

func newMetrics(t *Task) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("underlay_"+name, help, labels, nil)
	}
	return &metrics{
		task:    t,
		peers:   desc("peers", "Peers by network and by how they are reached: direct, vxlan, silent, pending, failed, unreachable.", "network", "state"),
		changes: desc("route_changes_total", "Routes to peers that were written, or refused by the kernel.", "result"),
		passes:  desc("route_passes_total", "Comparisons of the routes with those that are wanted."),
		skipped: desc("network_skipped_records", "Records about networks that cannot be read, or used."),
		rules:   desc("nftables_kept", "1 if the nftables table is as it has to be."),
		drops:   desc("forward_drops", "Policies of others by which the host drops what our rules accept."),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.peers, m.changes, m.passes, m.skipped, m.rules, m.drops} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	t := m.task
	t.mu.Lock()
	now, routes, drops := t.now, t.routes, t.drops
	t.mu.Unlock()
	if now.snapshot == nil {
		return
	}
	counts := make(map[string]map[api.PeerState]int)
	for _, n := range now.snapshot.Networks {
		counts[n.Name] = make(map[api.PeerState]int)
	}
	t.peers(func(p plan.Peer, _ netip.Addr, state api.PeerState, _ string) {
		if counts[p.Network] != nil {
			counts[p.Network][state]++
		}
	})
	for network, by := range counts {
		for _, state := range api.PeerStates() {
			gauge(m.peers, float64(by[state]), network, string(state))
		}
	}
	c := routes.Counts()
	for result, n := range map[string]uint64{"written": c.Written, "refused": c.Refused} {
		ch <- prometheus.MustNewConstMetric(m.changes, prometheus.CounterValue, float64(n), result)
	}
	ch <- prometheus.MustNewConstMetric(m.passes, prometheus.CounterValue, float64(c.Passes))
	gauge(m.skipped, float64(len(now.snapshot.Odd)))
	kept := 1.0
	if t.rules.why() != nil {
		kept = 0
	}
	gauge(m.rules, kept)
	inWay := 0
	for _, d := range drops {
		if !d.Passes {
			inWay++
		}
	}
	gauge(m.drops, float64(inWay))
}
