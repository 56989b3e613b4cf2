package cluster

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (c Commands) tenant() *cobra.Command {
	return term.Noun("tenant", "Who pools and networks belong to", c.tenantList(), c.tenantQuota(), c.tenantVNIs())
}

func (c Commands) tenantList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the tenants that have pools, a quota or VNIs",
		Long: `List the tenants that have pools, a quota or VNIs. LEASED is what the quota counts:
all addresses of the tenant's pools that belong to nodes, in use or not.`,
		Example: "  underlayctl tenant list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				all, err := client.Tenants(ctx)
				if err != nil {
					return err
				}
				return c.print(cmd, all, func(t *term.Table) {
					t.Row("NAME", "QUOTA", "LEASED", "VNIS", "POOLS")
					for _, x := range all {
						quota := ""
						if x.Quota != 0 {
							quota = strconv.FormatInt(x.Quota, 10)
						}
						vnis := ""
						if x.VNIs != (record.VNIs{}) {
							vnis = x.VNIs.String()
						}
						t.Row(x.Name, quota, x.Leased, vnis, strings.Join(x.Pools, ","))
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
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				x, err := change(ctx, client, args[0], func(t *record.Tenant) { t.Quota = quota })
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

func (c Commands) tenantVNIs() *cobra.Command {
	return &cobra.Command{
		Use:   "vnis NAME FIRST-LAST|none",
		Short: "Set the VNIs that a tenant's segments get by their name",
		Long: `Set the VNIs that a tenant's segments get: those whose configuration names the
tenant and no VNI. One that a segment has stays with it, also if the range leaves it
out; see: underlayctl segment names.`,
		Example: "  underlayctl tenant vnis red 5000-5999",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var vnis record.VNIs
			if args[1] != "none" {
				first, last, _ := strings.Cut(args[1], "-")
				var err, err2 error
				vnis.First, err = strconv.Atoi(first)
				vnis.Last, err2 = strconv.Atoi(last)
				if err != nil || err2 != nil || vnis == (record.VNIs{}) {
					return term.Misuse("%q is no range of VNIs, as in 5000-5999", args[1])
				}
			}
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				x, err := change(ctx, client, args[0], func(t *record.Tenant) { t.VNIs = vnis })
				if err != nil {
					return err
				}
				return c.print(cmd, x, func(t *term.Table) {
					if x.VNIs == (record.VNIs{}) {
						t.Line("tenant %s has no VNIs", x.Name)
						return
					}
					t.Line("tenant %s has the VNIs %s", x.Name, x.VNIs)
				})
			})
		},
	}
}

// change sets a part of what a tenant has, which goes with the last part.
func change(ctx context.Context, client *api.Client, name string, set func(*record.Tenant)) (api.Tenant, error) {
	x, err := client.Tenant(ctx, name)
	if err != nil && !errors.Is(err, api.ErrNotFound) {
		return x, err
	}
	t := record.Tenant{Name: name, Quota: x.Quota, VNIs: x.VNIs}
	set(&t)
	if t == (record.Tenant{Name: name}) {
		x, err = client.DeleteTenant(ctx, name)
		x.Quota, x.VNIs = 0, record.VNIs{}
		return x, err
	}
	return client.PutTenant(ctx, t)
}
