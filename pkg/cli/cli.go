// Package cli is the command line underlayctl, `<noun> <verb>`: it shows what
// the ledger of this node holds, checks it and makes it anew, changes the
// list of senders of a source mode link, and writes network configurations.
// What concerns all nodes is in package cluster, what the agent remembers in
// package event.
//
// A file is a noun. Commands ask the agent that has the ledger open; without one
// those that read open it for reading beside the plugins, and create nothing.
// Output goes to stdout, as a table or, for programs, as JSON; errors and hints
// go to stderr.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/cli/book"
	"github.com/underlay-cni/underlay/pkg/cli/cluster"
	"github.com/underlay-cni/underlay/pkg/cli/event"
	"github.com/underlay-cni/underlay/pkg/cli/term"
	"github.com/underlay-cni/underlay/pkg/cli/trace"
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
	a := &app{output: term.AsTable}
	root := a.root()
	root.SetArgs(append([]string{}, args...)) // nil would mean os.Args
	root.SetIn(stdio.In)
	root.SetOut(stdio.Out)
	root.SetErr(stdio.Err)
	cmd, err := root.ExecuteContextC(ctx)
	var usage *term.UsageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage), !a.began:
		if !term.HasHint(err) {
			err = term.Hint(err, "see: %s --help", cmd.CommandPath())
		}
		term.Complain(stdio.Err, err)
		return exitUsage
	}
	term.Complain(stdio.Err, err)
	return exitError
}

// app is what the commands share.
type app struct {
	dataDir, runDir string
	output          term.Format
	// began is set when a command runs: what goes wrong before is usage.
	began bool
}

func (a *app) root() *cobra.Command {
	root := term.Noun("underlayctl", "Show and repair what underlay keeps, on this node and in its cluster",
		a.address(), a.attachment(), a.conf(), a.conflict(), a.ledger(), a.pool(), a.source(), a.version())
	root.AddCommand(a.cluster().Nouns()...)
	root.AddCommand(event.Commands{RunDir: func() string { return a.place().RunDir }, Output: &a.output}.Noun())
	root.AddCommand(trace.Command{RunDir: func() string { return a.place().RunDir }, View: a.view, Output: &a.output}.Verb())
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetUsageTemplate(term.UsageTemplate)
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

// cluster are the commands that ask the registry of the cluster.
func (a *app) cluster() cluster.Commands {
	return cluster.Commands{RunDir: func() string { return a.place().RunDir }, Output: &a.output}
}

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
	if err := client.Elsewhere(o); err != nil {
		return term.Hint(err, "give --run-dir")
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
		return term.Hint(err, "the first ADD makes it; --data-dir names another folder")
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return f(l)
}

// print writes v as JSON, or has people write it for people.
func (a *app) print(cmd *cobra.Command, v any, people func(*term.Table)) error {
	return term.Print(cmd.OutOrStdout(), a.output, v, people)
}
