package client

import (
	"errors"
	"os"
	"testing"

	"github.com/containernetworking/plugins/pkg/testutils"
	"golang.org/x/sys/unix"
)

// TestHeldNamespaces: a namespace that no process is in lives for as long as it
// is mounted anywhere or open, and not longer.
func TestHeldNamespaces(t *testing.T) {
	n, err := testutils.NewNS()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(n.Path(), &st); err != nil {
		t.Fatal(err)
	}
	open, err := os.Open(n.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	want := func(what string, want bool) {
		t.Helper()
		held, err := heldNamespaces()
		if err != nil {
			t.Fatal(err)
		}
		if held[st.Ino] != want {
			t.Errorf("%s: held %v, want %v", what, held[st.Ino], want)
		}
		alive, err := livingNamespaces()
		if err != nil {
			t.Fatal(err)
		}
		if alive[[2]uint64{st.Dev, st.Ino}] {
			t.Errorf("%s: a process is in it", what)
		}
	}
	want("mounted and open", true)
	// Not testutils.UnmountNS, which finds what is open busy.
	if err := errors.Join(unix.Unmount(n.Path(), unix.MNT_DETACH), os.Remove(n.Path())); err != nil {
		t.Fatal(err)
	}
	want("open", true)
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	want("gone", false)
}
