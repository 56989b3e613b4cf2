package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// format of the output; it is the value of a flag.
type format string

const (
	asTable format = "table"
	asJSON  format = "json"
)

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }

func (f *format) Set(s string) error {
	switch v := format(s); v {
	case asTable, asJSON:
		*f = v
		return nil
	}
	return fmt.Errorf("%q is neither table nor json", s)
}

// print writes v as JSON, or has people write it for people.
func (a *app) print(cmd *cobra.Command, v any, people func(*table)) error {
	if a.output == asJSON {
		return printJSON(cmd.OutOrStdout(), v)
	}
	t := &table{tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)}
	people(t)
	return t.w.Flush()
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// table aligns the cells of rows. A line without columns ends it; the next
// row begins another one.
type table struct{ w *tabwriter.Writer }

// row prints cells; one that is empty becomes "-".
func (t *table) row(cells ...any) {
	text := make([]string, len(cells))
	for i, c := range cells {
		if text[i] = cell(c); text[i] == "" {
			text[i] = "-"
		}
	}
	fmt.Fprintln(t.w, strings.Join(text, "\t"))
}

// field prints a name and its value, unless that is empty.
func (t *table) field(name string, value any) {
	if text := cell(value); text != "" {
		fmt.Fprintf(t.w, "%s:\t%s\n", name, text)
	}
}

// line prints text beside the columns.
func (t *table) line(format string, args ...any) { fmt.Fprintf(t.w, format+"\n", args...) }

func cell(v any) string {
	switch v := v.(type) {
	case time.Time:
		if v.IsZero() {
			return ""
		}
		return v.UTC().Format(time.RFC3339)
	case interface{ IsValid() bool }: // netip
		if !v.IsValid() {
			return ""
		}
	}
	return fmt.Sprint(v)
}

// shortID is a container ID as people know it: runtimes make 64 hex digits.
func shortID(id string) string {
	const readable, shown = 20, 12
	if len(id) > readable {
		return id[:shown]
	}
	return id
}

// plural counts things for people.
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
