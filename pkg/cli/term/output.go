package term

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Format of the output; it is the value of a flag.
type Format string

// Formats.
const (
	AsTable Format = "table"
	AsJSON  Format = "json"
)

// String implements pflag.Value.
func (f *Format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *Format) Type() string { return "format" }

// Set implements pflag.Value.
func (f *Format) Set(s string) error {
	switch v := Format(s); v {
	case AsTable, AsJSON:
		*f = v
		return nil
	}
	return fmt.Errorf("%q is neither table nor json", s)
}

// Print writes v as JSON, or has people write it for people.
func Print(w io.Writer, f Format, v any, people func(*Table)) error {
	if f == AsJSON {
		return JSON(w, v)
	}
	t := &Table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	people(t)
	return t.w.Flush()
}

// JSON writes v for programs.
func JSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// Table aligns the cells of rows. A line without columns ends it; the next
// row begins another one.
type Table struct{ w *tabwriter.Writer }

// Row prints cells; one that is empty becomes "-".
func (t *Table) Row(cells ...any) {
	text := make([]string, len(cells))
	for i, c := range cells {
		if text[i] = cell(c); text[i] == "" {
			text[i] = "-"
		}
	}
	fmt.Fprintln(t.w, strings.Join(text, "\t"))
}

// Field prints a name and its value, unless that is empty.
func (t *Table) Field(name string, value any) {
	if text := cell(value); text != "" {
		fmt.Fprintf(t.w, "%s:\t%s\n", name, text)
	}
}

// Line prints text beside the columns.
func (t *Table) Line(format string, args ...any) { fmt.Fprintf(t.w, format+"\n", args...) }

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

// ShortID is a container ID as people know it: runtimes make 64 hex digits.
func ShortID(id string) string {
	const readable, shown = 20, 12
	if len(id) > readable {
		return id[:shown]
	}
	return id
}

// Plural counts things for people.
func Plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
