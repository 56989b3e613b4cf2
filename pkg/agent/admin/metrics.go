package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// metrics of the ledger, read when they are asked for.
type metrics struct {
	ledger Ledger

	serving, addresses, attachments, transactions, size, free *prometheus.Desc
}

func newMetrics(l Ledger) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("underlay_"+name, help, labels, nil)
	}
	return &metrics{
		ledger:       l,
		serving:      desc("serving", "1 if the agent has the ledger open and serves plugins."),
		addresses:    desc("addresses", "Addresses that are not free, by pool and state.", "pool", "state"),
		attachments:  desc("attachments", "Attachments on record, by network.", "network"),
		transactions: desc("ledger_transactions_total", "Durable transactions since the ledger was made."),
		size:         desc("ledger_bytes", "Size of the ledger's file."),
		free:         desc("ledger_free_bytes", "Of that, free."),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.serving, m.addresses, m.attachments, m.transactions, m.size, m.free} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	serving := 1.0
	if m.ledger.With(func(l *ledger.Ledger) error { return m.read(l, ch) }) != nil {
		serving = 0
	}
	gauge(m.serving, serving)
}

func (m *metrics) read(l *ledger.Ledger, ch chan<- prometheus.Metric) error {
	addresses := map[[2]string]int{}
	err := l.Records(func(r ipam.Record) error {
		addresses[[2]string{r.Pool, string(r.State)}]++
		return nil
	})
	if err != nil {
		return err
	}
	attachments := map[string]int{}
	err = l.Attachments(func(a ipam.AttachmentRecord) error {
		attachments[a.Attachment.Network]++
		return nil
	})
	if err != nil {
		return err
	}
	info, err := l.Info()
	if err != nil {
		return err
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for k, n := range addresses {
		gauge(m.addresses, float64(n), k[0], k[1])
	}
	for network, n := range attachments {
		gauge(m.attachments, float64(n), network)
	}
	gauge(m.size, float64(info.Size))
	gauge(m.free, float64(info.FreeBytes))
	ch <- prometheus.MustNewConstMetric(m.transactions, prometheus.CounterValue, float64(info.Sequence))
	return nil
}
