package cli

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/cli/book"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (a *app) pool() *cobra.Command {
	return term.Noun("pool", "Pools of addresses, as they were last used", a.poolList(), a.poolShow())
}

// poolView is a pool with the counts of its addresses.
type poolView struct {
	Name string `json:"name"`
	// Known is false for a pool that a rebuilt ledger has only records of.
	Known      bool      `json:"known"`
	CoolDown   string    `json:"coolDown,omitempty"`
	Quarantine string    `json:"quarantine,omitempty"`
	Sticky     string    `json:"sticky,omitempty"`
	StickyFor  string    `json:"stickyFor,omitempty"`
	Sets       []setView `json:"sets"`
}

// setView is a range set: of each an attachment gets one address.
type setView struct {
	Ranges []ipam.Range `json:"ranges"`
	ipam.Counts
	// Free addresses: neither held, nor resting, nor kept out of use.
	Free uint64 `json:"free"`
}

func (a *app) poolList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the pools with the counts of their addresses, a line for each range set",
		Long: `List the pools with the counts of their addresses, a line for each range set.
OTHER addresses are used by pools that overlap.`,
		Example: "  underlayctl pool list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var views []poolView
			err := a.view(cmd.Context(), func(l book.Book) (err error) {
				views, err = pools(l)
				return err
			})
			if err != nil {
				return err
			}
			return a.print(cmd, views, func(t *term.Table) {
				t.Row("NAME", "RANGES", "USABLE", "HELD", "COOLING", "QUARANTINED", "RESERVED", "OTHER", "FREE")
				for _, p := range views {
					for _, s := range p.Sets {
						usable, free := "", ""
						if p.Known {
							usable, free = count(s.Usable), count(s.Free)
						}
						t.Row(p.Name, ranges(s.Ranges), usable, s.Held, s.Cooling, s.Quarantined, s.Reserved, s.Other, free)
					}
				}
			})
		},
	}
}

func (a *app) poolShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a pool's ranges, times and counts",
		Example: "  underlayctl pool show lan",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var views []poolView
			err := a.view(cmd.Context(), func(l book.Book) (err error) {
				views, err = pools(l)
				return err
			})
			if err != nil {
				return err
			}
			i := slices.IndexFunc(views, func(p poolView) bool { return p.Name == args[0] })
			if i < 0 {
				return term.Hint(fmt.Errorf("the ledger knows no pool %q", args[0]), "a pool is known from the first ADD on; see: underlayctl pool list")
			}
			return a.print(cmd, views[i], views[i].people)
		},
	}
}

func (p poolView) people(t *term.Table) {
	t.Field("Name", p.Name)
	t.Field("Cool-down", p.CoolDown)
	t.Field("Quarantine", p.Quarantine)
	t.Field("Sticky", strings.TrimSpace(p.Sticky+" "+p.StickyFor))
	for i, s := range p.Sets {
		t.Line("")
		t.Field("Range set", i)
		for _, r := range s.Ranges {
			t.Field("Range", fmt.Sprintf("%s of %s", r.Interval, r.Subnet))
			t.Field("Gateway", r.Gateway)
			t.Field("Left out", join(r.Exclude, ", "))
		}
		if p.Known {
			t.Field("Usable", count(s.Usable))
		}
		t.Field("Held", s.Held)
		t.Field("Cooling", s.Cooling)
		t.Field("Quarantined", s.Quarantined)
		t.Field("Reserved", s.Reserved)
		t.Field("Other", s.Other)
		if p.Known {
			t.Field("Free", count(s.Free))
		}
	}
}

// pools returns all pools, by name; those of which there are only records,
// after a rebuild, with one range set that has no ranges.
func pools(l book.Book) ([]poolView, error) {
	known, err := l.Pools()
	if err != nil {
		return nil, err
	}
	views := []poolView{}
	for _, p := range known {
		counts, err := l.Counts(p)
		if err != nil {
			return nil, err
		}
		v := poolView{Name: p.Name, Known: true, CoolDown: p.CoolDown.String(), Quarantine: p.Quarantine.String(), Sticky: string(p.Sticky)}
		if p.Sticky != ipam.NotSticky {
			v.StickyFor = p.StickyFor.String()
		}
		for i, n := range counts {
			v.Sets = append(v.Sets, setView{Ranges: p.Sets[i], Counts: n, Free: free(n)})
		}
		views = append(views, v)
	}
	err = l.Records(func(r ipam.Record) error {
		i := slices.IndexFunc(views, func(p poolView) bool { return p.Name == r.Pool })
		if i < 0 {
			i = len(views)
			views = append(views, poolView{Name: r.Pool, Sets: []setView{{Ranges: []ipam.Range{}}}})
		}
		if !views[i].Known {
			views[i].Sets[0].add(r.State)
		}
		return nil
	})
	slices.SortFunc(views, func(a, b poolView) int { return strings.Compare(a.Name, b.Name) })
	return views, err
}

func (s *setView) add(state ipam.State) {
	switch state {
	case ipam.Held:
		s.Held++
	case ipam.Cooling:
		s.Cooling++
	case ipam.Quarantined:
		s.Quarantined++
	case ipam.Reserved:
		s.Reserved++
	}
}

func free(n ipam.Counts) uint64 {
	if n.Usable == math.MaxInt64 {
		return n.Usable
	}
	return n.Usable - min(n.Usable, n.Held+n.Cooling+n.Quarantined+n.Reserved+n.Other)
}

// count prints a number of addresses, of which the domain counts no more than
// fit an int64.
func count(n uint64) string {
	if n == math.MaxInt64 {
		return ">=2^63"
	}
	return strconv.FormatUint(n, 10)
}

// ranges says, in short, which addresses a range set is.
func ranges(set []ipam.Range) string {
	parts := make([]string, len(set))
	for i, r := range set {
		parts[i] = fmt.Sprintf("%s/%d", r.Interval, r.Subnet.Bits())
	}
	return strings.Join(parts, ",")
}
