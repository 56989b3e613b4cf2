package path

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCompare(t *testing.T) {
	ones := func(n int) (out []float64) {
		for range n {
			out = append(out, 1)
		}
		return out
	}
	upTo := func(n int) (out []float64) {
		for i := range n {
			out = append(out, float64(i+1))
		}
		rand.Shuffle(n, func(i, j int) { out[i], out[j] = out[j], out[i] })
		return out
	}
	for _, tt := range []struct {
		pairs int
		want  Ratio
	}{
		// The ranks are those of tables of the sign test.
		{6, Ratio{6, 3.5, 1, 6}},
		{9, Ratio{9, 5, 2, 8}},
		{20, Ratio{20, 10.5, 6, 15}},
		{25, Ratio{25, 13, 8, 18}},
		{100, Ratio{100, 50.5, 40, 61}},
	} {
		got, err := Compare(upTo(tt.pairs), ones(tt.pairs))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%d pairs (-want +got):\n%s", tt.pairs, diff)
		}
	}
	for _, n := range []int{0, 5} {
		if got, err := Compare(ones(n), ones(n)); err == nil {
			t.Errorf("%d pairs give %+v", n, got)
		}
	}
	if _, err := Compare(ones(7), ones(8)); err == nil {
		t.Error("lists of different lengths are no pairs")
	}
}

// The interval holds the true median at least as often as it says, however the
// ratios are spread.
func TestCoverage(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, spread := range []struct {
		name   string
		value  func() float64
		median float64
	}{
		{"even", random.Float64, 0.5},
		{"skewed", random.ExpFloat64, math.Ln2},
	} {
		const runs = 4000
		held := 0
		for range runs {
			values, ones := make([]float64, 20), make([]float64, 20)
			for i := range values {
				values[i], ones[i] = spread.value(), 1
			}
			r, err := Compare(values, ones)
			if err != nil {
				t.Fatal(err)
			}
			if r.Low <= spread.median && spread.median <= r.High {
				held++
			}
		}
		if share := float64(held) / runs; share < 0.95 || share > 0.97 {
			t.Errorf("%s: %.3f of the intervals hold the median, want 0.959", spread.name, share)
		}
	}
}

func TestOrBetter(t *testing.T) {
	var s Sample
	for _, o := range []Sample{{Gigabits: 2, RoundTrip: 9}, {Gigabits: 3, RoundTrip: 12}, {Gigabits: 1, RoundTrip: 7}} {
		s = s.orBetter(o)
	}
	if want := (Sample{Gigabits: 3, RoundTrip: 7}); s != want {
		t.Errorf("best of three: %+v, want %+v", s, want)
	}
}
