package vm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// enough for a guest that does what it should, on a busy machine.
const enough = 2 * time.Minute

// sh is a job that runs a script.
func sh(script string, args ...string) Job {
	return Job{Args: slices.Concat([]string{"sh", "-c", script, "sh"}, args)}
}

func TestRun(t *testing.T) {
	t.Parallel()
	random := filepath.Join(t.TempDir(), "it's 3 MB")
	content := make([]byte, 3<<20)
	_, _ = rand.Read(content)
	if err := os.WriteFile(random, content, 0o600); err != nil {
		t.Fatal(err)
	}
	words := []string{"", "two words", "it's", `"$HOME" \n`, "line\nfeed", "*"}
	tests := []struct {
		name           string
		job            Job
		exit           int
		stdout, stderr string
	}{
		{name: "both streams", job: sh("echo to stdout; echo to stderr >&2"), stdout: "to stdout\n", stderr: "to stderr\n"},
		{name: "exit code", job: sh("printf partial; exit 3"), exit: 3, stdout: "partial"},
		{name: "killed", job: sh("kill -KILL $$"), exit: 137},
		{name: "no such program", job: Job{Args: []string{"/nowhere/program"}}, exit: 127, stderr: "env: '/nowhere/program': No such file or directory\n"},
		{name: "folder", job: Job{Args: []string{"pwd"}, Dir: "/usr/bin"}, stdout: "/usr/bin\n"},
		{name: "no folder", job: Job{Args: []string{"pwd"}}, stdout: "/\n"},
		{name: "words", job: sh(`printf '[%s]' "$@"`, words...), stdout: "[" + strings.Join(words, "][") + "]"},
		{
			name: "environment", job: Job{Args: []string{"env"}, Env: []string{"COLOUR=light blue", "TMPDIR=/run"}},
			stdout: "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOME=/run/home\nTMPDIR=/run\nCOLOUR=light blue\n",
		},
		{name: "no input", job: Job{Args: []string{"cat"}}},
		{name: "every byte", job: Job{Args: []string{"cat", random}}, stdout: string(content)},
		{name: "what is left behind in files", job: sh(`echo mine > "$TMPDIR/file"`)},
		{name: "stays for the next", job: sh(`cat "$TMPDIR/file"`), stdout: "mine\n"},
		{name: "what is left running", job: sh("sleep 1000 & echo $! > /run/left")},
		{name: "is killed", job: sh("kill -0 $(cat /run/left) 2>/dev/null"), exit: 1},
		{name: "files of the machine", job: sh("echo changed > " + quote(random)), exit: 2, stderr: "sh: 1: cannot create " + random + ": Read-only file system\n"},
		{name: "names of namespaces", job: sh("ip netns add a && ip netns exec a ip link set lo up && ip netns delete a && ls /run/netns")},
		{name: "modules", job: sh(`ip link add dummy1 type dummy && ip link add red type vrf table 5 &&
			ip link add link dummy1 name dummy1.5 type vlan id 5 && ip link add link dummy1 name child type ipvlan mode l3s &&
			iptables-legacy -t nat -A POSTROUTING -j MASQUERADE && ls -1 /sys/class/net`), stdout: "child\ndummy1\ndummy1.5\nlo\nred\n"},
		{name: "the kernel still does after a job", job: sh("iptables-legacy -t nat -S POSTROUTING"), stdout: "-P POSTROUTING ACCEPT\n-A POSTROUTING -j MASQUERADE\n"},
		{name: "last words", job: sh("printf bye"), stdout: "bye"},
	}
	jobs := make([]Job, len(tests))
	outs := make([][2]bytes.Buffer, len(tests))
	var want []int
	for i, tt := range tests {
		jobs[i] = tt.job
		jobs[i].Stdout, jobs[i].Stderr = &outs[i][0], &outs[i][1]
		want = append(want, tt.exit)
	}
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	exits, err := Run(ctx, jobs...)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, exits); diff != "" {
		t.Errorf("exit codes (-want +got):\n%s", diff)
	}
	for i, tt := range tests {
		if got := outs[i][0].String(); got != tt.stdout {
			t.Errorf("%s: stdout is %.200q, want %.200q", tt.name, got, tt.stdout)
		}
		if got := outs[i][1].String(); got != tt.stderr {
			t.Errorf("%s: stderr is %q, want %q", tt.name, got, tt.stderr)
		}
	}
	if now, err := os.ReadFile(random); err != nil || !bytes.Equal(now, content) {
		t.Errorf("the guest has changed a file of the machine: %v", err)
	}
}

