package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/flannel"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (c Commands) networkImport() *cobra.Command {
	return term.Noun("import", "Make a pool and a network of another suite's configuration", c.importFlannel())
}

func (c Commands) importFlannel() *cobra.Command {
	var name, tenant string
	var dry bool
	cmd := &cobra.Command{
		Use:   "flannel FILE|-",
		Short: "Make a routed pool and a network that mean what flannel's net-conf.json does",
		Long: `Make a routed pool and a network that mean what flannel's net-conf.json does, of
the backends host-gw and vxlan. The same blocks are leased, those from SubnetMin
to SubnetMax; what cannot be the same is printed.

What flannel's nodes lease is not taken over, and a VXLAN device with the same VNI
and port stands in the way of ours: switch flannel off on a host, with its
containers, before a network configuration there names the pool.`,
		Example: "  underlayctl network import flannel /etc/kube-flannel/net-conf.json --name pods --dry-run",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := document(cmd, args[0])
			if err != nil {
				return err
			}
			plan, err := flannel.Load(text, name, tenant)
			if err != nil {
				return err
			}
			if !dry {
				err = c.ask(cmd, func(ctx context.Context, client *api.Client) error { return create(ctx, client, &plan) })
			}
			if err != nil {
				return err
			}
			return c.print(cmd, plan, func(t *term.Table) { imported(t, plan, dry) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "flannel", "`name` of the pool and of the network")
	f.StringVar(&tenant, "tenant", "", "`name` of the tenant (default none)")
	f.BoolVar(&dry, "dry-run", false, "show what would be made, and make nothing")
	return cmd
}

// create makes the pool and then the network, or neither.
func create(ctx context.Context, client *api.Client, plan *flannel.Plan) (err error) {
	pool, err := client.CreatePool(ctx, record.EncodePool(plan.Pool))
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		// The time of the command may be up, which is no reason to leave the pool.
		// One that the network has after all, though no answer came, stays.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience/3)
		defer cancel()
		if _, undo := client.DeletePool(ctx, pool.Name); undo != nil {
			err = term.Hint(fmt.Errorf("%w; and the pool stays: %w", err, undo),
				"see underlayctl network list; without the network, underlayctl pool delete %s, and then import again", pool.Name)
		}
	}()
	network, err := client.CreateNetwork(ctx, record.EncodeNetwork(plan.Network))
	if err != nil {
		return err
	}
	plan.Pool, plan.Network = pool, network
	return nil
}

// imported is a plan for people.
func imported(t *term.Table, plan flannel.Plan, dry bool) {
	made := "created"
	if dry {
		made = "would create"
	}
	var blocks []string
	for _, set := range plan.Pool.Sets {
		for _, r := range set {
			bits := plan.Pool.Bits(r.First)
			blocks = append(blocks, fmt.Sprintf("%s to %s", netip.PrefixFrom(r.First, bits).Masked(), netip.PrefixFrom(r.Last, bits).Masked()))
		}
	}
	t.Line("%s pool %s, of kind %s, with the blocks %s", made, plan.Pool.Name, plan.Pool.Kind, strings.Join(blocks, " and "))
	n := plan.Network
	how := n.Backend
	if n.Backend == record.VXLAN {
		how = fmt.Sprintf("%s, VNI %d on port %d, direct routing: %s", how, n.VNI, n.Port, direct(n))
	}
	t.Line("%s network %s, by %s", made, n.Name, how)
	for _, d := range plan.Differs {
		t.Line("differs: %s", d)
	}
}
