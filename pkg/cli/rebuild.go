package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/cli/book"
	"github.com/underlay-cni/underlay/pkg/cli/live"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

// rebuildView is what a rebuild found and did.
type rebuildView struct {
	// Wrong says what was wrong with the ledger before.
	Wrong   []string    `json:"wrong"`
	Found   []foundView `json:"found"`
	Written bool        `json:"written"`

	place string
}

// foundView is an attachment that is alive. Without a network it is an
// address of which it is not known who manages it.
type foundView struct {
	Network     string         `json:"network,omitempty"`
	ContainerID string         `json:"containerID,omitempty"`
	IfName      string         `json:"ifName,omitempty"`
	Addresses   []ipam.Address `json:"addresses"`
	MAC         string         `json:"mac,omitempty"`
	Uses        ipam.Uses      `json:"uses,omitzero"`
	Netns       string         `json:"netns"`
	// Reason why an address without a network becomes reserved.
	Reason string `json:"reason,omitempty"`
}

func (a *app) ledgerRebuild() *cobra.Command {
	var dryRun, force bool
	var networks []string
	c := &cobra.Command{
		Use:   "rebuild",
		Short: "Make a lost or damaged ledger anew from the live containers",
		Long: `Make a ledger that is lost, damaged or behind anew from what is alive on this
node. The links of macvlan and ipvlan name their network and container; what
they carry is held again. All other addresses in containers may have come from
this ledger too, through another plugin, and become reserved: release them when
their containers are gone. The old ledger stays beside the new one.

What a ledger knows beyond that is lost: which addresses rest, are quarantined
or were reserved, and for whom some are kept. As far as the old one can be read,
the new one has from it who had which address, and of what is found the cluster
pool and the owner, which no link tells.`,
		Example: "  underlayctl ledger rebuild --dry-run",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.rebuild(cmd, networks, dryRun, force)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.BoolVar(&dryRun, "dry-run", false, "show what would be written, and write nothing")
	f.BoolVar(&force, "force", false, "even if nothing is wrong with the ledger; no container may be attached meanwhile")
	f.StringSliceVar(&networks, "network", nil, "only these `networks`, where some have a ledger of their own (dataDir)")
	return c
}

func (a *app) rebuild(cmd *cobra.Command, networks []string, dryRun, force bool) error {
	all, err := live.List()
	if err != nil {
		return err
	}
	found, err := all.Attachments(networks)
	if err != nil {
		return err
	}
	v := rebuildView{Found: []foundView{}, place: a.place().DataDir}
	for _, f := range found {
		v.Found = append(v.Found, foundView{
			f.Attachment.Network, f.Attachment.ContainerID, f.Attachment.IfName, f.Addresses, f.MAC, f.Uses, f.Netns.Path, f.Reason,
		})
	}
	if v.Wrong, err = a.wrong(cmd.Context(), found); err != nil && !force {
		return err
	}
	switch {
	case dryRun:
	case len(v.Wrong) == 0 && err == nil && !force:
		err := fmt.Errorf("nothing is wrong with the ledger in %q, and a new one would know less", v.place)
		return term.Hint(err, "--dry-run shows what a rebuild would write; --force does it all the same")
	default:
		ctx, cancel := context.WithTimeout(cmd.Context(), patience)
		defer cancel()
		err := ledger.Rebuild(ctx, a.place(), found)
		if errors.Is(err, ledger.ErrLocked) {
			return term.Hint(err, "an agent that has it open keeps it: systemctl stop underlayd")
		}
		if err != nil {
			return err
		}
		v.Written = true
	}
	return a.print(cmd, v, v.people)
}

// wrong says why the ledger has to be made anew. Errors are of ledgers that
// rebuilding is no remedy for: one of a newer version, one that is busy.
func (a *app) wrong(ctx context.Context, found []ledger.Found) (findings []string, err error) {
	err = a.view(ctx, func(l book.Book) error {
		findings, err = l.Check()
		return err
	})
	switch {
	case err == nil:
		return append([]string{}, findings...), nil
	case errors.Is(err, errMissing) && len(found) == 0:
		return []string{}, nil
	case errors.Is(err, errMissing), errors.Is(err, ledger.ErrLost), errors.Is(err, ledger.ErrCorrupt):
		return []string{err.Error()}, nil
	}
	return []string{}, err
}

func (v rebuildView) people(t *term.Table) {
	for _, w := range v.Wrong {
		t.Line("wrong: %s", w)
	}
	attachments, held, reserved := 0, 0, 0
	t.Row("NETWORK", "CONTAINER", "IFNAME", "ADDRESSES", "MAC", "USES", "NETNS")
	for _, f := range v.Found {
		addrs := make([]fmt.Stringer, len(f.Addresses))
		for i, x := range f.Addresses {
			addrs[i] = x.Prefix
		}
		t.Row(f.Network, term.ShortID(f.ContainerID), f.IfName, join(addrs, ","), f.MAC, uses(f.Uses), f.Netns)
		if f.Network == "" {
			reserved++
			continue
		}
		attachments++
		held += len(f.Addresses)
	}
	verb := "wrote"
	if !v.Written {
		verb = "would write"
	}
	t.Line("%s %s with %s to the ledger in %q, and %d more as reserved", verb,
		term.Plural(attachments, "attachment", "attachments"), term.Plural(held, "address", "addresses"), v.place, reserved)
}
