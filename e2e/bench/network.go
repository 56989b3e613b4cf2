package main

import (
	"context"
	"time"

	"github.com/underlay-cni/underlay/e2e/bench/peers"
)

// peers measures what leads to many peers.
func (b *bench) peers(ctx context.Context) error {
	for _, row := range peers.Rows(b.scale) {
		b.report.Series = append(b.report.Series, &Series{Section: row.Section, Variant: row.Variant, Verb: row.What})
	}
	return peers.Measure(ctx, peers.Config{
		Namespace: b.stage.namespace,
		Rounds:    max(1, b.rounds/24),
		Full:      b.scale,
		Record: func(row peers.Row, took time.Duration) {
			b.report.record(row.Section, row.Variant, row.What, took)
		},
	})
}

// judgeNetwork compares what was measured with the budgets of peers.
func (r *Report) judgeNetwork(judge func(what string, limit float64, atLeast bool, measured float64)) {
	if s := r.find(peers.Routes, peers.Ours, peers.All); s != nil {
		judge("5,000 peers from cold: seconds until their routes are there", 1, false, s.MedianMS/1000)
		bad := r.find(peers.Routes, peers.Ours, peers.AFifthBad)
		judge("5,000 peers from cold, 1 in 5 bad: x all good", 1.2, false, bad.MedianMS/s.MedianMS)
	}
	if s := r.find(peers.Overlay, peers.Ours, peers.All); s != nil {
		judge("5,000 peers from cold by VXLAN: seconds until their 15,000 objects are there", 0.6, false, s.MedianMS/1000)
	}
	for _, back := range []struct{ section, what string }{
		{peers.Routes, peers.RouteBack}, {peers.Overlay, peers.NeighBack}, {peers.Overlay, peers.FDBBack},
	} {
		if s := r.find(back.section, peers.Ours, back.what); s != nil {
			judge(back.what+": seconds until it is back, the longest", 1, false, quantile(s.times, 1).Seconds())
		}
	}
}
