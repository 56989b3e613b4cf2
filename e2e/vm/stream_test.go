package vm

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

func TestSplit(t *testing.T) {
	t.Parallel()
	const mark = "\x00MARK"
	tests := []struct {
		name  string
		line  string
		jobs  int
		exits []int
		outs  []string
		err   error
	}{
		{name: "two jobs", line: "one\x00MARK000two\x00MARK137", jobs: 2, exits: []int{0, 137}, outs: []string{"one", "two"}},
		{name: "silence", line: "\x00MARK001\x00MARK002", jobs: 2, exits: []int{1, 2}, outs: []string{"", ""}},
		{name: "what looks like a mark", line: "\x00\x00MARC000\x00MAR\x00\x00MARK003", jobs: 1, exits: []int{3}, outs: []string{"\x00\x00MARC000\x00MAR\x00"}},
		{name: "an end within a job", line: "one\x00MARK000two", jobs: 2, exits: []int{0}, outs: []string{"one", "two"}, err: io.ErrUnexpectedEOF},
		{name: "an end within a mark", line: "one\x00MARK00", jobs: 1, outs: []string{"one\x00MARK00"}, err: io.ErrUnexpectedEOF},
		{name: "more than there are jobs", line: "one\x00MARK000two", jobs: 1, exits: []int{0}, outs: []string{"one"}},
	}
	for _, tt := range tests {
		for name, reader := range map[string]func(io.Reader) io.Reader{
			"at once":       func(r io.Reader) io.Reader { return r },
			"bytes":         iotest.OneByteReader,
			"error at once": iotest.DataErrReader,
		} {
			t.Run(tt.name+", "+name, func(t *testing.T) {
				t.Parallel()
				outs := make([]string, tt.jobs)
				exits, err := split(reader(strings.NewReader(tt.line)), mark, tt.jobs, func(job int, p []byte) error {
					outs[job] += string(p)
					return nil
				})
				if !errors.Is(err, tt.err) || (err != nil) != (tt.err != nil) {
					t.Errorf("got error %v, want %v", err, tt.err)
				}
				if diff := cmp.Diff(tt.exits, exits); diff != "" {
					t.Errorf("exit codes (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(tt.outs, outs); diff != "" {
					t.Errorf("output (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// What is printed is passed on at once, as far as it is no part of a mark.
func TestSplitIsPrompt(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	got := make(chan string)
	go func() {
		_, err := split(r, "\x00MARK", 1, func(_ int, p []byte) error {
			got <- string(p)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		close(got)
	}()
	for _, step := range []struct{ write, want string }{
		{"line\n", "line\n"},
		{"zero\x00", "zero"},
		{"M ends here, after enough", "\x00M ends here, after enough"},
	} {
		if _, err := io.WriteString(w, step.write); err != nil {
			t.Fatal(err)
		}
		if text := <-got; text != step.want {
			t.Errorf("after %q: got %q, want %q", step.write, text, step.want)
		}
	}
	if _, err := io.WriteString(w, "\x00MARK000"); err != nil {
		t.Fatal(err)
	}
	if text, more := <-got; more {
		t.Errorf("got %q of a mark", text)
	}
}

// A job whose writer fails does not keep the guest from going on.
func TestSplitWriteFails(t *testing.T) {
	t.Parallel()
	full := errors.New("full")
	exits, err := split(strings.NewReader("one\x00MARK000two\x00MARK001"), "\x00MARK", 2, func(int, []byte) error { return full })
	if !errors.Is(err, full) {
		t.Errorf("got error %v, want %v", err, full)
	}
	if diff := cmp.Diff([]int{0, 1}, exits); diff != "" {
		t.Errorf("exit codes (-want +got):\n%s", diff)
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	var end tail
	for range 1000 {
		if _, err := end.Write(bytes.Repeat([]byte("-"), 999)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(&end, "last\r\nline"); err != nil {
		t.Fatal(err)
	}
	if text := end.String(); !strings.HasSuffix(text, "-last\nline") || len(text) < 8<<10 || len(text) > 32<<10 {
		t.Errorf("kept %d bytes, which end %q", len(text), text[len(text)-10:])
	}
}
