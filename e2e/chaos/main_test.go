// Package chaos_test is the fault campaign: three hosts with all plugins under
// load, while processes die, disks fill, files are damaged, links and namespaces
// go away, the wire is cut and hosts are started again. What must hold is looked
// at all the while and, at the end of each round, when every fault is undone:
//
//   - An address has one holder, by what runtimes were told and by what the
//     links in containers carry.
//   - A DEL succeeds, whatever is broken; an ADD that fails leaves nothing.
//   - What the ledger has on record is what is attached, no more and no less, and
//     the links, routes, FDB entries and rules of the host are those that this
//     and the registry call for.
//   - What others have put on a host is as they left it.
//
// At the end the ledgers agree with the registry, and each address of a pool can
// be given out.
//
// Flags of the test: -duration is how long there are faults, -seed repeats the
// choices of a run, though not its timing, and -fault picks some by name. What
// was done is written down in order; with -journal that is kept.
package chaos_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/binaries"
)

var (
	duration = flag.Duration("duration", 2*time.Minute, "how long there are faults")
	seeded   = flag.Uint64("seed", 0, "repeats the choices of a run; 0 draws one")
	only     = flag.String("fault", "", "regular expression of the faults to do; all by default")
	keep     = flag.String("journal", "", "folder that keeps the journal, and what the programs of a failed run said")
)

// bin is the folder of the programs under test, built with fault points, and
// of the reference's bridge.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := build(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// build runs the tests with the programs built, and removes these.
func build(run func() int) (int, error) {
	dir, err := os.MkdirTemp("", "underlay-chaos-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	bin = filepath.Join(dir, "bin")
	if err := binaries.Ours(context.Background(), bin, "TAGS=faultpoint"); err != nil {
		return 0, err
	}
	if err := binaries.Reference(context.Background(), bin, "./plugins/main/bridge"); err != nil {
		return 0, err
	}
	return run(), nil
}
