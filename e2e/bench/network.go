package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/e2e/bench/path"
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

// judgeNetwork compares what was measured with the budgets of peers and of the
// way to them.
func (r *Report) judgeNetwork(judge func(what string, limit float64, atLeast bool, measured float64)) {
	if s := r.find(peers.Routes, peers.Ours, peers.All); s != nil {
		judge("5,000 peers from cold: seconds until their routes are there", 1, false, s.MedianMS/1000)
		bad := r.find(peers.Routes, peers.Ours, peers.AFifthBad)
		judge("5,000 peers from cold, 1 in 5 bad: x all good", 1.2, false, bad.MedianMS/s.MedianMS)
	}
	if s := r.find(peers.Overlay, peers.Ours, peers.All); s != nil {
		judge("5,000 peers from cold by VXLAN: seconds until their 15,000 objects are there", 0.6, false, s.MedianMS/1000)
	}
	if s := r.find(peers.Tenant, peers.Ours, peers.Endpoints); s != nil {
		judge("5,000 endpoints of a segment from cold: seconds until their 15,000 entries are there", 0.6, false, s.MedianMS/1000)
	}
	for _, back := range []struct{ section, what string }{
		{peers.Routes, peers.RouteBack}, {peers.Overlay, peers.NeighBack}, {peers.Overlay, peers.FDBBack},
	} {
		if s := r.find(back.section, peers.Ours, back.what); s != nil {
			judge(back.what+": seconds until it is back, the longest", 1, false, quantile(s.times, 1).Seconds())
		}
	}
	for _, ratio := range r.Ratios {
		if ratio.limit > 0 {
			judge(ratio.What+", lower bound", ratio.limit, true, ratio.Low)
		}
	}
}

// Ratio is how two things compare that were measured in pairs.
type Ratio struct {
	Section string  `json:"section"`
	What    string  `json:"what"`
	Pairs   int     `json:"pairs"`
	Median  float64 `json:"median"`
	// Low and High are an interval of 95 % of the median.
	Low  float64 `json:"low"`
	High float64 `json:"high"`

	limit float64 // budget of Low; 0 is none
}

// path measures what way packets go.
func (b *bench) path(ctx context.Context) error {
	samples := make(map[string][]path.Sample)
	err := path.Measure(ctx, path.Config{
		Bin: b.bin, Reference: referenceDir(b.scratch),
		Rounds: max(6, b.rounds/12),
		Record: func(variant string, s path.Sample) { samples[variant] = append(samples[variant], s) },
	})
	if err != nil {
		return err
	}
	gigabits := func(s path.Sample) float64 { return s.Gigabits }
	// The other way round, so that more is better of both.
	trips := func(s path.Sample) float64 { return 1 / s.RoundTrip.Seconds() }
	for _, variant := range path.Variants() {
		of := samples[variant]
		b.report.Figures = append(b.report.Figures,
			Figure{path.Section, "Gbit/s, " + variant, middle(of, gigabits)},
			Figure{path.Section, "µs a round trip, " + variant, 1e6 / middle(of, trips)})
	}
	for _, pair := range []struct {
		over, under string
		limit       float64
	}{
		{path.Ours, path.ByHand, 0.95},
		{path.Ours, path.Reference, 0.95},
		{path.OursBridge, path.Reference, 0.95},
		{path.OursAlone, path.ByHand, 0},
		{path.Reference, path.ByHand, 0},
		{path.OursOverlay, path.OverlayByHand, 0.95},
		{path.OverlayByHand, path.ByHand, 0},
	} {
		for _, value := range []struct {
			name string
			of   func(path.Sample) float64
		}{{"throughput", gigabits}, {"round trips a second", trips}} {
			got, err := path.Compare(each(samples[pair.over], value.of), each(samples[pair.under], value.of))
			if err != nil {
				return err
			}
			b.report.Ratios = append(b.report.Ratios, Ratio{
				Section: path.Section, What: fmt.Sprintf("%s: %s x %s", value.name, pair.over, pair.under),
				Pairs: got.Pairs, Median: got.Median, Low: got.Low, High: got.High, limit: pair.limit,
			})
		}
	}
	return nil
}

func each(samples []path.Sample, of func(path.Sample) float64) (values []float64) {
	for _, s := range samples {
		values = append(values, of(s))
	}
	return values
}

// middle is the median, the lower of two.
func middle(samples []path.Sample, of func(path.Sample) float64) float64 {
	values := each(samples, of)
	slices.Sort(values)
	return values[(len(values)-1)/2]
}
