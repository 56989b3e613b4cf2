// Package e2e_test looks at the whole from outside: it builds the programs,
// lays hosts and containers on a switch (e2e/lab), calls the plugins as a
// runtime does, and judges them by packets, by what the kernel shows, and by
// what the command line prints.
package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/underlay-cni/underlay/e2e/binaries"
)

// Folders of the programs under test, which TestMain builds once.
var (
	// ours has macvlan, underlay (IPAM), underlayctl and underlayd.
	ours string
	// reference has macvlan, bridge, ptp, host-local and the chained plugins of
	// containernetworking/plugins. A runtime given ours first and this second
	// finds our macvlan.
	reference string
)

func TestMain(m *testing.M) {
	code, err := build(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// build runs the tests with the programs built, and removes these.
func build(run func() int) (int, error) {
	dir, err := os.MkdirTemp("", "underlay-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)

	ours, reference = filepath.Join(dir, "ours"), filepath.Join(dir, "reference")
	ctx := context.Background()
	if err := binaries.Ours(ctx, ours); err != nil {
		return 0, err
	}
	err = binaries.Reference(ctx, reference,
		"./plugins/main/macvlan", "./plugins/main/bridge", "./plugins/main/ptp", "./plugins/ipam/host-local",
		"./plugins/meta/portmap", "./plugins/meta/firewall", "./plugins/meta/tuning", "./plugins/meta/bandwidth",
		"./plugins/meta/sbr", "./plugins/meta/vrf")
	if err != nil {
		return 0, err
	}
	return run(), nil
}