// What is printed is there while the job runs: the test learns so when to end it.
func TestRunStopped(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeoutCause(t.Context(), enough, errors.New("too late"))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	enoughSeen := errors.New("enough seen")
	hung := sh("echo I hang >&2; while :; do :; done")
	hung.Stderr = writer(func(p []byte) {
		if string(p) == "I hang\n" {
			stop(enoughSeen)
		}
	})
	exits, err := Run(ctx, sh("exit 7"), hung, sh("never"))
	if diff := cmp.Diff([]int{7}, exits); diff != "" {
		t.Errorf("exit codes (-want +got):\n%s", diff)
	}
	if !errors.Is(err, enoughSeen) || !strings.Contains(err.Error(), "I hang") {
		t.Errorf("got error %v, want %v and the job", err, enoughSeen)
	}
}

func TestRunPanic(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	crash := sh("printf 'last words'; echo c > /proc/sysrq-trigger; sleep 1000")
	crash.Stdout = &out
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	exits, err := Run(ctx, sh("exit 7"), crash, sh("never"))
	if diff := cmp.Diff([]int{7}, exits); diff != "" {
		t.Errorf("exit codes (-want +got):\n%s", diff)
	}
	if err == nil || !strings.Contains(err.Error(), "Kernel panic - not syncing: sysrq triggered crash") || !strings.Contains(err.Error(), "exit status 134") {
		t.Errorf("got error %v, want the panic", err)
	}
	if out.String() != "last words" {
		t.Errorf("stdout is %q, want what was printed before the panic", out.String())
	}
}

// A guest whose first process cannot go on.
func TestBootFails(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	g, err := boot(ctx, t.TempDir(), "#!/bin/sh\necho there is no hope\nexit 3\n")
	if err != nil {
		t.Fatal(err)
	}
	defer g.closeLines()
	var exit *exec.ExitError
	if err := g.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 134 {
		t.Errorf("ended with %v, want exit code 134", err)
	}
	for _, want := range []string{"there is no hope\n", "Attempted to kill init"} {
		if !strings.Contains(g.console.String(), want) {
			t.Errorf("the console has no %q:\n%s", want, g.console.String())
		}
	}
}

// abandon is set for a process that starts a guest and is to be killed then.
const abandon = "UNDERLAY_VM_ABANDON"

// Whoever started a guest may be killed; the guest must not outlive it.
func TestAbandoned(t *testing.T) {
	t.Parallel()
	scratch := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), abandon+"=1", "TMPDIR="+scratch)
	said, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil || line != "waiting\n" {
		t.Errorf("read %q, %v from the guest", line, err)
	}
	if len(processes(scratch)) == 0 {
		t.Error("found no process of the guest: does the test look in the right place?")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for deadline := time.Now().Add(10 * time.Second); len(processes(scratch)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the guest lives on: %q", processes(scratch))
		}
	}
}

// TestMain sees to it that no guest leaves anything behind.
func TestMain(m *testing.M) {
	if os.Getenv(abandon) != "" {
		waiting := sh("echo waiting; while :; do sleep 1000; done")
		waiting.Stdout = os.Stdout
		_, err := Run(context.Background(), waiting)
		panic(err)
	}
	scratch, err := os.MkdirTemp("", "underlay-vm-test-")
	if err != nil {
		panic(err)
	}
	os.Setenv("TMPDIR", scratch)
	code := m.Run()
	left, err := os.ReadDir(scratch)
	running := processes(scratch)
	mounts, mountsErr := os.ReadFile("/proc/self/mountinfo")
	if err := errors.Join(err, mountsErr, os.RemoveAll(scratch)); err != nil || len(left)+len(running) > 0 || bytes.Contains(mounts, []byte(scratch)) {
		fmt.Fprintf(os.Stderr, "left behind: files %v, processes %q; mounts:\n%s%v\n", left, running, mounts, err)
		code = 1
	}
	os.Exit(code)
}

// processes are those whose command line names a folder.
func processes(folder string) []string {
	found := []string{}
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		// Those that have ended meanwhile have none.
		if line, _ := os.ReadFile(path); bytes.Contains(line, []byte(folder)) {
			program, _, _ := strings.Cut(string(line), "\x00")
			found = append(found, filepath.Base(filepath.Dir(path))+" "+program)
		}
	}
	return found
}

type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}
