package nlsock

import (
	"os"
	"testing"

	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
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

// ip runs commands of ip in the namespace, one a line.
func ip(t testing.TB, n *netns.NS, commands string) {
	t.Helper()
	netnstest.Batch(t, n, "ip", commands)
}
