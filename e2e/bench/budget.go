package main

import "fmt"

// Budget is a promise and what became of it.
type Budget struct {
	What     string  `json:"what"`
	Limit    float64 `json:"limit"`
	AtLeast  bool    `json:"atLeast"` // the limit is a minimum
	Measured float64 `json:"measured"`
	Pass     bool    `json:"pass"`
}

// judge compares what was measured with the budgets; sections that did not run
// have none.
func (r *Report) judge() []Budget {
	var (
		median    = func(s *Series) float64 { return s.MedianMS }
		p95       = func(s *Series) float64 { return s.P95MS }
		perSecond = func(s *Series) float64 { return s.PerSecond }
		seconds   = func(s *Series) float64 { return quantile(s.whole, 0.5).Seconds() }
	)
	var budgets []Budget
	judge := func(what string, limit float64, atLeast bool, measured float64) {
		budgets = append(budgets, newBudget(what, limit, atLeast, measured))
	}

	for _, ratio := range []struct {
		what           string
		limit          float64
		atLeast        bool
		section, verb  string
		over, under    string // variants
		above, beneath func(*Series) float64
	}{
		{"ADD with IPAM, one at a time: x floor", 1.4, false, sectionOne, "ADD", oursIPAM, floor, median, median},
		{"ADD with IPAM, one at a time: x reference + host-local", 0.42, false, sectionOne, "ADD", oursIPAM, refHostLocal, median, median},
		{"DEL with IPAM, one at a time: x floor", 1.35, false, sectionOne, "DEL", oursIPAM, floor, median, median},
		{"several at once, attachments a second: x reference + host-local", 2.7, true, sectionMany, "ADD", oursIPAM, refHostLocal, perSecond, perSecond},
		{"several at once, ADD: p95 x p50", 1.6, false, sectionMany, "ADD", oursIPAM, oursIPAM, p95, median},
		{"IPv6 with a gateway, ADD: x IPv4", 1.2, false, sectionIPv6, "ADD", oursIPAM + ", IPv6", oursIPAM + ", IPv4", median, median},
		{"IPAM alone, ADD at 60,000 held: x none held", 1.2, false, sectionHeld, "ADD", heldName(heldOurs, 60000), heldName(heldOurs, 0), median, median},
	} {
		over, under := r.find(ratio.section, ratio.over, ratio.verb), r.find(ratio.section, ratio.under, ratio.verb)
		if over != nil && under != nil {
			judge(ratio.what, ratio.limit, ratio.atLeast, ratio.above(over)/ratio.beneath(under))
		}
	}

	r.judgeAgent(judge)
	r.judgeNetwork(judge)
	r.judgeCrowd(judge)
	with, without := r.find(sectionScale, oursIPAM, "ADD"), r.find(sectionScale, oursNoIPAM, "ADD")
	if with != nil && without != nil {
		judge(sectionScale+": seconds in all", 30, false, seconds(with))
		judge(sectionScale+": seconds of IPAM", 5, false, seconds(with)-seconds(without))
	}
	return append(budgets, r.judgeSizes()...)
}

func (r *Report) judgeSizes() (budgets []Budget) {
	for _, size := range r.Sizes {
		budgets = append(budgets, newBudget(fmt.Sprintf("size of %s: MB", size.Program), 4.5, false, size.MB))
	}
	return budgets
}

func newBudget(what string, limit float64, atLeast bool, measured float64) Budget {
	pass := measured <= limit
	if atLeast {
		pass = measured >= limit
	}
	return Budget{what, limit, atLeast, measured, pass}
}
