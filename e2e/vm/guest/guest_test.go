// Package guest runs every test of this module that needs a kernel with
// everything, those that call linktest.Need, in guests of e2e/vm. Each is a
// subtest here.
package guest

import (
	"context"
	"flag"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/e2e/vm/suite"
)

var only = flag.String("tests", "", "regular expression of the tests to run in the guest, as in \"pkg/link.TestHolder\"; all by default")

func TestGuest(t *testing.T) {
	root, err := binaries.Root()
	if err != nil {
		t.Fatal(err)
	}
	packages, err := suite.Find(root)
	if err != nil {
		t.Fatal(err)
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range packages {
		packages[i].Tests = slices.DeleteFunc(p.Tests, func(test string) bool { return !wanted.MatchString(p.Dir + "." + test) })
	}
	packages = slices.DeleteFunc(packages, func(p suite.Package) bool { return len(p.Tests) == 0 })
	if len(packages) == 0 {
		t.Fatalf("found no test that calls linktest.Need and matches %q", *only)
	}

	results, err := suite.Suite{Root: root, Scratch: t.TempDir(), Guests: 2, Timeout: 10 * time.Minute, Packages: packages}.Run(until(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		t.Run(r.Dir, func(t *testing.T) {
			t.Logf("guest %s (this machine: %s): %s: %s", r.Kernel, kernel(t), r.Dir, strings.Join(r.Tests, " "))
			for _, o := range r.Outcomes {
				t.Run(o.Test, func(t *testing.T) {
					if o.Failure != "" {
						t.Errorf("%s\n%s", o.Failure, o.Output)
					}
				})
			}
			if r.Trouble != "" {
				t.Error(r.Trouble)
			}
		})
	}
}

// until ends the guests in time to tell how far they have come.
func until(t *testing.T) context.Context {
	t.Helper()
	deadline, ok := t.Deadline()
	if !ok {
		return t.Context()
	}
	ctx, cancel := context.WithDeadline(t.Context(), deadline.Add(-20*time.Second))
	t.Cleanup(cancel)
	return ctx
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
