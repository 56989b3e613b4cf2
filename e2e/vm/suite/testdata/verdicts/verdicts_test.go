// Package verdicts has tests that end in every way a test can.
package verdicts

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

func TestPasses(t *testing.T) {
	linktest.Need(t, "dummy", "ipvlan", "iptables", "vlan", "vrf")
}

func TestSurroundings(t *testing.T) {
	linktest.Need(t)
	here, err := os.Getwd()
	if err != nil || filepath.Base(here) != "verdicts" {
		t.Errorf("runs in %q, %v", here, err)
	}
	if os.Getenv(linktest.Guest) == "" {
		t.Error("is not told that this is the guest")
	}
	reference, ours := t.TempDir(), t.TempDir()
	if err := binaries.Reference(t.Context(), reference, "./plugins/main/ipvlan"); err != nil {
		t.Error(err)
	}
	if err := binaries.Ours(t.Context(), ours, "TAGS=faultpoint"); err != nil {
		t.Error(err)
	}
	for _, program := range []string{reference + "/ipvlan", ours + "/underlayctl"} {
		if _, err := os.Stat(program); err != nil {
			t.Error(err)
		}
	}
}

func TestFails(t *testing.T) {
	linktest.Need(t)
	t.Run("below", func(t *testing.T) { t.Error("what went wrong") })
}

func TestSkips(t *testing.T) {
	linktest.Need(t)
	t.Skip("for a reason")
}

func TestSkipsBelow(t *testing.T) {
	linktest.Need(t)
	t.Run("below", func(t *testing.T) { t.Skip("for a reason") })
}

func TestOfTheMachine(t *testing.T) {
	t.Error("nobody wants this run in the guest")
}
