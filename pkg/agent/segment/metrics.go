package segment

import (
	"errors"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// metrics are read when they are asked for.
type metrics struct {
	task *Task

	segments, nodes, endpoints, entries, skipped *prometheus.Desc
}

func newMetrics(t *Task) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("underlay_"+name, help, labels, nil)
	}
	return &metrics{
		task:      t,
		segments:  desc("segments", "VXLAN segments that this node has attachments in, by whether they are as they have to be.", "state"),
		nodes:     desc("segment_nodes", "Nodes in a segment, this one included.", "vni"),
		endpoints: desc("segment_endpoints", "Endpoints of a segment, by how they are reached: local, remote, pending, failed, moved, unreachable.", "vni", "state"),
		entries:   desc("segment_entries", "Neighbours and FDB entries of a segment, by whether they are in the kernel: kept, pending, failed.", "vni", "state"),
		skipped:   desc("segment_skipped_records", "Records of nodes in a segment that cannot be read, and attachments that cannot be told others.", "vni"),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.segments, m.nodes, m.endpoints, m.entries, m.skipped} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	states := map[string]int{"kept": 0, "failed": 0}
	for _, p := range m.task.all() {
		s := p.status()
		vni := strconv.Itoa(s.vni)
		state := "kept"
		for _, err := range s.errs {
			if err != nil {
				state = "failed"
			}
		}
		states[state]++
		gauge(m.nodes, len(s.plan.Nodes), vni)
		endpoints := make(map[api.EndpointState]int)
		s.each(func(_ endpointAt, state api.EndpointState, _ string) { endpoints[state]++ })
		for _, state := range api.EndpointStates() {
			gauge(m.endpoints, endpoints[state], vni, string(state))
		}
		entries := map[string]int{"kept": 0, "pending": 0, "failed": 0}
		for _, e := range s.entries {
			switch {
			case e.Err == nil:
				entries["kept"]++
			case errors.Is(e.Err, reconcile.ErrPending):
				entries["pending"]++
			default:
				entries["failed"]++
			}
		}
		for state, n := range entries {
			gauge(m.entries, n, vni, state)
		}
		skipped := len(s.want.odd)
		if s.members != nil {
			skipped += len(s.members.Unread)
		}
		gauge(m.skipped, skipped, vni)
	}
	for state, n := range states {
		gauge(m.segments, n, state)
	}
}
