package cluster

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (c Commands) tenant() *cobra.Command {
	return term.Noun("tenant", "Who pools and networks belong to", c.tenantList(), c.tenantQuota())
}

func (c Commands) tenantList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the tenants that have pools or a quota",
		Long: `List the tenants that have pools or a quota. LEASED is what the quota counts: all
addresses of the tenant's pools that belong to nodes, in use or not.`,
		Example: "  underlayctl tenant list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				all, err := client.Tenants(ctx)
				if err != nil {
					return err
				}
				return c.print(cmd, all, func(t *term.Table) {
					t.Row("NAME", "QUOTA", "LEASED", "POOLS")
					for _, x := range all {
						quota := ""
						if x.Quota != 0 {
							quota = strconv.FormatInt(x.Quota, 10)
						}
						t.Row(x.Name, quota, x.Leased, strings.Join(x.Pools, ","))
					}
				})
			})
		},
	}
}

func (c Commands) tenantQuota() *cobra.Command {
	return &cobra.Command{
		Use:   "quota NAME NUMBER",
		Short: "Limit the addresses that nodes lease for a tenant; 0 is no limit",
		Long: `Limit the addresses that nodes lease from all pools of a tenant; 0 is no limit.
One below what is leased takes nothing away: it stops what is to come.`,
		Example: "  underlayctl tenant quota red 4096",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			quota, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil || quota < 0 {
				return term.Misuse("%q is not a number of addresses", args[1])
			}
			return c.ask(cmd, func(ctx context.Context, client *api.Client) (err error) {
				var x api.Tenant
				if quota == 0 {
					x, err = client.DeleteTenant(ctx, args[0])
					x.Quota = 0
				} else {
					x, err = client.SetQuota(ctx, args[0], quota)
				}
				if err != nil {
					return err
				}
				return c.print(cmd, x, func(t *term.Table) {
					if quota == 0 {
						t.Line("tenant %s has no quota, and %d addresses leased", x.Name, x.Leased)
						return
					}
					t.Line("tenant %s has a quota of %d addresses, and %d leased", x.Name, x.Quota, x.Leased)
				})
			})
		},
	}
}
