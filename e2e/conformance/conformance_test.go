// Package conformance runs the test suite of containernetworking/plugins
// v1.9.1's macvlan, 168 specs, against a macvlan binary: every spec has to run
// and to pass. The suite lives in package main beside the reference plugin and
// calls its functions in process; in a copy of the module, testdata/shim.go
// takes the plugin's place and executes the binary.
//
// One thing in the copied tests is changed: the master is a dummy device there,
// and it is down. Not every kernel has dummies, and our macvlan refuses a
// parent that is administratively down, where the reference does not look. So
// the stand-in for the dummy is a bridge that is up. The reference itself is
// held to the same copy, to prove that the copy is fair, and a binary that does
// nothing, to prove that it is strict.
//
// The suite sends no packets and tests neither undo nor GC nor concurrency: it
// is necessary and far from enough.
package conformance

import (
	_ "embed"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/underlay-cni/underlay/e2e/binaries"
)

// specs is what the release has: 8 specs x 7 CNI versions x 3 values of
// linkInContainer. A suite that shrinks must not look like one that passes.
const specs = 168

var plugin = flag.String("plugin", "", "macvlan binary to judge; by default this tree's")

//go:embed testdata/shim.go
var shim []byte

func TestMacvlan(t *testing.T) {
	s := newSuite(t)

	judged := *plugin
	if judged == "" {
		ours := t.TempDir()
		if err := binaries.Ours(t.Context(), ours); err != nil {
			t.Fatal(err)
		}
		judged = filepath.Join(ours, "macvlan")
	}

	t.Run("ours passes", func(t *testing.T) {
		r := s.run(t, judged)
		for _, failure := range r.failures {
			t.Error(failure)
		}
		if r.passed != specs || r.total != specs {
			t.Errorf("%d of %d specs passed, want %d of %d", r.passed, r.total, specs, specs)
		}
		t.Logf("%d of %d specs passed", r.passed, r.total)
	})
	t.Run("the reference passes", func(t *testing.T) {
		if r := s.run(t, filepath.Join(s.bin, "macvlan")); r.passed != specs {
			t.Errorf("%d of %d specs passed: the harness is at fault\n%s",
				r.passed, specs, strings.Join(r.failures, "\n"))
		}
	})
	t.Run("a plugin that does nothing fails", func(t *testing.T) {
		if r := s.run(t, "/bin/true"); r.total != specs || r.passed > specs/4 {
			t.Errorf("%d of %d specs passed: the harness judges nothing", r.passed, r.total)
		}
	})
}

// suite is the compiled suite and the reference binaries.
type suite struct {
	test string // the test binary
	bin  string // folder of the reference's macvlan and host-local
}

// newSuite copies the reference module, changes the copy and compiles it.
func newSuite(t *testing.T) suite {
	t.Helper()
	source, err := binaries.Source(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := suite{bin: t.TempDir()}
	if err := binaries.Reference(t.Context(), s.bin, "./plugins/main/macvlan", "./plugins/ipam/host-local"); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "module")
	if err := os.CopyFS(copied, os.DirFS(source)); err != nil {
		t.Fatal(err)
	}

	folder := filepath.Join(copied, "plugins/main/macvlan")
	if err := os.WriteFile(filepath.Join(folder, "macvlan.go"), shim, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := filepath.Join(folder, "macvlan_test.go")
	text, err := os.ReadFile(tests)
	if err != nil {
		t.Fatal(err)
	}
	text, err = bridgeForDummy(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tests, text, 0o644); err != nil {
		t.Fatal(err)
	}

	s.test = filepath.Join(s.bin, "macvlan.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", s.test, ".")
	build.Dir = folder
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("compile the suite: %v\n%s", err, out)
	}
	return s
}

// bridgeForDummy makes both masters of the suite, the host's and the one in the
// container, bridges that are up from the start.
func bridgeForDummy(tests []byte) ([]byte, error) {
	text := string(tests)
	for _, change := range []struct{ old, new string }{
		{"&netlink.Dummy{", "&netlink.Bridge{"},
		{"linkAttrs := netlink.NewLinkAttrs()", "linkAttrs := netlink.NewLinkAttrs(); linkAttrs.Flags |= net.FlagUp"},
	} {
		if n := strings.Count(text, change.old); n != 2 {
			return nil, fmt.Errorf("the suite has %q %d times, want 2", change.old, n)
		}
		text = strings.ReplaceAll(text, change.old, change.new)
	}
	return []byte(text), nil
}

// result is the suite's verdict on one binary.
type result struct {
	total, passed int      // specs
	failures      []string // one text per spec that did not pass
}

// run lets the suite judge a binary, in a mount and a network namespace of its
// own: the suite makes namespaces under /run/netns.
func (s suite) run(t *testing.T, plugin string) result {
	t.Helper()
	plugin, err := filepath.Abs(plugin)
	if err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(t.TempDir(), "report.json")
	cmd := exec.CommandContext(t.Context(), s.test, "-ginkgo.no-color", "-ginkgo.json-report="+report)
	cmd.Env = append(os.Environ(), "CONFORMANCE_PLUGIN="+plugin, "PATH="+s.bin+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	out, runErr := cmd.CombinedOutput() // fails when a spec fails: the report tells which

	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("no report (%v): %v\n%s", err, runErr, out)
	}
	var suites []struct {
		SpecReports []struct {
			LeafNodeText string
			State        string
			Failure      struct{ Message string }
		}
	}
	if err := json.Unmarshal(text, &suites); err != nil {
		t.Fatalf("read the report: %v", err)
	}
	var r result
	for _, suite := range suites {
		for _, spec := range suite.SpecReports {
			r.total++
			if spec.State == "passed" {
				r.passed++
				continue
			}
			r.failures = append(r.failures, fmt.Sprintf("%s: %s: %s", spec.State, spec.LeafNodeText, spec.Failure.Message))
		}
	}
	return r
}
