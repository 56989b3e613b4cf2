package main

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/e2e/bench/peers"
	"github.com/underlay-cni/underlay/e2e/binaries"
)

func TestQuantile(t *testing.T) {
	tests := []struct {
		name   string
		values []time.Duration
		q      float64
		want   time.Duration
	}{
		{"one value", []time.Duration{7}, 0.95, 7},
		{"median of an odd number", []time.Duration{3, 1, 2}, 0.5, 2},
		{"median of an even number is the lower", []time.Duration{4, 1, 3, 2}, 0.5, 2},
		{"p95 of 20 leaves one out", []time.Duration{20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}, 0.95, 19},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := quantile(test.values, test.q); got != test.want {
				t.Errorf("quantile(%v) = %d, want %d", test.q, got, test.want)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	r := &Report{Sizes: []Size{{"macvlan", 4.6}}}
	r.declare(sectionOne, floor, oursIPAM)
	r.record(sectionOne, floor, "ADD", 10*time.Millisecond)
	r.record(sectionOne, oursIPAM, "ADD", 14*time.Millisecond)
	r.record(sectionOne, floor, "DEL", 10*time.Millisecond)
	r.record(sectionOne, oursIPAM, "DEL", 14*time.Millisecond)
	r.declare(sectionMany, refHostLocal, oursIPAM)
	for _, verb := range []string{"ADD", "DEL"} {
		r.record(sectionMany, refHostLocal, verb, time.Second)
		r.recordWhole(sectionMany, refHostLocal, verb, time.Second)
		r.record(sectionMany, oursIPAM, verb, 100*time.Millisecond)
		r.recordWhole(sectionMany, oursIPAM, verb, 250*time.Millisecond)
	}
	r.finish()

	type verdict struct {
		Measured float64
		Pass     bool
	}
	got := make(map[string]verdict)
	for _, b := range r.Budgets {
		got[b.What] = verdict{b.Measured, b.Pass}
	}
	want := map[string]verdict{
		"ADD with IPAM, one at a time: x floor":                           {1.4, true},
		"DEL with IPAM, one at a time: x floor":                           {1.4, false},
		"several at once, attachments a second: x reference + host-local": {4, true},
		"several at once, ADD: p95 x p50":                                 {1, true},
		"size of macvlan: MB":                                             {4.6, false},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("budgets (-want +got):\n%s", diff)
	}
}

// One round of the real thing: every variant attaches and detaches.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	if err := binaries.Ours(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if err := binaries.Package(t.Context(), dir, "./e2e/bench"); err != nil {
		t.Fatal(err)
	}
	var complaint strings.Builder
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "bench"), "-bin", dir, "-rounds", "1", "-run", "one|many|peers|path|ipvlan", "-json")
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bench: %v\n%s", err, &complaint)
	}
	var report Report
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]int)
	for _, s := range report.Series {
		if s.N > 0 && s.MedianMS > 0 {
			got[s.Section]++
		}
	}
	// 5 variants, of ipvlan 2; ADD and DEL.
	want := map[string]int{sectionOne: 10, sectionMany: 10, sectionIpvlan: 4}
	for _, row := range peers.Rows(false) {
		want[row.Section]++
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("series with results (-want +got):\n%s", diff)
	}
	if len(report.Ratios) != 2*7 { // of throughput and of round trips
		t.Errorf("ratios of pairs: %+v", report.Ratios)
	}
	for _, x := range report.Ratios {
		if x.Pairs < 6 || x.Low <= 0 || x.Low > x.Median || x.Median > x.High {
			t.Errorf("%+v", x)
		}
	}
	if report.Guest == "" || report.Guest == report.Machine.Kernel {
		t.Errorf("the guest's kernel is %q, the machine's %q", report.Guest, report.Machine.Kernel)
	}
	if len(report.Budgets) < 5+6+6+len(report.Sizes) {
		t.Errorf("%d budgets were judged", len(report.Budgets))
	}
}
