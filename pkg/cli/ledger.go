package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/cli/book"
	"github.com/underlay-cni/underlay/pkg/cli/live"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (a *app) ledger() *cobra.Command {
	return term.Noun("ledger", "The file that knows who holds what", a.ledgerCheck(), a.ledgerExport(), a.ledgerBackup(), a.ledgerRebuild())
}

// checkView is what there is to say of a ledger.
type checkView struct {
	Ledger ledger.Info `json:"ledger"`
	// Findings are what is wrong with the ledger itself, a sentence each.
	Findings []string `json:"findings"`
	// Leaks are addresses that are held for what is no more.
	Leaks []leak `json:"leaks"`
}

type leak struct {
	Address    string          `json:"address"`
	Pool       string          `json:"pool"`
	Attachment ipam.Attachment `json:"attachment"`
	Why        string          `json:"why"`
}

func (a *app) ledgerCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the ledger, and look for addresses that leaked",
		Long: `Check the ledger: the pages of the file, every record and index, and that it is
the one this boot has used. Look for addresses that are held in namespaces that
are gone. The exit status is 1 when anything is found.`,
		Example: "  underlayctl ledger check",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := checkView{Findings: []string{}, Leaks: []leak{}}
			if err := a.view(cmd.Context(), v.check); err != nil {
				return err
			}
			if err := a.print(cmd, v, v.people); err != nil {
				return err
			}
			switch {
			case len(v.Findings) > 0:
				err := fmt.Errorf("the ledger is not sound: %s", term.Plural(len(v.Findings), "finding", "findings"))
				return term.Hint(err, "underlayctl ledger rebuild makes it anew from the live containers")
			case len(v.Leaks) > 0:
				err := fmt.Errorf("%s leaked", term.Plural(len(v.Leaks), "address", "addresses"))
				return term.Hint(err, "the runtime's DEL or GC, or the next reboot, releases them; underlayctl address release does so now")
			}
			return nil
		},
	}
}

func (v *checkView) check(l book.Book) error {
	findings, err := l.Check()
	if err != nil {
		return err
	}
	v.Findings = append(v.Findings, findings...)
	if v.Ledger, err = l.Info(); err == nil {
		err = v.findLeaks(l)
	}
	if len(findings) > 0 {
		return nil // a damaged ledger cannot be read, and that is said
	}
	return err
}

func (v *checkView) findLeaks(l book.Book) error {
	// The ledger is locked against writers meanwhile: what is in it and not
	// in the list was gone when it was opened.
	all, err := live.List()
	if err != nil {
		return err
	}
	return l.Records(func(r ipam.Record) error {
		if r.State != ipam.Held || all.State(r.Netns, r.BootID) != live.Gone {
			return nil
		}
		why := "its namespace is gone"
		if r.BootID != all.BootID() {
			why = "it was held before the reboot"
		}
		v.Leaks = append(v.Leaks, leak{r.Address.Addr().String(), r.Pool, r.Attachment, why})
		return nil
	})
}

func (v *checkView) people(t *term.Table) {
	i := v.Ledger
	t.Field("Ledger", i.Path)
	t.Field("ID", i.ID)
	t.Field("Transactions", i.Sequence)
	t.Field("Size", fmt.Sprintf("%d KiB, %d KiB of it free", i.Size>>10, i.FreeBytes>>10))
	t.Field("Attachments", i.Attachments)
	t.Field("Addresses", fmt.Sprintf("%d held, %d cooling, %d quarantined, %d reserved", i.Held, i.Cooling, i.Quarantined, i.Reserved))
	for _, f := range v.Findings {
		t.Field("Finding", f)
	}
	if len(v.Leaks) == 0 {
		return
	}
	t.Line("")
	t.Row("LEAKED", "POOL", "NETWORK", "CONTAINER", "IFNAME", "WHY")
	for _, x := range v.Leaks {
		t.Row(x.Address, x.Pool, x.Attachment.Network, term.ShortID(x.Attachment.ContainerID), x.Attachment.IfName, x.Why)
	}
}

func (a *app) ledgerExport() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:     "export",
		Short:   "Write all that the ledger knows as one JSON document",
		Example: "  underlayctl ledger export --file ledger.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.view(cmd.Context(), func(l book.Book) error {
				if file == "" {
					return l.Export(cmd.OutOrStdout())
				}
				return writeFile(file, l.Export)
			})
		},
	}
	c.Flags().StringVar(&file, "file", "", "`path` to write it to instead of stdout")
	return c
}

func (a *app) ledgerBackup() *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE|-",
		Short: "Copy the ledger while it is in use",
		Long: `Copy the file of the ledger as it is at one moment, while plugins and the agent go
on. The copy is a ledger itself: --data-dir of a folder where it is called
ledger.db shows what is in it.

It is no way back while containers run: they may have come and gone since, so a
copy that is put in the ledger's place gives out no addresses until the next
reboot, and underlayctl ledger rebuild makes a new one from the live containers.
Before the first container of a boot it is taken as it is.`,
		Example: "  underlayctl ledger backup /var/backups/ledger.db",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			write := func(w io.Writer) error {
				return a.view(cmd.Context(), func(l book.Book) error { return l.Backup(w) })
			}
			if args[0] != "-" {
				return writeFile(args[0], write)
			}
			// Whoever reads stdout slowly must not keep others from the ledger.
			f, err := os.CreateTemp("", "underlayctl-backup-*")
			if err != nil {
				return err
			}
			defer f.Close()
			if err := errors.Join(os.Remove(f.Name()), write(f)); err != nil {
				return err
			}
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			_, err = io.Copy(cmd.OutOrStdout(), f)
			return err
		},
	}
}

// writeFile puts the file there whole or not at all, for root to read.
func writeFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		_ = f.Close()
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
