// Command bench measures the macvlan, ipvlan and underlay binaries beside the
// reference plugins and a floor program (package floor) that makes only the
// netlink calls of an attachment. All are called through libcni, as a runtime calls them, in
// rounds of changing order, so that what disturbs the machine disturbs all
// alike: the ratios mean more than the milliseconds.
//
// It runs in a mount and a network namespace of its own. The parent, eth1, is a
// veth whose other end is a second namespace with the gateway's addresses;
// every attachment gets a new namespace, made before and removed after the
// clock runs. Ledgers and host-local's files lie on a disk: how long durability
// takes is part of what is measured.
//
// What is about ipvlan runs in a guest (e2e/vm), whose kernel has it and which is
// several times slower: there only the ratios mean something.
//
// What is about a large cluster is many agents in one process (e2e/crowd) on an
// etcd: there a busy machine tells less by its seconds than by its processor
// seconds and requests.
//
// What leads to many peers is measured without a cluster (package peers): the
// routes, neighbours and FDB entries, beside the calls that flannel makes.
//
// What way packets take between two hosts (package path) is compared in pairs, as
// ratios with an interval.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/e2e/vm"
)

// Environment of the processes that measure.
const (
	// scratchEnv is the folder that the process outside prepared.
	scratchEnv = "UNDERLAY_BENCH_SCRATCH"
	// guestEnv is set in a guest.
	guestEnv = "UNDERLAY_BENCH_GUEST"
)

// options are the command line.
type options struct {
	bin     string         // folder of our binaries
	dir     string         // where the scratch folder is made
	rounds  int            // attachments per variant, one at a time
	workers int            // attachments at once
	only    *regexp.Regexp // sections to run
	scale   bool           // the sections of a large node and a large cluster as well
	agents  int            // of a large cluster
	json    bool           // JSON instead of tables
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	o, err := parse()
	if err != nil {
		return err
	}
	if scratch := os.Getenv(scratchEnv); scratch != "" {
		report, err := inside(ctx, o, scratch)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(report)
	}
	report, err := outside(ctx, o)
	if err != nil {
		return err
	}
	if o.json {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(report)
	}
	return report.print(os.Stdout)
}

func parse() (options, error) {
	var o options
	var only string
	flag.StringVar(&o.bin, "bin", "bin", "folder of our binaries")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "folder on a disk, for the ledgers")
	flag.IntVar(&o.rounds, "rounds", 240, "attachments per variant, one at a time; other sections scale with it")
	flag.IntVar(&o.workers, "workers", 8, "attachments at once")
	flag.StringVar(&only, "run", "", "run only the sections that match: one, many, ipv6, held, agent, peers, path, scale, crowd, ipvlan")
	flag.BoolVar(&o.scale, "scale", false, "also attach 128 pods to 16 networks each, make 5,000 routes as flannel does, and start a crowd of agents (12 minutes more)")
	flag.IntVar(&o.agents, "agents", 1000, "agents in the crowd; on two processors 300 say more about the agents, and less about the machine")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.Parse()
	if flag.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", flag.Arg(0))
	}
	if o.rounds < 1 || o.workers < 1 || o.agents < 1 {
		return o, errors.New("-rounds, -workers and -agents start at 1")
	}
	var err error
	if o.only, err = regexp.Compile(only); err != nil {
		return o, fmt.Errorf("-run: %w", err)
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return o, err
	}
	return o, nil
}

// outside builds what ours is compared with, where the network still is, and
// starts this program again where it measures.
func outside(ctx context.Context, o options) (r *Report, err error) {
	if r, err = newReport(o.workers); err != nil {
		return nil, err
	}
	if err := r.weigh(o.bin); err != nil {
		return nil, err
	}
	scratch, err := os.MkdirTemp(o.dir, "underlay-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	if err := onDisk(scratch); err != nil {
		return nil, err
	}
	fmt.Fprintln(os.Stderr, "building the reference plugins and the floor program")
	if err := binaries.Reference(ctx, referenceDir(scratch), "./plugins/main/macvlan", "./plugins/main/ipvlan", "./plugins/main/bridge", "./plugins/ipam/host-local"); err != nil {
		return nil, err
	}
	if err := binaries.Package(ctx, floorDir(scratch), "./e2e/bench/floor"); err != nil {
		return nil, err
	}

	ran := false
	for _, place := range []struct {
		guest bool
		run   func(context.Context, io.Writer, string) error
	}{{false, inNamespaces}, {true, inGuest}} {
		if len(o.wanted(place.guest)) == 0 {
			continue
		}
		ran = true
		var out bytes.Buffer
		if err := place.run(ctx, &out, scratch); err != nil {
			return nil, fmt.Errorf("measure: %w", err)
		}
		var part Report
		if err := json.Unmarshal(out.Bytes(), &part); err != nil {
			return nil, fmt.Errorf("measure: read the report: %w", err)
		}
		if place.guest {
			r.Guest = part.Machine.Kernel
		}
		r.Series = append(r.Series, part.Series...)
		r.Figures = append(r.Figures, part.Figures...)
		r.Ratios = append(r.Ratios, part.Ratios...)
		r.Budgets = append(r.Budgets, part.Budgets...)
	}
	if !ran {
		return nil, fmt.Errorf("-run %q: no section of that name", o.only)
	}
	r.Budgets = append(r.Budgets, r.judgeSizes()...)
	return r, nil
}

// inNamespaces runs this program in fresh namespaces. The kernel removes those,
// with every link and mount in them, when it ends.
func inNamespaces(ctx context.Context, stdout io.Writer, scratch string) error {
	again := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), scratchEnv+"="+scratch)
	again.Stdout, again.Stderr = stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	return again.Run()
}

// inGuest runs this program in a guest.
func inGuest(ctx context.Context, stdout io.Writer, scratch string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	exits, err := vm.Run(ctx, vm.Job{
		Args: append([]string{self}, os.Args[1:]...), Dir: here,
		Env:    []string{scratchEnv + "=" + scratch, guestEnv + "=1"},
		Stdout: stdout, Stderr: os.Stderr,
	})
	if err == nil && exits[0] != 0 {
		err = fmt.Errorf("exit status %d in the guest", exits[0])
	}
	return err
}

func referenceDir(scratch string) string { return filepath.Join(scratch, "reference") }

func floorDir(scratch string) string { return filepath.Join(scratch, "floor") }

// onDisk refuses a folder in memory, where fsync costs nothing.
func onDisk(dir string) error {
	const tmpfs, ramfs = 0x01021994, 0x858458f6
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	if fs.Type == tmpfs || fs.Type == ramfs {
		return fmt.Errorf("%s is in memory; name a folder on a disk with -dir", dir)
	}
	return nil
}
