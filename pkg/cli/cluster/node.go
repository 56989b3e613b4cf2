package cluster

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (c Commands) node() *cobra.Command {
	return term.Noun("node", "Nodes of the cluster", c.nodeList(), c.nodeRemove(), c.nodeShow())
}

// state of a node, in a word.
func state(n api.ClusterNode) string {
	switch {
	case n.Removed != nil:
		return "removed"
	case n.Alive:
		return "alive"
	}
	return "silent"
}

func (c Commands) nodeList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the nodes, those that were removed too",
		Long: `List the nodes, those that were removed too. A silent node is one whose agent has
no session: it keeps what it leases. REST is how long the addresses of a node
that was removed stay out of use.`,
		Example: "  underlayctl node list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				all, err := client.ClusterNodes(ctx)
				if err != nil {
					return err
				}
				return c.print(cmd, all, func(t *term.Table) {
					t.Row("NAME", "NODE", "STATE", "LEASED", "ADDRESSES", "REST")
					for _, n := range all {
						rest := ""
						if n.Removed != nil {
							rest = n.Removed.Rest.String()
						}
						t.Row(n.Name, n.Node, state(n), n.Leased, addresses(n.Addresses), rest)
					}
				})
			})
		},
	}
}

func (c Commands) nodeShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show NODE",
		Short:   "Show a node, by name or UUID, and what it leases",
		Example: "  underlayctl node show n1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				n, err := client.ClusterNode(ctx, args[0])
				if err != nil {
					return err
				}
				return c.print(cmd, n, func(t *term.Table) { people(t, n) })
			})
		},
	}
}

func people(t *term.Table, n api.ClusterNode) {
	t.Field("Name", n.Name)
	t.Field("Node", n.Node)
	t.Field("State", state(n))
	if n.Removed != nil {
		t.Field("Removed", n.Removed.At)
		t.Field("Rest", n.Removed.Rest)
	}
	t.Field("Machine", n.Machine)
	t.Field("Addresses", addresses(n.Addresses))
	t.Field("Asserted epoch", n.Asserted)
	t.Field("Leased", n.Leased)
	if len(n.Pools) == 0 {
		return
	}
	t.Line("")
	t.Row("POOL", "LEASED")
	for _, p := range n.Pools {
		name := p.Pool
		if name == "" {
			name = p.PoolUUID
		}
		t.Row(name, p.Leased)
	}
}

func addresses(list []netip.Addr) string {
	parts := make([]string, len(list))
	for i, a := range list {
		parts[i] = a.String()
	}
	return strings.Join(parts, ",")
}

// off is the flag by which an operator answers for what no program can see.
const off = "yes-it-is-off"

func (c Commands) nodeRemove() *cobra.Command {
	var rest time.Duration
	var sure bool
	cmd := &cobra.Command{
		Use:   "remove NODE",
		Short: "Give what a dead node leases to the others, for good",
		Long: `Give the addresses of a node that is dead, by name or UUID, to the others when
they have rested. Nothing can tell a node that is off from one that is cut off:
if its containers run on, others get the same addresses. So switch it off, or
make sure that it is, and say so with --` + off + `.

The node never comes back as what it was: its ledger gives out nothing more
from cluster pools, and the machine joins again with a new one.`,
		Example: "  underlayctl node remove n1 --rest 30m --" + off,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if rest < 0 {
				return term.Misuse("--rest: %s is negative", rest)
			}
			if !sure {
				err := term.Misuse("removing node %q gives its addresses to others, and containers that run on it would share theirs: nobody but you can tell that it is off", args[0])
				return term.Hint(err, "switch it off, and then say --%s", off)
			}
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				n, err := client.RemoveNode(ctx, args[0], rest)
				if errors.Is(err, api.ErrConflict) {
					return term.Hint(err, "see: underlayctl node list")
				}
				if err != nil {
					return err
				}
				return c.print(cmd, n, func(t *term.Table) {
					t.Line("removed node %s: others get its %s when they have rested for %s",
						who(&n.NodeName), term.Plural(n.Leased, "address", "addresses"), n.Removed.Rest)
				})
			})
		},
	}
	cmd.Flags().DurationVar(&rest, "rest", 10*time.Minute, "`duration` for which its addresses stay out of use")
	cmd.Flags().BoolVar(&sure, off, false, "the node is off, and stays so")
	return cmd
}
