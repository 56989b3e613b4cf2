// Package history_test puts a cluster under load while everything in it dies,
// stands still, is cut off or has its clock set, writes down what each call
// said and when, and judges that history: no address is held twice. After
// quiet nothing is held, registry and ledgers agree, and the pools are good to
// their last address.
//
//   - The parts are real: three members of etcd, three agents, and for each
//     call a process of the IPAM plugin. No links are made: a main plugin adds
//     nothing to the question whose an address is.
//   - The judge is no part of what it judges: it knows calls and answers alone.
//
// HISTORY_FOR is how long there is load, HISTORY_SEED repeats the choices of a
// run, though not its timing.
package history_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/underlay-cni/underlay/e2e/binaries"
)

// bin is the folder of the programs under test, built with fault points.
var bin string

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
	dir, err := os.MkdirTemp("", "underlay-history-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	bin = filepath.Join(dir, "bin")
	if err := binaries.Ours(context.Background(), bin, "TAGS=faultpoint"); err != nil {
		return 0, err
	}
	return run(), nil
}
