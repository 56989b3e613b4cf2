package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/book"
	"github.com/underlay-cni/underlay/pkg/cli/cluster"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (a *app) pool() *cobra.Command {
	c := term.Noun("pool", "Pools of addresses, of this node and of the cluster", a.poolList(), a.poolShow())
	c.AddCommand(a.cluster().Pool()...)
	return c
}

// Kinds of pools beside those of cluster pools, shared and routed.
const (
	kindLocal = "local"
	// kindCluster is a cluster pool of which the registry does not say more.
	kindCluster = "cluster"
)

// registryPatience is how long the pools of this node wait for those of the
// cluster.
const registryPatience = 3 * time.Second

// poolView is a pool with the counts of its addresses on this node.
type poolView struct {
	Name string `json:"name"`
	// Kind is local, shared or routed; cluster where the registry is not there
	// to say which.
	Kind   string `json:"kind"`
	UUID   string `json:"uuid,omitempty"`
	Tenant string `json:"tenant,omitempty"`
	// Known is false for a pool that a rebuilt ledger has only records of.
	Known      bool      `json:"known"`
	CoolDown   string    `json:"coolDown,omitempty"`
	Quarantine string    `json:"quarantine,omitempty"`
	Sticky     string    `json:"sticky,omitempty"`
	StickyFor  string    `json:"stickyFor,omitempty"`
	Sets       []setView `json:"sets"`
	// Document of a cluster pool, as pool update takes it.
	Document *record.Pool `json:"document,omitempty"`
}

// setView is a range set: of each an attachment gets one address.
type setView struct {
	Ranges []ipam.Range `json:"ranges"`
	ipam.Counts
	// Free addresses: neither held, nor resting, nor kept out of use, nor another
	// node's.
	Free uint64 `json:"free"`
	// Cluster counts, of a cluster pool, on all nodes.
	Cluster *api.ClusterCounts `json:"cluster,omitempty"`
}

func (a *app) poolList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the pools with the counts of their addresses, a line for each range set",
		Long: `List the pools with the counts of their addresses on this node, a line for each
range set. OTHER addresses are used by pools that overlap. LEASED is what all
nodes together have of a cluster pool; it and the kind come from the registry,
and without it, or without the agent, the list has what the ledger knows.`,
		Example: "  underlayctl pool list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			views, err := a.allPools(cmd)
			if err != nil {
				return err
			}
			return a.print(cmd, views, func(t *term.Table) {
				t.Row("NAME", "KIND", "RANGES", "USABLE", "HELD", "COOLING", "QUARANTINED", "RESERVED", "OTHER", "FREE", "LEASED")
				for _, p := range views {
					for _, s := range p.Sets {
						usable, free := "", ""
						if p.Known {
							usable, free = count(s.Usable), count(s.Free)
						}
						t.Row(p.Name, p.Kind, ranges(s.Ranges), usable, s.Held, s.Cooling, s.Quarantined, s.Reserved, s.Other, free, s.leased())
					}
				}
			})
		},
	}
}

func (a *app) poolShow() *cobra.Command {
	var kind string
	c := &cobra.Command{
		Use:   "show NAME",
		Short: "Show a pool's ranges, times and counts",
		Long: `Show a pool's ranges, times and counts. With -o json, of a cluster pool also the
document that pool update takes.`,
		Example: "  underlayctl pool show lan",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch kind {
			case "", kindLocal, "shared", "routed", kindCluster:
			default:
				return term.Misuse("--kind: %q is none of local, shared, routed, cluster", kind)
			}
			views, err := a.allPools(cmd)
			if err != nil {
				return err
			}
			views = slices.DeleteFunc(views, func(p poolView) bool { return p.Name != args[0] || !p.is(kind) })
			switch len(views) {
			case 0:
				return term.Hint(fmt.Errorf("the ledger knows no pool %q", args[0]), "a local pool is known from the first ADD on; see: underlayctl pool list")
			case 1:
				return a.print(cmd, views[0], views[0].people)
			}
			return term.Hint(fmt.Errorf("%d pools are called %q", len(views), args[0]), "choose one with --kind local or --kind cluster")
		},
	}
	c.Flags().StringVar(&kind, "kind", "", "only a pool of this `kind`: local, shared, routed, or cluster, which is not local")
	return c
}

// is reports whether the pool is of a kind that somebody asked for.
func (p poolView) is(kind string) bool {
	return kind == "" || kind == p.Kind || kind == kindCluster && p.UUID != ""
}

// allPools are those that the ledger knows and those of the cluster. What keeps
// the latter from being known is no error: people are told.
func (a *app) allPools(cmd *cobra.Command) (views []poolView, err error) {
	err = a.view(cmd.Context(), func(l book.Book) (err error) {
		views, err = pools(l)
		return err
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), registryPatience)
	defer cancel()
	client := api.NewClient(a.place().RunDir)
	defer client.Close()
	all, err := client.ClusterPools(ctx)
	switch used := slices.ContainsFunc(views, func(p poolView) bool { return p.UUID != "" }); {
	case err == nil:
		views = withCluster(views, all)
	case used || !errors.Is(err, api.ErrNoAgent) && !errors.Is(err, api.ErrNoRegistry) && !errors.Is(err, api.ErrNotFound):
		err = fmt.Errorf("of cluster pools this is what the ledger knows: %w", cluster.Advise(err, a.place().RunDir))
		term.Complain(cmd.ErrOrStderr(), err)
	}
	return views, nil
}

