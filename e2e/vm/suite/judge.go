package suite

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// Outcome is what became of one test.
type Outcome struct {
	Test string
	// Failure says why it does not count as passed; empty if it does.
	Failure string
	// Output is what it and its subtests printed.
	Output string
}

// event is what test2json says of a test.
type event struct {
	Action string // "pass", "fail", "skip", "output" among others
	Test   string // empty for the package
	Output string
}

// judge tells what became of a part's tests, and what else went wrong.
func judge(ctx context.Context, p *part) (outcomes []Outcome, trouble string, err error) {
	if len(p.Tests) == 0 {
		return nil, "", nil
	}
	events, err := events(ctx, p.stdout.Bytes())
	if err != nil {
		return nil, "", fmt.Errorf("read what the tests of %s printed: %w", p.Dir, err)
	}
	failed := false
	for _, name := range p.Tests {
		o := outcome(name, events)
		failed = failed || o.Failure != ""
		outcomes = append(outcomes, o)
	}
	switch {
	case p.err != nil:
		trouble = p.err.Error() + "\n"
	case p.exit != 0 && !failed:
		trouble = fmt.Sprintf("no test has failed, but the program ended with exit code %d\n%s", p.exit, output(events, ""))
	}
	// A panic writes its trace there.
	if (failed || trouble != "") && p.stderr.Len() > 0 {
		trouble += "stderr:\n" + p.stderr.String()
	}
	return outcomes, trouble, nil
}

// outcome is what the events say of a test.
func outcome(name string, events []event) Outcome {
	o := Outcome{Test: name, Failure: "it did not report its end", Output: output(events, name)}
	var skipped []string
	for _, e := range events {
		if !within(e.Test, name) {
			continue
		}
		switch {
		case e.Action == "skip":
			skipped = append(skipped, e.Test)
		case e.Test != name:
			// That a subtest fails, the test says.
		case e.Action == "pass":
			o.Failure = ""
		case e.Action == "fail":
			o.Failure = "failed"
		}
	}
	if len(skipped) > 0 {
		o.Failure = "skipped, where there is no other kernel to try: " + strings.Join(skipped, ", ")
	}
	return o
}

// within says whether a test is the named one or a subtest of it. Within ""
// is only what belongs to no test.
func within(test, name string) bool {
	return test == name || name != "" && strings.HasPrefix(test, name+"/")
}

// output is what was printed within a test, but for the notes of who runs.
func output(events []event, name string) string {
	var text strings.Builder
	for _, e := range events {
		if e.Action == "output" && within(e.Test, name) && !strings.HasPrefix(e.Output, "=== ") {
			text.WriteString(e.Output)
		}
	}
	return text.String()
}

// events has test2json read what a test program printed.
func events(ctx context.Context, printed []byte) ([]event, error) {
	convert := exec.CommandContext(ctx, "go", "tool", "test2json")
	convert.Stdin = bytes.NewReader(printed)
	var complaint bytes.Buffer
	convert.Stderr = &complaint
	out, err := convert.Output()
	if err != nil {
		return nil, fmt.Errorf("test2json: %w\n%s", err, complaint.Bytes())
	}
	var found []event
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var e event
		if err := decoder.Decode(&e); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return nil, err
		}
		found = append(found, e)
	}
}
