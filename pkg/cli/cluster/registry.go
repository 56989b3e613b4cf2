package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (c Commands) registry() *cobra.Command {
	return term.Noun("registry", "Where the cluster keeps who leases what", c.registryRecovered(), c.registryStatus())
}

func (c Commands) registryStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show which cluster the registry is of, and what stands in its way",
		Long: `Show which cluster the registry is of, and what stands in its way: that it went
back, as one restored from a backup does; nodes that have not yet said what they
have; values that cannot be read, which are skipped.`,
		Example: "  underlayctl registry status",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				v, err := client.Cluster(ctx)
				if err != nil {
					return err
				}
				return c.print(cmd, v, func(t *term.Table) { status(t, v) })
			})
		},
	}
}

func status(t *term.Table, v api.Cluster) {
	id := v.ID
	switch unread := slices.ContainsFunc(v.Unread, func(u api.Unread) bool { return u.Key == record.ClusterKey }); {
	case unread:
		id = "unknown: its record cannot be read, and nothing changes hands"
	case id == "":
		id = "none: no node has opened it yet"
	}
	t.Field("Cluster", id)
	t.Field("Epoch", v.Epoch.Number)
	t.Field("Revision", v.Revision)
	if f := v.Frozen; f != nil {
		t.Field("Frozen", fmt.Sprintf("node %s reports: %s", f.Node, f.Reason))
		t.Field("Was at", fmt.Sprintf("epoch %d, revision %d", f.Epoch, f.Rev))
	}
	var waiting []string
	for _, n := range v.Waiting {
		waiting = append(waiting, who(&n))
	}
	t.Field("Waits for", strings.Join(waiting, ", "))
	t.Field("Unread", v.UnreadCount)
	if len(v.Unread) > 0 {
		t.Line("")
		t.Row("UNREAD", "REASON")
		for _, u := range v.Unread {
			t.Row(u.Key, u.Reason)
		}
	}
	if v.Frozen != nil {
		t.Line("")
		t.Line("Nothing changes hands until: underlayctl registry recovered")
	}
}

func (c Commands) registryRecovered() *cobra.Command {
	var sure bool
	cmd := &cobra.Command{
		Use:   "recovered",
		Short: "Go on with a registry that was restored or made anew",
		Long: `Go on with a registry that has gone back: restored from a backup, or made anew.
Nodes saw that, and stopped all change of hands. Say this when the registry is
as you want it. Then each node says what it has, and is believed; a node that is
no more has to be removed, since nothing changes hands before it has spoken.`,
		Example: "  underlayctl registry recovered --yes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !sure {
				err := term.Misuse("from now on the registry as it is counts, and what only the lost one knew is gone: networks, pools and quotas made since the backup")
				return term.Hint(err, "look at it with underlayctl registry status, pool list and network list, and then say --yes")
			}
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				v, err := client.Recover(ctx)
				if err != nil {
					return err
				}
				return c.print(cmd, v, func(t *term.Table) {
					t.Line("epoch %d has begun; waiting for %s to say what they have", v.Epoch.Number, term.Plural(len(v.Waiting), "node", "nodes"))
				})
			})
		},
	}
	cmd.Flags().BoolVar(&sure, "yes", false, "the registry is as it should be")
	return cmd
}
