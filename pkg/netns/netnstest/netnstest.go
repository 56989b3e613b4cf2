// Package netnstest gives tests network namespaces of their own, and runs
// programs in them. Nothing but a handle keeps such a namespace: it has no name,
// and is gone with the test even if that is killed. It needs root.
package netnstest

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
)

// New makes a namespace, with nothing in it but lo, that lasts as long as the
// test.
func New(t testing.TB) *netns.NS {
	t.Helper()
	const own = "/proc/thread-self/ns/net"
	here, err := netns.Open(own)
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	var n *netns.NS
	err = here.Do(func() error { // on a thread that ends with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n, err = netns.Open(own)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// Batch runs commands of ip, bridge or another program that takes them from
// stdin with -batch, one a line, and returns what it prints.
func Batch(t testing.TB, n *netns.NS, program, commands string) string {
	t.Helper()
	cmd := exec.Command(program, "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	return run(t, n, cmd, commands)
}

// Run runs a program and returns what it prints.
func Run(t testing.TB, n *netns.NS, program string, args ...string) string {
	t.Helper()
	return run(t, n, exec.Command(program, args...), strings.Join(args, " "))
}

func run(t testing.TB, n *netns.NS, cmd *exec.Cmd, what string) string {
	t.Helper()
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := n.Do(cmd.Run); err != nil {
		t.Fatalf("%s %s: %v, %s", cmd.Args[0], what, err, said.String())
	}
	return out.String()
}
