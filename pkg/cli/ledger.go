package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/cli/book"
	"github.com/underlay-cni/underlay/pkg/cli/live"
	"github.com/underlay-cni/underlay/pkg/cli/migrate"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (a *app) ledger() *cobra.Command {
	return term.Noun("ledger", "The file that knows who holds what", a.ledgerCheck(), a.ledgerExport(), a.ledgerBackup(), a.ledgerMigrate(), a.ledgerRebuild())
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

func (a *app) ledgerMigrate() *cobra.Command {
	var m migration
	var network string
	var ipPools []string
	local := &cobra.Command{
		Use:   "host-local DIR",
		Short: "Take over the addresses that host-local gave out on a network",
		Long: `Take over the addresses that host-local gave out on a network, from the folder it
keeps for that: a file for each address.`,
		Example: "  underlayctl ledger migrate host-local /var/lib/cni/networks/lan --dry-run",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if m.Manager, m.Network = "host-local", network; network == "" {
				m.Network = filepath.Base(filepath.Clean(args[0]))
			}
			entries, err := migrate.HostLocal(args[0])
			if err != nil {
				return err
			}
			return a.migrate(cmd, m, entries)
		},
	}
	whereabouts := &cobra.Command{
		Use:   "whereabouts FILE|-",
		Short: "Take over the addresses that whereabouts gave out",
		Long: `Take over the addresses that whereabouts gave out, from what this prints:

  kubectl get ippools.whereabouts.cni.cncf.io -A -o json

Its pools do not tell nodes apart: what pods of other nodes have becomes reserved
here, and with --drop-dead it is given out a second time.`,
		Example: "  underlayctl ledger migrate whereabouts ippools.json --network lan --ippool 192.0.2.0-24",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if m.Manager, m.Network = "whereabouts", network; network == "" {
				return term.Misuse("--network is required: IPPools do not name it")
			}
			b, err := readAll(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			entries, err := migrate.Whereabouts(args[0], b, ipPools)
			if err != nil {
				return err
			}
			return a.migrate(cmd, m, entries)
		},
	}
	whereabouts.Flags().StringSliceVar(&ipPools, "ippool", nil, "`names` of the IPPools that the network drew on")
	c := term.Noun("migrate", "Take over what another address manager has given out", local, whereabouts)
	c.Long = `Take over what another address manager has given out, so that its containers go on
and nobody gets their addresses. What is found on a link in a running container is
held; all else becomes reserved: underlayctl address unreserve frees it. When
anything cannot be read or is in the ledger already, nothing is changed.

Run it when the configuration names underlay and before the first ADD.`
	for _, verb := range c.Commands() {
		f := verb.Flags()
		f.StringVar(&network, "network", "", "`name` of the network whose local pool takes them over")
		f.BoolVar(&m.DropDead, "drop-dead", false, "leave out what no container on this node has")
		f.BoolVar(&m.dryRun, "dry-run", false, "show what would be written, and write nothing")
	}
	return c
}

func readAll(path string, stdin io.Reader) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(path)
}

// migration is a plan's configuration, and whether it is carried out.
type migration struct {
	migrate.Config
	dryRun bool
}

// migrationView is what a migration found and did.
type migrationView struct {
	Rows    []migrate.Row `json:"addresses"`
	Written bool          `json:"written"`
}

func (a *app) migrate(cmd *cobra.Command, m migration, entries []migrate.Entry) error {
	all, err := live.List()
	if err != nil {
		return err
	}
	if m.Carriers, err = all.Carriers(); err != nil {
		return err
	}
	if m.Known, err = a.known(cmd.Context()); err != nil {
		return err
	}
	found, rows, err := migrate.Plan(m.Config, entries)
	if err != nil {
		return err
	}
	v := migrationView{Rows: append([]migrate.Row{}, rows...)}
	if !m.dryRun {
		err := a.with(cmd.Context(), false, func(l book.Book) error { return l.Import(found) })
		if err != nil {
			return err
		}
		v.Written = true
	}
	return a.print(cmd, v, func(t *term.Table) {
		count := map[string]int{}
		t.Row("ADDRESS", "CONTAINER", "IFNAME", "OWNER", "BECOMES", "NETNS", "FROM")
		for _, r := range v.Rows {
			count[r.Becomes]++
			t.Row(r.Address, term.ShortID(r.ContainerID), r.IfName, r.Owner, r.Becomes, r.Netns, r.From)
		}
		verb := "wrote"
		if !v.Written {
			verb = "would write"
		}
		t.Line("%s %s of network %s as held and %d as reserved to the ledger in %q, and left out %d", verb,
			term.Plural(count[migrate.Held], "address", "addresses"), m.Network, count[migrate.Reserved], a.place().DataDir, count[migrate.Dropped])
	})
}

// known is what the ledger has, which may not have been made yet.
func (a *app) known(ctx context.Context) (migrate.Known, error) {
	k := migrate.Known{Records: make(map[netip.Addr]ipam.Record), Attachments: make(map[ipam.Attachment]bool)}
	err := a.view(ctx, func(l book.Book) (err error) {
		if k.Pools, err = l.Pools(); err != nil {
			return err
		}
		err = l.Records(func(r ipam.Record) error {
			if !r.Over(time.Now()) {
				k.Records[r.Address.Addr()] = r
			}
			return nil
		})
		if err != nil {
			return err
		}
		return l.Attachments(func(r ipam.AttachmentRecord) error {
			k.Attachments[r.Attachment] = true
			return nil
		})
	})
	if errors.Is(err, errMissing) {
		err = nil
	}
	return k, err
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
