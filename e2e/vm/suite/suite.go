// Package suite runs the tests that need a kernel with everything in guests of
// e2e/vm: those that call linktest.Need, and are skipped where the machine's
// own kernel lacks what they need. It finds them in the source, compiles their
// packages on the machine, and runs exactly them in a guest, each in the folder
// of its package. It takes nothing for granted: a test that is skipped in the
// guest, or of which nothing is heard, has failed.
//
// Programs that the tests run are built on the machine too (binaries.Store).
// The race detector, coverage and benchmarks are left out.
package suite

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/e2e/vm"
)

// parallel is how many parallel tests run at once in a guest. It has one CPU, but
// most tests wait for packets most of the time.
const parallel = "4"

// Suite is packages whose tests are to run in guests. All fields are required.
type Suite struct {
	// Root is the folder of go.mod.
	Root string
	// Scratch is a folder for what is compiled, which guests have to see:
	// it cannot lie under /run.
	Scratch string
	// Guests is how many guests share the tests.
	Guests int
	// Timeout is what the tests of one package may take in one guest.
	Timeout time.Duration
	// Packages are those that Find has found.
	Packages []Package
}

// Result is what became of one package's tests.
type Result struct {
	Package
	// Kernel is the version of the guests' kernel, as uname -r has it; empty if
	// none has booted.
	Kernel string
	// Outcomes are one for each of Tests, in the same order.
	Outcomes []Outcome
	// Trouble is what no single test can tell: how a guest came to a bad end,
	// what a panic left on stderr, that a program failed whose tests have passed.
	Trouble string
}

// Run compiles the packages and runs their tests. The error is of what comes
// before that.
func (s Suite) Run(ctx context.Context) ([]Result, error) {
	if err := s.compile(ctx); err != nil {
		return nil, err
	}
	shares := s.shares()
	var running sync.WaitGroup
	for _, share := range shares {
		running.Go(func() { s.run(ctx, share) })
	}
	running.Wait()

	results := make([]Result, len(s.Packages))
	for i, p := range s.Packages {
		results[i].Package = p
		outcomes := make(map[string]Outcome)
		for _, share := range shares {
			if share[i].kernel != "" {
				results[i].Kernel = share[i].kernel
			}
			// Also of guests that were ended for ctx.
			found, trouble, err := judge(context.WithoutCancel(ctx), share[i])
			if err != nil {
				return nil, err
			}
			for _, o := range found {
				outcomes[o.Test] = o
			}
			results[i].Trouble += trouble
		}
		for _, name := range p.Tests {
			results[i].Outcomes = append(results[i].Outcomes, outcomes[name])
		}
	}
	return results, nil
}

// compile builds what the guests run.
func (s Suite) compile(ctx context.Context) error {
	programs := false
	for i, p := range s.Packages {
		build := exec.CommandContext(ctx, "go", "test", "-c", "-o", s.test(i), "./"+p.Dir)
		build.Dir = s.Root
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("compile the tests of %s: %w\n%s", p.Dir, err, out)
		}
		programs = programs || p.Programs
	}
	if !programs {
		return nil
	}
	store := s.store()
	for _, variables := range [][]string{nil, {"TAGS=faultpoint"}} {
		if err := store.Ours(ctx, variables...); err != nil {
			return err
		}
	}
	return store.Reference(ctx, "./plugins/main/macvlan", "./plugins/main/ipvlan", "./plugins/main/bridge",
		"./plugins/main/ptp", "./plugins/ipam/host-local", "./plugins/ipam/static",
		"./plugins/meta/portmap", "./plugins/meta/firewall", "./plugins/meta/tuning", "./plugins/meta/bandwidth",
		"./plugins/meta/sbr", "./plugins/meta/vrf")
}

// test is the test program of a package.
func (s Suite) test(i int) string { return filepath.Join(s.Scratch, fmt.Sprintf("%d.test", i)) }

func (s Suite) store() binaries.Store { return binaries.Store(filepath.Join(s.Scratch, "programs")) }

// part is some tests of a package, and what one guest has to say of them.
type part struct {
	Package
	kernel         string
	stdout, stderr bytes.Buffer
	ended          bool // so exit is valid
	exit           int
	err            error // of a guest that did not get to the end of this part
}

// shares deals out the tests, so that no guest gets all of a long package. Each
// share has one part for each package.
func (s Suite) shares() [][]*part {
	shares := make([][]*part, s.Guests)
	for i := range shares {
		for _, p := range s.Packages {
			p.Tests = nil
			shares[i] = append(shares[i], &part{Package: p})
		}
	}
	turn := 0
	for i, p := range s.Packages {
		for _, name := range p.Tests {
			to := shares[turn%s.Guests][i]
			to.Tests = append(to.Tests, name)
			turn++
		}
	}
	return shares
}

// run has a guest run a share.
func (s Suite) run(ctx context.Context, share []*part) {
	var kernel bytes.Buffer
	jobs := []vm.Job{{Args: []string{"uname", "-r"}, Stdout: &kernel}}
	var dealt []*part
	for i, p := range share {
		if len(p.Tests) == 0 {
			continue
		}
		dealt = append(dealt, p)
		jobs = append(jobs, vm.Job{
			Args: []string{s.test(i), "-test.v=test2json", "-test.paniconexit0", "-test.timeout=" + s.Timeout.String(), "-test.parallel=" + parallel,
				"-test.run=^(" + strings.Join(p.Tests, "|") + ")$"},
			Dir:    filepath.Join(s.Root, p.Dir),
			Env:    []string{inGuest, binaries.Prebuilt + "=" + string(s.store())},
			Stdout: &p.stdout,
			Stderr: &p.stderr,
		})
	}
	if len(dealt) == 0 {
		return
	}
	exits, err := vm.Run(ctx, jobs...)
	for i, p := range dealt {
		p.kernel = strings.TrimSpace(kernel.String())
		switch ended := len(exits) - 1; { // without uname
		case i < ended:
			p.ended, p.exit = true, exits[i+1]
		case i == max(ended, 0):
			p.err = err
		default:
			p.err = fmt.Errorf("its turn in the guest never came: the guest ended while %s ran", dealt[max(ended, 0)].Dir)
		}
	}
}
