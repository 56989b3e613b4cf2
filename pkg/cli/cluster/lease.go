package cluster

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (c Commands) lease() *cobra.Command {
	return term.Noun("lease", "Which node has which block of a pool", c.leaseList())
}

func (c Commands) leaseList() *cobra.Command {
	var f api.LeaseFilter
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the blocks of which nodes have something",
		Long: `List the blocks of which nodes have something. Of the addresses of a block, OWNED
belong to its owner, OTHERS to other nodes, and PARKED wait for a sticky owner.
GIVEN are those that do not follow the owner; -o json lists all of them.
A block that this node has LENT is out of use here: whoever reads that file gives
out its addresses.`,
		Example: "  underlayctl lease list --pool pods --node n1",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				all, err := client.Leases(ctx, f)
				if err != nil {
					return err
				}
				return c.print(cmd, all, func(t *term.Table) {
					t.Row("POOL", "BLOCK", "OWNER", "NODE", "OWNED", "OTHERS", "PARKED", "GIVEN", "LENT TO")
					for _, l := range all {
						pool, owner, uuid := l.Pool, "", ""
						if pool == "" {
							pool = l.PoolUUID
						}
						if l.Owner != nil {
							owner, uuid = l.Owner.Name, l.Owner.Node
						}
						t.Row(pool, l.CIDR, owner, uuid, l.Owned, l.Others, l.Parked, given(l.Given), l.Lent)
					}
				})
			})
		},
	}
	cmd.Flags().StringVar(&f.Pool, "pool", "", "only blocks of this `pool`")
	cmd.Flags().StringVar(&f.Node, "node", "", "only blocks of which this `node`, by name or UUID, has something")
	return cmd
}

// given says, in short, to whom addresses went.
func given(list []api.Given) string {
	const shown = 3
	var parts []string
	for i, g := range list {
		switch {
		case i == shown:
			parts = append(parts, fmt.Sprintf("and %d more", len(list)-shown))
			return strings.Join(parts, ", ")
		case g.Node != nil:
			parts = append(parts, fmt.Sprintf("%s to %s", g.Address, who(g.Node)))
		case g.Key != "":
			parts = append(parts, fmt.Sprintf("%s for %s", g.Address, g.Key))
		default:
			parts = append(parts, fmt.Sprintf("%s to anybody", g.Address))
		}
	}
	return strings.Join(parts, ", ")
}
