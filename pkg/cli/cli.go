// Package cli is the command line underlayctl, `<noun> <verb>`: it shows what
// the ledger of this node holds, checks it and makes it anew, changes the
// list of senders of a source mode link, and writes network configurations.
//
// A file is a noun. Commands ask the agent that has the ledger open; without one
// those that read open it for reading beside the plugins, and create nothing. Output goes to stdout, as a table or, for
// programs, as JSON; errors and hints go to stderr.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/cli/book"
)

// Stdio are the streams of a run.
type Stdio struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
}

// Exit statuses of Run.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// patience is how long a command waits for the ledger while others have it.
const patience = 30 * time.Second

// Run runs one command line, given without the program's name, and returns
// its exit status: 0 when all is well, 1 on an error or when a check has
// found something, 2 when the command line itself is wrong.
func Run(ctx context.Context, args []string, stdio Stdio) int {
	a := &app{output: asTable}
	root := a.root()
	root.SetArgs(append([]string{}, args...)) // nil would mean os.Args
	root.SetIn(stdio.In)
	root.SetOut(stdio.Out)
	root.SetErr(stdio.Err)
	cmd, err := root.ExecuteContextC(ctx)
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage), !a.began:
		if !hasHint(err) {
			err = hint(err, "see: %s --help", cmd.CommandPath())
		}
		complain(stdio.Err, err)
		return exitUsage
	}
	complain(stdio.Err, err)
	return exitError
}

// app is what the commands share.
type app struct {
	dataDir, runDir string
	output          format
	// began is set when a command runs: what goes wrong before is usage.
	began bool
}

func (a *app) root() *cobra.Command {
	root := noun("underlayctl", "Show and repair what underlay keeps on this node",
		a.address(), a.attachment(), a.conf(), a.ledger(), a.pool(), a.source(), a.version())
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetUsageTemplate(usageTemplate)
	flags := root.PersistentFlags()
	flags.StringVar(&a.dataDir, "data-dir", "", "`folder` of the ledger (default "+ipam.DefaultDataDir+")")
	flags.StringVar(&a.runDir, "run-dir", "", "`folder` of what a reboot forgets (default follows from --data-dir)")
	flags.VarP(&a.output, "output", "o", "print a table or json")
	a.markBegin(root)
	return root
}

// markBegin has every command under c set a.began.
func (a *app) markBegin(c *cobra.Command) {
	if run := c.RunE; run != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			a.began = true
			return run(cmd, args)
		}
	}
	for _, sub := range c.Commands() {
		a.markBegin(sub)
	}
}

// noun is a command that only has verbs.
func noun(name, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: name, Short: short, Args: cobra.ArbitraryArgs, SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return misuse("%s needs a command", cmd.CommandPath())
			}
			err := misuse("%s has no command %q", cmd.CommandPath(), args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return hint(err, "did you mean %s?", strings.Join(near, " or "))
			}
			return err
		},
	}
	c.AddCommand(verbs...)
	return c
}

const usageTemplate = `Usage:
  {{if .HasAvailableSubCommands}}{{.CommandPath}} COMMAND{{else}}{{.UseLine}}{{end}}
{{- if .HasExample}}

Example:
{{.Example}}
{{- end}}
{{- if .HasAvailableSubCommands}}

Commands:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{- end}}
{{- if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}
{{- end}}
{{- if .HasAvailableInheritedFlags}}

Global flags:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}
{{- end}}
`

// place says where the ledger is.
func (a *app) place() ledger.Options { return client.New(a.dataDir, a.runDir).Options() }

// view runs f on the ledger: the agent's, or the file opened for reading.
func (a *app) view(ctx context.Context, f func(book.Book) error) error {
	return a.with(ctx, true, f)
}

// update runs f on the ledger, for writing; it makes none.
func (a *app) update(ctx context.Context, f func(book.Book) error) error {
	if err := a.view(ctx, func(book.Book) error { return nil }); err != nil {
		return err
	}
	return a.with(ctx, false, f)
}

// errMissing is returned by view and update where no ledger has been.
var errMissing = errors.New("does not exist")

func (a *app) with(ctx context.Context, reading bool, f func(book.Book) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	o := a.place()
	o.ReadOnly = reading
	err := ask(ctx, o, f)
	if !errors.Is(err, book.ErrNoAgent) {
		return err
	}
	err = open(ctx, o, f)
	if !errors.Is(err, ledger.ErrLocked) {
		return err
	}
	// An agent that has come meanwhile keeps it.
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if aerr := ask(ctx, o, f); !errors.Is(aerr, book.ErrNoAgent) {
		return aerr
	}
	return err
}

func ask(ctx context.Context, o ledger.Options, f func(book.Book) error) error {
	b, err := book.Ask(ctx, o)
	if err != nil {
		return err
	}
	defer b.Close()
	return f(b)
}

func open(ctx context.Context, o ledger.Options, f func(book.Book) error) (err error) {
	l, err := ledger.Open(ctx, o)
	if errors.Is(err, os.ErrNotExist) && !errors.Is(err, ledger.ErrLost) {
		err = fmt.Errorf("ledger in %q %w", o.DataDir, errMissing)
		return hint(err, "the first ADD makes it; --data-dir names another folder")
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return f(l)
}

// usageError is a mistake in the command line.
type usageError struct{ error }

func misuse(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

func (e *usageError) Unwrap() error { return e.error }

// hinted is an error with what to do next.
type hinted struct {
	error
	hint string
}

func hint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}

func (e *hinted) Unwrap() error { return e.error }

func hasHint(err error) bool {
	var h *hinted
	return errors.As(err, &h)
}

// complain prints an error and, on a line of its own, its hint.
func complain(w io.Writer, err error) {
	var h *hinted
	var l *ipam.LedgerError
	text, todo := err.Error(), ""
	switch {
	case errors.As(err, &h):
		todo = h.hint
	case errors.As(err, &l) && l.Hint != "":
		text, todo = strings.Replace(text, "; "+l.Hint, "", 1), l.Hint
	}
	fmt.Fprintf(w, "underlayctl: %s\n", text)
	if todo != "" {
		fmt.Fprintf(w, "underlayctl: hint: %s\n", todo)
	}
}
