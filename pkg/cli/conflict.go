package cli

import (
	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/cli/book"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (a *app) conflict() *cobra.Command {
	return term.Noun("conflict", "Addresses that somebody outside the ledger uses", a.conflictList(),
		a.clear(&cobra.Command{
			Use:   "clear ADDRESS",
			Short: "End the quarantine of an address",
			Long: `End the quarantine of an address before its time, when whoever answered for it is
gone. It is free at once; if somebody still answers, the next ADD that tries it
puts it back.`,
			Example: "  underlayctl conflict clear 192.0.2.12",
		}, ipam.Quarantined))
}

func (a *app) conflictList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the addresses in quarantine",
		Example: "  underlayctl conflict list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			recs := []ipam.Record{}
			err := a.view(cmd.Context(), func(l book.Book) error {
				return l.Records(func(r ipam.Record) error {
					if r.State == ipam.Quarantined {
						recs = append(recs, r)
					}
					return nil
				})
			})
			if err != nil {
				return err
			}
			return a.print(cmd, recs, func(t *term.Table) {
				t.Row("ADDRESS", "POOL", "REASON", "SINCE", "UNTIL", "CONTAINER")
				for _, r := range recs {
					t.Row(r.Address, r.Pool, r.Reason, r.Since, r.Until, term.ShortID(r.Attachment.ContainerID))
				}
			})
		},
	}
}

// clear makes c free one address that is in a state.
func (a *app) clear(c *cobra.Command, state ipam.State) *cobra.Command {
	c.Args = cobra.ExactArgs(1)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		addr, err := parseAddr(args[0])
		if err != nil {
			return err
		}
		var was ipam.Record
		err = a.update(cmd.Context(), func(l book.Book) error {
			was, err = l.Clear(addr, state)
			return err
		})
		if err != nil {
			return err
		}
		return a.print(cmd, was, func(t *term.Table) { t.Line("freed %s, which was %s", addr, holder(was)) })
	}
	return c
}

func (a *app) addressReserve() *cobra.Command {
	var pool, reason string
	c := &cobra.Command{
		Use:   "reserve ADDRESS --pool POOL",
		Short: "Keep an address out of use",
		Long: `Keep an address of a pool out of use, for a device that has it, say, until it is
unreserved. An address that is held is not taken from its holder. Of a cluster
pool a node can reserve what it has itself; reserve the rest on the node that has
it, or exclude it in the pool.`,
		Example: "  underlayctl address reserve 192.0.2.15 --pool lan --reason 'the printer in room 4'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := parseAddr(args[0])
			if err != nil {
				return err
			}
			if pool == "" {
				return term.Misuse("--pool is required: the name of the pool that gives out %s, for a local one the network's", addr)
			}
			var rec ipam.Record
			err = a.update(cmd.Context(), func(l book.Book) error {
				rec, err = l.Reserve(pool, addr, reason)
				return err
			})
			if err != nil {
				return err
			}
			return a.print(cmd, rec, func(t *term.Table) { t.Line("reserved %s of pool %s", addr, rec.Pool) })
		},
	}
	c.Flags().StringVar(&pool, "pool", "", "`name` of the pool that gives it out")
	c.Flags().StringVar(&reason, "reason", "", "`text` that says why, for whoever asks later")
	return c
}

func (a *app) addressUnreserve() *cobra.Command {
	return a.clear(&cobra.Command{
		Use:     "unreserve ADDRESS",
		Short:   "Take a reserved address back into use",
		Example: "  underlayctl address unreserve 192.0.2.15",
	}, ipam.Reserved)
}