// withCluster adds what the registry says to what the ledger knows.
func withCluster(views []poolView, all []api.ClusterPool) []poolView {
	for _, c := range all {
		i := slices.IndexFunc(views, func(p poolView) bool { return p.UUID == c.Pool.UUID })
		if i < 0 {
			v := newView(c.Pool.IPAM())
			for _, set := range c.Pool.Sets {
				n := ipam.Counts{Usable: set.Size(), Elsewhere: set.Size()}
				v.Sets = append(v.Sets, setView{Ranges: set, Counts: n})
			}
			i, views = len(views), append(views, v)
		}
		views[i].Kind, views[i].Tenant, views[i].Document = c.Pool.Kind, c.Pool.Tenant, &c.Pool
		// The ledger may have the ranges from before an update.
		for j := range min(len(c.Sets), len(views[i].Sets)) {
			views[i].Sets[j].Cluster = &c.Sets[j]
		}
	}
	slices.SortStableFunc(views, byName)
	return views
}

func byName(a, b poolView) int { return strings.Compare(a.Name, b.Name) }

// leased says how much of a range set nodes have, as far as it is known.
func (s setView) leased() string {
	if s.Cluster == nil {
		return ""
	}
	return fmt.Sprintf("%s of %s", count(s.Cluster.Leased), count(s.Cluster.Usable))
}

func (p poolView) people(t *term.Table) {
	t.Field("Name", p.Name)
	t.Field("Kind", p.Kind)
	t.Field("UUID", p.UUID)
	t.Field("Tenant", p.Tenant)
	if p.Document != nil {
		t.Field("State", p.Document.State)
	}
	t.Field("Cool-down", p.CoolDown)
	t.Field("Quarantine", p.Quarantine)
	t.Field("Sticky", strings.TrimSpace(p.Sticky+" "+p.StickyFor))
	for i, s := range p.Sets {
		t.Line("")
		t.Field("Range set", i)
		for _, r := range s.Ranges {
			t.Field("Range", fmt.Sprintf("%s of %s", r.Interval, r.Subnet))
			if t.Field("Gateway", r.Gateway); r.BlockBits != 0 {
				t.Field("Gateway", fmt.Sprintf("the first usable address of each /%d block", r.BlockBits))
			}
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
		if p.UUID != "" {
			t.Field("Giving", s.Giving)
		}
		if p.UUID != "" && s.Usable < math.MaxInt64 {
			t.Field("Elsewhere", s.Elsewhere)
		}
		if p.Known {
			t.Field("Free", count(s.Free))
		}
		t.Field("Leased by all", s.leased())
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
		v := newView(p)
		for i, n := range counts {
			v.Sets = append(v.Sets, setView{Ranges: p.Sets[i], Counts: n, Free: free(n)})
		}
		views = append(views, v)
	}
	err = l.Records(func(r ipam.Record) error {
		i := slices.IndexFunc(views, func(p poolView) bool { return p.Name == r.Pool && p.UUID == r.PoolUUID })
		if i < 0 {
			i = len(views)
			views = append(views, poolView{Name: r.Pool, Kind: kindOf(r.PoolUUID), UUID: r.PoolUUID, Sets: []setView{{Ranges: []ipam.Range{}}}})
		}
		if !views[i].Known {
			views[i].Sets[0].add(r.State)
		}
		return nil
	})
	slices.SortStableFunc(views, byName)
	return views, err
}

// newView is what a pool says of itself.
func newView(p ipam.Pool) poolView {
	v := poolView{Name: p.Name, Kind: kindOf(p.UUID), UUID: p.UUID, Known: true, CoolDown: p.CoolDown.String(), Quarantine: p.Quarantine.String(), Sticky: string(p.Sticky)}
	if p.Sticky != ipam.NotSticky {
		v.StickyFor = p.StickyFor.String()
	}
	return v
}

func kindOf(uuid string) string {
	if uuid == "" {
		return kindLocal
	}
	return kindCluster
}

func (s *setView) add(state ipam.State) {
	switch state {
	case ipam.Held:
		s.Held++
	case ipam.Cooling:
		s.Cooling++
	case ipam.Quarantined:
		s.Quarantined++
	case ipam.Reserved, ipam.Lent:
		s.Reserved++
	}
}

func free(n ipam.Counts) uint64 {
	// Of a cluster pool the ledger takes Elsewhere from that same number.
	if n.Usable == math.MaxInt64 && n.Elsewhere == 0 {
		return n.Usable
	}
	return n.Usable - min(n.Usable, n.Held+n.Cooling+n.Quarantined+n.Reserved+n.Other+n.Giving+n.Elsewhere)
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
