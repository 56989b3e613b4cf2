// Package event has the noun event of underlayctl: what changed on this node of
// late. The agent remembers it, and no file does: without the agent there is
// nothing to show.
package event

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/cluster"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

// patience is how long a command waits for the agent.
const patience = 30 * time.Second

// Commands makes the commands. Its fields are read when one runs; all are
// required.
type Commands struct {
	// RunDir is the folder of the agent's socket.
	RunDir func() string
	Output *term.Format
}

// Noun is the one of this package.
func (c Commands) Noun() *cobra.Command {
	return term.Noun("event", "What changed on this node of late", c.list())
}

func (c Commands) list() *cobra.Command {
	var kind string
	var follow bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List what changed on this node since the agent was started",
		Long: `List what changed on this node since the agent was started: conflicts, leaks, what
was leased and given away, how the registry was. The agent remembers the last
4096 events; its log has all of them. Kinds:

` + kinds(),
		Example: "  underlayctl event list --follow --kind conflict",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := api.EventFilter{Kind: api.EventKind(kind)}
			client := api.NewClient(c.RunDir())
			defer client.Close()
			if follow {
				return c.advise(c.follow(cmd, client, f))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), patience)
			defer cancel()
			all, err := client.Events(ctx, f)
			if err != nil {
				return c.advise(err)
			}
			return term.Print(cmd.OutOrStdout(), *c.Output, all, func(t *term.Table) {
				t.Row("TIME", "KIND", "POOL", "ADDRESS", "CONTAINER", "EVENT")
				for _, e := range all {
					pool, addr, container := places(e)
					t.Row(e.Time, e.Kind, pool, addr, container, e.Text)
				}
			})
		},
	}
	cmd.Flags().StringVar(&kind, "kind", "", "only events of this `kind`")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on with each event as it comes, until interrupted")
	return cmd
}

func (c Commands) advise(err error) error {
	if errors.Is(err, api.ErrNoAgent) {
		return term.Hint(fmt.Errorf("%w: nobody listens in %q", api.ErrNoAgent, c.RunDir()), "events are the agent's: start underlayd; --run-dir names another folder")
	}
	return cluster.Advise(err, c.RunDir())
}

// follow prints a line for each event: a table would wait for the last one to
// know how wide its columns are.
func (c Commands) follow(cmd *cobra.Command, client *api.Client, f api.EventFilter) error {
	out := cmd.OutOrStdout()
	err := client.FollowEvents(cmd.Context(), f, func(e api.Event) error {
		if *c.Output == term.AsJSON {
			return json.NewEncoder(out).Encode(e)
		}
		return line(out, e)
	})
	if cmd.Context().Err() != nil {
		return nil // who follows ends it so
	}
	if err == nil {
		err = errors.New("the agent has ended")
	}
	return err
}

func line(w io.Writer, e api.Event) error {
	pool, addr, container := places(e)
	_, err := fmt.Fprintf(w, "%s  %-17s  %-8s  %-15s  %-12s  %s\n", e.Time.UTC().Format(time.RFC3339), e.Kind, orDash(pool), orDash(addr), orDash(container), e.Text)
	return err
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// places says where an event was: of an attachment without a pool that is its
// network, and beside addresses there are blocks.
func places(e api.Event) (pool, addr, container string) {
	pool, container = e.Pool, term.ShortID(e.Container)
	if pool == "" {
		pool = e.Network
	}
	switch {
	case e.Addr.IsValid():
		addr = e.Addr.String()
	case e.Block.IsValid():
		addr = e.Block.String()
	}
	return pool, addr, container
}

// kinds lists them for the help, a few on a line.
func kinds() string {
	const width = 4
	var b strings.Builder
	all := api.EventKinds()
	for i, k := range all {
		switch {
		case i%width == 0:
			b.WriteString("  " + string(k))
		default:
			b.WriteString(", " + string(k))
		}
		if i%width == width-1 && i < len(all)-1 {
			b.WriteString(",\n")
		}
	}
	return b.String()
}
