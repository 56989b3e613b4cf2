package conformance

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/e2e/vm"
)

//go:embed testdata/shim.go
var shim []byte

// suite is the compiled tests of a reference plugin, and the reference binaries.
type suite struct {
	plugin string
	test   string   // the test binary
	bin    string   // folder of the reference plugin and host-local
	flags  []string // more of the test binary
}

// change is one of the copied tests: old is there so many times.
type change struct {
	old, new string
	times    int
}

// newSuite copies the reference module, changes the copy and compiles it.
func newSuite(t *testing.T, plugin string, changes ...change) *suite {
	t.Helper()
	source, err := binaries.Source(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := &suite{plugin: plugin, bin: t.TempDir()}
	if err := binaries.Reference(t.Context(), s.bin, "./plugins/main/"+plugin, "./plugins/ipam/host-local"); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "module")
	if err := os.CopyFS(copied, os.DirFS(source)); err != nil {
		t.Fatal(err)
	}

	folder := filepath.Join(copied, "plugins", "main", plugin)
	if err := os.WriteFile(filepath.Join(folder, plugin+".go"), shim, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := filepath.Join(folder, plugin+"_test.go")
	text, err := os.ReadFile(tests)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		if n := strings.Count(string(text), c.old); n != c.times {
			t.Fatalf("the suite has %q %d times, want %d", c.old, n, c.times)
		}
		text = []byte(strings.ReplaceAll(string(text), c.old, c.new))
	}
	if err := os.WriteFile(tests, text, 0o644); err != nil {
		t.Fatal(err)
	}

	s.test = filepath.Join(s.bin, plugin+".test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", s.test, ".")
	build.Dir = folder
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("compile the suite: %v\n%s", err, out)
	}
	return s
}

// place is where a suite runs: it starts a program with an environment, in a
// mount and a network namespace of its own.
type place func(ctx context.Context, stdout, stderr io.Writer, env []string, args ...string) error

func onMachine(ctx context.Context, stdout, stderr io.Writer, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	return cmd.Run()
}

// inGuest needs no namespaces: the guest is as good.
func inGuest(ctx context.Context, stdout, stderr io.Writer, env []string, args ...string) error {
	exits, err := vm.Run(ctx, vm.Job{Args: args, Env: env, Stdout: stdout, Stderr: stderr})
	if err == nil && exits[0] != 0 {
		err = fmt.Errorf("exit status %d", exits[0])
	}
	return err
}

// script runs a suite and prints the kernel's version and the report. The names
// of namespaces, the ledger and temporary files go with it.
const script = `
set -e
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
mount -t tmpfs tmpfs /var/lib
mkdir /var/lib/tmp
export TMPDIR=/var/lib/tmp
"$@" -ginkgo.no-color -ginkgo.json-report=/var/lib/report >&2 || true # the report tells
uname -r
cat /var/lib/report
`

// result is the suite's verdict on one binary.
type result struct {
	kernel        string   // version
	total, passed int      // specs
	failures      []string // one text per spec that did not pass
}

// run lets the suite judge a binary.
func (s *suite) run(t *testing.T, at place, plugin string) result {
	t.Helper()
	plugin, err := filepath.Abs(plugin)
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"CONFORMANCE_PLUGIN=" + plugin, "PATH=" + s.bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	var out, complaint bytes.Buffer
	args := slices.Concat([]string{"/bin/sh", "-c", script, "sh", s.test}, s.flags)
	runErr := at(t.Context(), &out, &complaint, env, args...)

	kernel, err := out.ReadString('\n')
	if err != nil {
		t.Fatalf("no report (%v): %v\n%s", err, runErr, complaint.Bytes())
	}
	var suites []struct {
		SpecReports []struct {
			LeafNodeText string
			State        string
			Failure      struct{ Message string }
		}
	}
	if err := json.Unmarshal(out.Bytes(), &suites); err != nil {
		t.Fatalf("read the report: %v: %v\n%s", err, runErr, complaint.Bytes())
	}
	r := result{kernel: strings.TrimSpace(kernel)}
	for _, suite := range suites {
		for _, spec := range suite.SpecReports {
			switch spec.State {
			case "skipped": // by flags
				continue
			case "passed":
				r.passed++
			default:
				r.failures = append(r.failures, fmt.Sprintf("%s: %s: %s", spec.State, spec.LeafNodeText, spec.Failure.Message))
			}
			r.total++
		}
	}
	return r
}
