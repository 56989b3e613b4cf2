package suite

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/e2e/binaries"
)

// TestRun: what goes wrong in a guest is noticed, by the name of the test.
func TestRun(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	results := runFixtures(t, ctx, 5*time.Second, "verdicts", "panics", "exits", "hangs", "leaves", "crashes", "exits")
	const (
		failed  = "failed"
		silent  = "it did not report its end"
		skipped = "skipped, where there is no other kernel to try: "
	)
	type want struct{ failure, output string }
	tests := []struct {
		fixture string
		want    map[string]want
		trouble string
	}{
		{
			fixture: "verdicts",
			want: map[string]want{
				"TestFails":        {failed, "what went wrong"},
				"TestPasses":       {},
				"TestSkips":        {skipped + "TestSkips", "for a reason"},
				"TestSkipsBelow":   {skipped + "TestSkipsBelow/below", "for a reason"},
				"TestSurroundings": {},
			},
		},
		{
			fixture: "panics",
			want:    map[string]want{"TestBefore": {}, "TestPanics": {silent, ""}, "TestXAfter": {silent, ""}},
			trouble: "panic: at the disco",
		},
		{fixture: "exits", want: map[string]want{"TestExits": {silent, ""}}, trouble: "unexpected call to os.Exit(0) during test"},
		{fixture: "hangs", want: map[string]want{"TestHangs": {silent, "about to hang"}}, trouble: "panic: test timed out after 5s"},
		{fixture: "leaves", want: map[string]want{"TestPasses": {}}, trouble: "no test has failed, but the program ended with exit code 3"},
		{fixture: "crashes", want: map[string]want{"TestCrashes": {silent, "about to crash"}}, trouble: "Kernel panic - not syncing: sysrq triggered crash"},
		{
			fixture: "exits", want: map[string]want{"TestExits": {silent, ""}},
			trouble: "its turn in the guest never came: the guest ended while e2e/vm/suite/testdata/crashes ran",
		},
	}
	for i, tt := range tests {
		t.Run(tt.fixture, func(t *testing.T) {
			r := results[i]
			if r.Kernel == "" || r.Kernel == kernel(t) {
				t.Errorf("the kernel is %q", r.Kernel)
			}
			if len(r.Outcomes) != len(tt.want) {
				t.Errorf("got %d outcomes, want %d", len(r.Outcomes), len(tt.want))
			}
			for _, o := range r.Outcomes {
				want, ok := tt.want[o.Test]
				if !ok || o.Failure != want.failure || !strings.Contains(o.Output, want.output) {
					t.Errorf("got %+v, want %+v", o, want)
				}
			}
			if (r.Trouble == "") != (tt.trouble == "") || !strings.Contains(r.Trouble, tt.trouble) {
				t.Errorf("got trouble %q, want %q", r.Trouble, tt.trouble)
			}
		})
	}
}

// A guest that hangs, whatever the reason, is ended.
func TestRunHangs(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	r := runFixtures(t, ctx, time.Hour, "hangs")[0]
	if o := r.Outcomes[0]; o.Failure != "it did not report its end" || !strings.Contains(o.Output, "about to hang") {
		t.Errorf("got %+v", o)
	}
	if !strings.Contains(r.Trouble, context.DeadlineExceeded.Error()) {
		t.Errorf("got trouble %q, want %v", r.Trouble, context.DeadlineExceeded)
	}
}

// runFixtures runs packages of testdata in one guest.
func runFixtures(t *testing.T, ctx context.Context, timeout time.Duration, names ...string) []Result {
	t.Helper()
	root, err := binaries.Root()
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	s := Suite{Root: root, Scratch: t.TempDir(), Guests: 1, Timeout: timeout}
	for _, name := range names {
		p, err := FindIn(root, here+"/testdata/"+name)
		if err != nil {
			t.Fatal(err)
		}
		s.Packages = append(s.Packages, p)
	}
	results, err := s.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// kernel is the version of the machine's kernel.
func kernel(t *testing.T) string {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(name.Release[:])
}
