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
an address on a subnet of this node; vxlan, through the network's VXLAN device, to
the VTEP at ADDRESS; silent, directly, but nobody answers there; pending or failed,
where a route is not there yet; unreachable, where there is no way. REASON says why
a peer is not direct, where it might be.`,
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

func (c Commands) networkStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how far this node is with what networks need of it",
		Long: `Show how far this node is with what networks need of it: the networks that it
follows, its blocks in each, and what is in the way: of the nftables rules,
policies of others that drop what is forwarded, and records that cannot be read.`,
		Example: "  underlayctl network status",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				r, err := client.Routing(ctx)
				if err != nil {
					return err
				}
				return c.print(cmd, r, func(t *term.Table) { routing(t, r) })
			})
		},
	}
}

func routing(t *term.Table, r api.Routing) {
	t.Field("Addresses", addresses(r.Addresses))
	t.Field("Rules", r.Rules)
	for _, d := range r.Drops {
		if d.Passes {
			t.Field("Forwarding", d.Chain+" drops by default, and lets our packets pass")
		} else {
			t.Field("Forwarding", d.Chain+" drops what our rules accept; run: "+d.Command)
		}
	}
	t.Line("")
	t.Row("NETWORK", "BACKEND", "POOL", "SYNCED", "MASQUERADE", "PREFIXES", "OWN", "REASON")
	for _, n := range r.Networks {
		t.Row(n.Name, n.Backend, n.Pool, yes(n.Synced), yes(n.Masquerade), prefixes(n.Prefixes), prefixes(n.Own), n.Reason)
	}
	if len(r.Skipped) == 0 {
		return
	}
	t.Line("")
	t.Row("SKIPPED", "NODE", "BLOCK", "REASON")
	for _, s := range r.Skipped {
		block := ""
		if s.Block.IsValid() {
			block = s.Block.String()
		}
		t.Row(s.Network, s.Node, block, s.Reason)
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
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
