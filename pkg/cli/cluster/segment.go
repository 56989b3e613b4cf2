package cluster

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (c Commands) segment() *cobra.Command {
	return term.Noun("segment", "VXLAN segments: those that attachments of this node are in, and names of the cluster's",
		c.segmentList(), c.segmentShow(), c.segmentNames(), c.segmentForget())
}

func (c Commands) segmentList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the segments that attachments of this node are in",
		Long: `List the segments that attachments of this node are in. SYNCED says whether the
entries of all endpoints have been set, PUBLISHED whether other nodes are told of
those here, and REASON what is not as it should be.`,
		Example: "  underlayctl segment list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				all, err := client.Segments(ctx)
				if err != nil {
					return err
				}
				return c.print(cmd, all, func(t *term.Table) {
					t.Row("VNI", "PORT", "PARENT", "VTEP", "MTU", "NODES", "ENDPOINTS", "SYNCED", "PUBLISHED", "REASON")
					for _, s := range all {
						t.Row(s.VNI, s.Port, s.Parent, address(s.VTEP), some(s.MTU), s.Nodes, s.Endpoints, yes(s.Synced), yes(s.Published), s.Reason)
					}
				})
			})
		},
	}
}

func (c Commands) segmentShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show VNI",
		Short: "Show who is in a segment, and how they are reached",
		Long: `Show who is in a segment, on this node and others, and how they are reached: local,
on this node; remote, through VXLAN to the VTEP of their node; pending or failed,
where an entry is not there yet; moved, where a MAC or an address has come to
another one since; unreachable, where nothing leads to their node. REASON says why.`,
		Example: "  underlayctl segment show 5001",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vni, err := strconv.Atoi(args[0])
			if err != nil || vni < 1 || vni > record.MaxVNI {
				return term.Misuse("%q is no VNI, which is between 1 and %d", args[0], record.MaxVNI)
			}
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				s, err := client.Segment(ctx, vni)
				if err != nil {
					return err
				}
				return c.print(cmd, s, func(t *term.Table) { segment(t, s) })
			})
		},
	}
}

func (c Commands) segmentNames() *cobra.Command {
	return &cobra.Command{
		Use:   "names",
		Short: "List the segments that have their VNI by their name",
		Long: `List the segments of the cluster that have their VNI by their name, which is that of
the CNI networks, from the range of their tenant.`,
		Example: "  underlayctl segment names",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				all, err := client.SegmentNames(ctx)
				if err != nil {
					return err
				}
				return c.print(cmd, all, func(t *term.Table) {
					t.Row("VNI", "TENANT", "NAME")
					for _, s := range all {
						t.Row(s.VNI, s.Tenant, s.Name)
					}
				})
			})
		},
	}
}

func (c Commands) segmentForget() *cobra.Command {
	var tenant string
	cmd := &cobra.Command{
		Use:   "forget NAME --tenant TENANT",
		Short: "Free the VNI that a segment has by its name",
		Long: `Free the VNI that a segment has by its name, which has to be in use nowhere: the
next container of the name gets another one, or the same.`,
		Example: "  underlayctl segment forget lan --tenant red",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if tenant == "" {
				return term.Misuse("--tenant is missing: names are a tenant's")
			}
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				s, err := client.ForgetSegment(ctx, tenant, args[0])
				if err != nil {
					return err
				}
				return c.print(cmd, s, func(t *term.Table) {
					t.Line("segment %s of tenant %s has VNI %d no more", s.Name, s.Tenant, s.VNI)
				})
			})
		},
	}
	cmd.Flags().StringVar(&tenant, "tenant", "", "tenant of the segment")
	return cmd
}

func segment(t *term.Table, s api.SegmentDetail) {
	t.Field("VNI", s.VNI)
	t.Field("Port", s.Port)
	t.Field("Parent", s.Parent)
	t.Field("VTEP", address(s.VTEP))
	t.Field("MTU", some(s.MTU))
	t.Field("Synced", yes(s.Synced))
	t.Field("Published", yes(s.Published))
	t.Field("Reason", s.Reason)
	t.Line("")
	t.Row("NODE", "VTEP", "PORT", "ENDPOINTS", "REASON")
	for _, m := range s.Members {
		t.Row(who(&m.NodeName), address(m.VTEP), m.Port, m.Endpoints, m.Reason)
	}
	if len(s.All) > 0 {
		t.Line("")
		t.Row("MAC", "ADDRESSES", "NODE", "STATE", "REASON")
		for _, e := range s.All {
			t.Row(e.MAC, addresses(e.Addresses), who(&e.NodeName), string(e.State), e.Reason)
		}
	}
	if len(s.Skipped) > 0 {
		t.Line("")
		t.Row("SKIPPED", "REASON")
		for _, o := range s.Skipped {
			t.Row(o.Node, o.Reason)
		}
	}
}
