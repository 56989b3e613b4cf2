package path

import (
	"errors"
	"slices"
)

// Ratio is the median of the ratios of pairs, and an interval in which the true
// median lies with a probability of at least 95 %.
type Ratio struct {
	Pairs             int
	Median, Low, High float64
}

// fewest pairs of which the smallest and the largest are such an interval.
const fewest = 6

// Compare takes pairs, one of each list. Nothing is assumed of how the ratios are
// spread: each lies below the true median with a probability of one half, so how
// many do is binomial, and the interval goes from one of the sorted ratios to
// another (the order statistics of the sign test).
func Compare(over, under []float64) (Ratio, error) {
	n := len(over)
	if n != len(under) || n < fewest {
		return Ratio{}, errors.New("too few pairs for an interval of 95 %")
	}
	ratios := make([]float64, n)
	for i := range ratios {
		ratios[i] = over[i] / under[i]
	}
	slices.Sort(ratios)
	k := rank(n)
	return Ratio{n, (ratios[(n-1)/2] + ratios[n/2]) / 2, ratios[k], ratios[n-1-k]}, nil
}

// rank is the largest k for which no more than k of n tosses of a coin are heads
// with a probability of at most 2.5 %: as many sorted values may be left out on
// either side.
func rank(n int) int {
	term := 1.0 // of the binomial distribution
	for range n {
		term /= 2
	}
	sum := 0.0
	for k := range n {
		if sum += term; sum > 0.025 {
			return k - 1
		}
		term *= float64(n-k) / float64(k+1)
	}
	return 0
}
