package cluster

import (
	"context"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (c Commands) peer() *cobra.Command {
	return term.Noun("peer", "How this node reaches the blocks of others", c.peerList())
}

func (c Commands) peerList() *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the peers of this node, and how they are reached",
		Long: `List the peers of this node, and how they are reached: direct, by routes through
an address on a subnet of this node; silent, the same, but nobody answers there;
pending or failed, where a route is not there yet; unreachable, where there is no
way. REASON says why.`,
		Example: "  underlayctl peer list --network pods",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				all, err := client.Peers(ctx, network)
				if err != nil {
					return err
				}
				return c.print(cmd, all, func(t *term.Table) {
					t.Row("NETWORK", "NODE", "STATE", "ADDRESS", "DEV", "PREFIXES", "REASON")
					for _, p := range all {
						t.Row(p.Network, who(&p.NodeName), string(p.State), address(p.Address), p.Dev, prefixes(p.Prefixes), p.Reason)
					}
				})
			})
		},
	}
	cmd.Flags().StringVar(&network, "network", "", "only those of the network `NAME`")
	return cmd
}

func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func prefixes(list []netip.Prefix) string {
	parts := make([]string, len(list))
	for i, p := range list {
		parts[i] = p.String()
	}
	return strings.Join(parts, ",")
}
