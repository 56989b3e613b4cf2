// Package term is how the commands of underlayctl speak: nouns and verbs,
// tables for people and JSON for programs, errors with a hint. It knows nothing
// of what they say.
package term

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
)

// Noun is a command that only has verbs.
func Noun(name, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: name, Short: short, Args: cobra.ArbitraryArgs, SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return Misuse("%s needs a command", cmd.CommandPath())
			}
			err := Misuse("%s has no command %q", cmd.CommandPath(), args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return Hint(err, "did you mean %s?", strings.Join(near, " or "))
			}
			return err
		},
	}
	c.AddCommand(verbs...)
	return c
}

// UsageTemplate is that of the commands, with an example before the flags.
const UsageTemplate = `Usage:
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

// UsageError is a mistake in the command line.
type UsageError struct{ error }

// Misuse returns a UsageError.
func Misuse(format string, args ...any) error { return Usage(fmt.Errorf(format, args...)) }

// Usage makes a UsageError of an error.
func Usage(err error) error { return &UsageError{err} }

func (e *UsageError) Unwrap() error { return e.error }

// hinted is an error with what to do next.
type hinted struct {
	error
	hint string
}

// Hint adds to an error what to do next.
func Hint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}

func (e *hinted) Unwrap() error { return e.error }

// HasHint reports whether an error says already what to do next.
func HasHint(err error) bool {
	var h *hinted
	return errors.As(err, &h)
}

// Complain prints an error and, on a line of its own, its hint.
func Complain(w io.Writer, err error) {
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
