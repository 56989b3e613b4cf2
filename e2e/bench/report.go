package main

import (
	"bufio"
	"debug/buildinfo"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// Sections of the report.
const (
	sectionOne   = "macvlan, one at a time"
	sectionMany  = "macvlan, several at once"
	sectionIPv6  = "macvlan, IPv6 with a gateway"
	sectionHeld  = "IPAM alone, addresses of a /16 held"
	sectionScale = "128 pods x 16 networks"
	// in a guest
	sectionIpvlan = "ipvlan l2, one at a time, in a guest"
)

// Report is what one run found.
type Report struct {
	Machine Machine   `json:"machine"`
	Guest   string    `json:"guest,omitempty"` // version of its kernel, if there was one
	Workers int       `json:"workers"`         // where several are at once
	Series  []*Series `json:"series"`
	Figures []Figure  `json:"figures,omitempty"`
	Ratios  []Ratio   `json:"ratios,omitempty"`
	Sizes   []Size    `json:"sizes"`
	Budgets []Budget  `json:"budgets"`
}

// Machine is where the numbers come from.
type Machine struct {
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"` // of our binaries
}

// Series is one verb of one variant.
type Series struct {
	Section   string  `json:"section"`
	Variant   string  `json:"variant"`
	Verb      string  `json:"verb"`
	N         int     `json:"n"`
	MedianMS  float64 `json:"medianMs"`
	P95MS     float64 `json:"p95Ms"`
	PerSecond float64 `json:"perSecond,omitempty"` // several at once: calls a second, median of the rounds

	times []time.Duration // each call
	whole []time.Duration // each round, from its first call to its last
}

// Figure is one number that a section found.
type Figure struct {
	Section string  `json:"section"`
	What    string  `json:"what"` // with the unit
	Value   float64 `json:"value"`
}

// Size is a binary of ours.
type Size struct {
	Program string  `json:"program"`
	MB      float64 `json:"mb"` // 10^6 bytes
}

func newReport(workers int) (*Report, error) {
	r := &Report{Machine: Machine{CPU: "unknown", CPUs: runtime.NumCPU()}, Workers: workers}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, err
	}
	r.Machine.Kernel = unix.ByteSliceToString(name.Release[:])
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
				r.Machine.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	return r, nil
}

// weigh looks at our binaries.
func (r *Report) weigh(bin string) error {
	for _, program := range []string{"macvlan", "ipvlan", "underlay"} {
		path := filepath.Join(bin, program)
		file, err := os.Stat(path)
		if err != nil {
			return err
		}
		r.Sizes = append(r.Sizes, Size{program, float64(file.Size()) / 1e6})
		build, err := buildinfo.ReadFile(path)
		if err != nil {
			return err
		}
		r.Machine.Go = build.GoVersion
	}
	return nil
}

func (r *Report) find(section, variant, verb string) *Series {
	i := slices.IndexFunc(r.Series, func(s *Series) bool {
		return s.Section == section && s.Variant == variant && s.Verb == verb
	})
	if i < 0 {
		return nil
	}
	return r.Series[i]
}

// declare makes the series of a section, in the order in which they are shown;
// the first variant is what the others are compared with.
func (r *Report) declare(section string, variants ...string) {
	for _, verb := range []string{"ADD", "DEL"} {
		for _, variant := range variants {
			r.Series = append(r.Series, &Series{Section: section, Variant: variant, Verb: verb})
		}
	}
}

// record adds calls to a declared series.
func (r *Report) record(section, variant, verb string, took ...time.Duration) {
	s := r.find(section, variant, verb)
	s.times = append(s.times, took...)
}

// recordWhole adds the time that a round of recorded calls took together.
func (r *Report) recordWhole(section, variant, verb string, took time.Duration) {
	s := r.find(section, variant, verb)
	s.whole = append(s.whole, took)
}

// finish computes the statistics and judges the budgets.
func (r *Report) finish() {
	for _, s := range r.Series {
		s.N = len(s.times)
		s.MedianMS = milliseconds(quantile(s.times, 0.5))
		s.P95MS = milliseconds(quantile(s.times, 0.95))
		if len(s.whole) > 0 {
			calls := float64(s.N) / float64(len(s.whole))
			s.PerSecond = calls / quantile(s.whole, 0.5).Seconds()
		}
	}
	r.Budgets = r.judge()
}

// quantile is the value at or below which the share q of the values lies
// (nearest rank). It sorts the values.
func quantile(values []time.Duration, q float64) time.Duration {
	slices.Sort(values)
	rank := int(math.Ceil(q * float64(len(values))))
	return values[max(rank, 1)-1]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// print writes the report as tables.
func (r *Report) print(out io.Writer) error {
	buffered := bufio.NewWriter(out)
	fmt.Fprintf(buffered, "%d x %s, Linux %s, %s; several at once: %d\n",
		r.Machine.CPUs, r.Machine.CPU, r.Machine.Kernel, r.Machine.Go, r.Workers)
	if r.Guest != "" {
		fmt.Fprintf(buffered, "in a guest: Linux %s\n", r.Guest)
	}
	table := tabwriter.NewWriter(buffered, 0, 0, 2, ' ', tabwriter.AlignRight)
	var section string
	for _, s := range r.Series {
		if s.Section != section {
			section = s.Section
			table.Flush()
			fmt.Fprintf(buffered, "\n%s (ratios to %q)\n", section, r.base(s).Variant)
			fmt.Fprint(table, "verb\tn\tmedian ms\tp95 ms\tratio\tper second\t  variant\n")
		}
		rate := ""
		if s.PerSecond > 0 {
			rate = fmt.Sprintf("%.0f", s.PerSecond)
		}
		fmt.Fprintf(table, "%s\t%d\t%.1f\t%.1f\t%.2f\t%s\t  %s\n",
			s.Verb, s.N, s.MedianMS, s.P95MS, s.MedianMS/r.base(s).MedianMS, rate, s.Variant)
	}
	table.Flush()
	for i, f := range r.Figures {
		if i == 0 || r.Figures[i-1].Section != f.Section {
			table.Flush()
			fmt.Fprintf(buffered, "\n%s\n", f.Section)
		}
		fmt.Fprintf(table, "%.2f\t  %s\n", f.Value, f.What)
	}
	table.Flush()
	for i, x := range r.Ratios {
		if i == 0 || r.Ratios[i-1].Section != x.Section {
			table.Flush()
			fmt.Fprintf(buffered, "\n%s: ratios of pairs\n", x.Section)
			fmt.Fprint(table, "median\t95 % interval\tpairs\t  what\n")
		}
		fmt.Fprintf(table, "%.3f\t%.3f to %.3f\t%d\t  %s\n", x.Median, x.Low, x.High, x.Pairs, x.What)
	}
	table.Flush()
	fmt.Fprint(buffered, "\nbudgets\n")
	fmt.Fprint(table, "measured\tbudget\t\t  what\n")
	for _, b := range r.Budgets {
		verdict := "pass"
		if !b.Pass {
			verdict = "FAIL"
		}
		sign := "<="
		if b.AtLeast {
			sign = ">="
		}
		fmt.Fprintf(table, "%.2f\t%s %.2f\t%s\t  %s\n", b.Measured, sign, b.Limit, verdict, b.What)
	}
	table.Flush()
	return buffered.Flush()
}

// base is the first variant of a section, to which the others are compared.
func (r *Report) base(of *Series) *Series {
	i := slices.IndexFunc(r.Series, func(s *Series) bool { return s.Section == of.Section && s.Verb == of.Verb })
	return r.Series[i]
}
