package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

// Pool are the verbs that change cluster pools.
func (c Commands) Pool() []*cobra.Command {
	return []*cobra.Command{c.poolCreate(), c.poolUpdate(), c.poolDelete()}
}

func (c Commands) poolCreate() *cobra.Command {
	var simple simplePool
	cmd := &cobra.Command{
		Use:   "create FILE|-|NAME",
		Short: "Make a cluster pool, of a document or of flags",
		Long: `Make a cluster pool, which all nodes lease addresses from.

FILE, or - for stdin, holds a JSON object with version, name, tenant, kind,
ranges, routes, blockPrefix, expectedNodes, sticky, stickyFor, coolDown and
quarantine. With --subnet the argument is the pool's name, and flags say the
rest: enough for a pool of one range. Kind and size of its blocks are for life.`,
		Example: `  underlayctl pool create lan --subnet 192.0.2.0/24 --range-start 192.0.2.100 --gateway 192.0.2.1
  underlayctl pool create pods.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := simple.document(cmd, args[0])
			if err != nil {
				return err
			}
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				p, err := client.CreatePool(ctx, text)
				if err != nil && simple.subnet == "" {
					err = ipam.Locate(text, "pool", err)
				}
				if err != nil {
					return err
				}
				return c.print(cmd, p, func(t *term.Table) { t.Line("created pool %s, %s, of kind %s", p.Name, p.UUID, p.Kind) })
			})
		},
	}
	simple.flags(cmd)
	return cmd
}

// simplePool is a pool of one range, as flags say it.
type simplePool struct {
	subnet, start, end, gateway string
	exclude                     []string
	kind, tenant                string
	blockPrefix, expectedNodes  int
	sticky, stickyFor           string
}

func (s *simplePool) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.subnet, "subnet", "", "`prefix` of the subnet")
	f.StringVar(&s.start, "range-start", "", "first `address` to give out (default the subnet's first)")
	f.StringVar(&s.end, "range-end", "", "last `address` to give out (default the subnet's last)")
	f.StringVar(&s.gateway, "gateway", "", "`address` of the gateway (default the subnet's first; a routed pool has one for each block)")
	f.StringArrayVar(&s.exclude, "exclude", nil, "`address`, prefix or first-last to leave out; may be given again")
	f.StringVar(&s.kind, "kind", record.Shared, "`kind`: shared, any address on any node; or routed, whole blocks on a node")
	f.StringVar(&s.tenant, "tenant", "", "`name` of the tenant (default none)")
	f.IntVar(&s.blockPrefix, "block-prefix", 0, "`length` of the prefix of blocks (default by kind and size)")
	f.IntVar(&s.expectedNodes, "expected-nodes", 0, "`number` of nodes, which the size of blocks follows from (default 64)")
	f.StringVar(&s.sticky, "sticky", "", "keep released addresses for their owner; =strict even if nothing else is free")
	f.Lookup("sticky").NoOptDefVal = "true"
	f.StringVar(&s.stickyFor, "sticky-for", "", "`duration` of that (default 24h)")
}

// document is the pool's, from the flags or the file.
func (s *simplePool) document(cmd *cobra.Command, arg string) ([]byte, error) {
	if !cmd.Flags().Changed("subnet") {
		for _, flag := range []string{"range-start", "range-end", "gateway", "exclude", "kind", "tenant", "block-prefix", "expected-nodes", "sticky", "sticky-for"} {
			if cmd.Flags().Changed(flag) {
				return nil, term.Misuse("--%s needs --subnet; a document says all by itself", flag)
			}
		}
		text, err := document(cmd, arg)
		if errors.Is(err, fs.ErrNotExist) {
			err = term.Hint(err, "for a pool of that name, say --subnet too")
		}
		return text, err
	}
	subnet, err := netip.ParsePrefix(s.subnet)
	if err != nil {
		return nil, term.Misuse("--subnet: %q is not a prefix such as 192.0.2.0/24", s.subnet)
	}
	within := map[string]any{"subnet": s.subnet}
	w := map[string]any{"version": record.Version, "name": arg, "kind": s.kind, "tenant": s.tenant, "ranges": [][]any{{within}}}
	set := func(m map[string]any, key string, v any, given bool) {
		if given {
			m[key] = v
		}
	}
	set(within, "rangeStart", s.start, s.start != "")
	set(within, "rangeEnd", s.end, s.end != "")
	set(within, "gateway", s.gateway, s.gateway != "")
	set(within, "exclude", s.exclude, len(s.exclude) > 0)
	family := "ipv6"
	if subnet.Addr().Is4() {
		family = "ipv4"
	}
	set(w, "blockPrefix", map[string]int{family: s.blockPrefix}, cmd.Flags().Changed("block-prefix"))
	set(w, "expectedNodes", s.expectedNodes, cmd.Flags().Changed("expected-nodes"))
	switch s.sticky {
	case "", "false":
		if s.stickyFor != "" {
			return nil, term.Misuse("--sticky-for has no meaning without --sticky")
		}
	case "true":
		w["sticky"] = true
	case "strict":
		w["sticky"] = "strict"
	default:
		return nil, term.Misuse("--sticky: %q is neither empty nor strict", s.sticky)
	}
	set(w, "stickyFor", s.stickyFor, s.stickyFor != "")
	return json.Marshal(w)
}

func (c Commands) poolUpdate() *cobra.Command {
	return &cobra.Command{
		Use:   "update FILE|-",
		Short: "Change ranges, routes and times of a cluster pool",
		Long: `Change ranges, routes and times of a cluster pool into what a document says:
the form is that of pool create. What is leased must stay inside the ranges.
Kind, tenant and the size of blocks cannot change.`,
		Example: "  underlayctl pool update pods.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := document(cmd, args[0])
			if err != nil {
				return err
			}
			name, err := nameIn("pool", text)
			if err != nil {
				return err
			}
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				p, err := client.UpdatePool(ctx, name, text)
				if err != nil {
					return ipam.Locate(text, "pool", err)
				}
				return c.print(cmd, p, func(t *term.Table) { t.Line("updated pool %s", p.Name) })
			})
		},
	}
}

func (c Commands) poolDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete NAME",
		Short:   "Delete a cluster pool of which nothing is in use",
		Example: "  underlayctl pool delete pods",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.ask(cmd, func(ctx context.Context, client *api.Client) error {
				p, err := client.DeletePool(ctx, args[0])
				if errors.Is(err, api.ErrConflict) {
					return term.Hint(err, "see: underlayctl lease list --pool %s; underlayctl network list", args[0])
				}
				if err != nil {
					return err
				}
				return c.print(cmd, p, func(t *term.Table) { t.Line("deleted pool %s", p.Name) })
			})
		},
	}
}
