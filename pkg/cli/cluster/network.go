package cluster

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (c Commands) network() *cobra.Command {
	return term.Noun("network", "How nodes reach each other's blocks of a pool",
		c.networkCreate(), c.networkDelete(), c.networkImport(), c.networkList(), c.networkShow(), c.networkStatus(), c.networkUpdate())
}

const networkForm = `The document is a JSON object with version, name, tenant, pool, backend (hostgw or
vxlan) and, for vxlan, vni, port and directRouting.`

func (c Commands) networkCreate() *cobra.Command {
	return &cobra.Command{
		Use:     "create FILE|-",
		Short:   "Make a network of a document",
		Long:    "Make a network of a document, in a file or on stdin.\n\n" + networkForm,
		Example: "  underlayctl network create pods.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := document(cmd, args[0])
			if err != nil {
				return err
			}
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				n, err := client.CreateNetwork(ctx, text)
				if err != nil {
					return ipam.Locate(text, "network", err)
				}
				return c.print(cmd, n, func(t *term.Table) { t.Line("created network %s", n.Name) })
			})
		},
	}
}

func (c Commands) networkUpdate() *cobra.Command {
	return &cobra.Command{
		Use:     "update FILE|-",
		Short:   "Change a network into what a document says",
		Long:    "Change a network into what a document says, in a file or on stdin.\n\n" + networkForm,
		Example: "  underlayctl network update pods.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := document(cmd, args[0])
			if err != nil {
				return err
			}
			name, err := nameIn("network", text)
			if err != nil {
				return err
			}
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				// The agent makes one that is not there, which here is a slip.
				if _, err := client.Network(ctx, name); err != nil {
					return err
				}
				n, err := client.PutNetwork(ctx, name, text)
				if err != nil {
					return ipam.Locate(text, "network", err)
				}
				return c.print(cmd, n, func(t *term.Table) { t.Line("updated network %s", n.Name) })
			})
		},
	}
}

func (c Commands) networkDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete NAME",
		Short:   "Delete a network, which leaves its pool",
		Example: "  underlayctl network delete pods",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				n, err := client.DeleteNetwork(ctx, args[0])
				if err != nil {
					return err
				}
				return c.print(cmd, n, func(t *term.Table) { t.Line("deleted network %s", args[0]) })
			})
		},
	}
}

func (c Commands) networkList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the networks",
		Example: "  underlayctl network list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				all, err := client.Networks(ctx)
				if err != nil {
					return err
				}
				return c.print(cmd, all, func(t *term.Table) {
					t.Row("NAME", "TENANT", "POOL", "BACKEND", "VNI", "PORT", "DIRECT")
					for _, n := range all {
						t.Row(n.Name, n.Tenant, n.Pool, n.Backend, some(n.VNI), some(n.Port), direct(n))
					}
				})
			})
		},
	}
}

func (c Commands) networkShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a network; with -o json, the document of network update",
		Example: "  underlayctl network show pods -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				n, err := client.Network(ctx, args[0])
				if err != nil {
					return err
				}
				return c.print(cmd, n, func(t *term.Table) {
					t.Field("Name", n.Name)
					t.Field("Tenant", n.Tenant)
					t.Field("Pool", n.Pool)
					t.Field("Backend", n.Backend)
					t.Field("VNI", some(n.VNI))
					t.Field("Port", some(n.Port))
					t.Field("Direct routing", direct(n))
				})
			})
		},
	}
}

// some is a number that has no meaning as 0.
func some(n int) any {
	if n == 0 {
		return ""
	}
	return n
}

// direct is what directRouting says, where it says something.
func direct(n record.Network) string {
	switch {
	case n.Backend != record.VXLAN:
		return ""
	case n.DirectRouting:
		return "yes"
	}
	return "no"
}
