package nlsock

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
)

// Tests build messages without a socket too.
func TestMain(m *testing.M) {
	byteOrder()
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantError compares what a person reads; "" means success.
func wantError(t testing.TB, err error, want string) {
	t.Helper()
	got := ""
	if err != nil {
		got = err.Error()
	}
	if got != want {
		t.Errorf("got error\n%q, want\n%q", got, want)
	}
}

// newNS is a namespace that nothing but its handle keeps.
func newNS(t testing.TB) *netns.NS {
	t.Helper()
	here, err := netns.Open("/proc/thread-self/ns/net")
	must(t, err)
	defer here.Close()
	var n *netns.NS
	must(t, here.Do(func() error { // on a thread that ends with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n, err = netns.Open("/proc/thread-self/ns/net")
		}
		return err
	}))
	t.Cleanup(func() { must(t, n.Close()) })
	return n
}

// ip runs commands of ip in the namespace, one a line.
func ip(t testing.TB, n *netns.NS, commands string) {
	t.Helper()
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	var said strings.Builder
	cmd.Stderr = &said
	if err := n.Do(cmd.Run); err != nil {
		t.Fatalf("ip: %v, %s", err, said.String())
	}
}
