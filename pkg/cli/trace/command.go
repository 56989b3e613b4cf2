package trace

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/book"
	"github.com/underlay-cni/underlay/pkg/cli/term"
	"github.com/underlay-cni/underlay/pkg/link"
)

// patience is how long the agent has to answer.
const patience = 10 * time.Second

// Command makes the command. Its fields are read when it runs; all are required.
type Command struct {
	// RunDir is the folder of the agent's socket.
	RunDir func() string
	// View runs f on the ledger of this node.
	View   func(ctx context.Context, f func(book.Book) error) error
	Output *term.Format
}

// errWay is returned where there is none, or it is another than it should be.
var errWay = errors.New("the way is not as it has to be")

// Verb is the command.
func (c Command) Verb() *cobra.Command {
	return &cobra.Command{
		Use:   "trace FROM TO",
		Short: "Follow a packet from an address of this node to another",
		Long: `Follow a packet from an address of this node, a container's or the host's, to any
other: hop by hop, until another node takes over. What is wanted is compared with
the kernel; no packet is sent. The exit status is 1 where there is no way, or
where the kernel's is another.`,
		Example: "  underlayctl trace 10.5.1.2 10.5.2.2",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var ends [2]netip.Addr
			for i, s := range args {
				a, err := netip.ParseAddr(s)
				if err != nil || a.Zone() != "" {
					return term.Misuse("%s: %q is not an IP address", [2]string{"FROM", "TO"}[i], s)
				}
				ends[i] = a.Unmap()
			}
			if ends[0].Is4() != ends[1].Is4() {
				return term.Misuse("%s and %s are of two address families", ends[0], ends[1])
			}
			t, err := c.follow(cmd.Context(), ends[0], ends[1])
			if err != nil {
				return err
			}
			if err := term.Print(cmd.OutOrStdout(), *c.Output, t, t.print); err != nil {
				return err
			}
			if !t.Reached || len(t.Differs) > 0 {
				return errWay
			}
			return nil
		},
	}
}

func (c Command) follow(ctx context.Context, from, to netip.Addr) (t Trace, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	h, err := link.Open()
	if err != nil {
		return t, err
	}
	defer h.Close()
	client := api.NewClient(c.RunDir())
	defer client.Close()
	err = c.View(ctx, func(b book.Book) error {
		f, err := gather(ctx, b, client, host{h}, from, to)
		if err == nil {
			t = follow(f)
		}
		return err
	})
	return t, err
}

// print writes a trace for people.
func (t Trace) print(out *term.Table) {
	for i, hop := range t.Hops {
		out.Line("%2d  %s", i+1, hop)
	}
	if t.Reason != "" {
		out.Line(" !  %s", t.Reason)
	}
	for _, d := range t.Differs {
		out.Line("differs: wanted is %s; the kernel has %s; %s", d.Want, d.Have, d.Do)
	}
	if t.Unknown != "" {
		out.Line("unknown: %s", t.Unknown)
	}
}
