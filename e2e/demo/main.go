// Command demo shows macvlan containers on the hosts' own network: three hosts
// with an agent each and one pool for all, on network namespaces (e2e/lab). It
// attaches containers while agents die, that with the registry too; prints who
// has which address, who reaches whom, and what registry and ledgers hold; then
// it detaches the containers and shows that nothing is left. It fails if an
// expected ping is not answered or an unexpected one is.
//
// With KEEP=1 in the environment it leaves everything up; -remove takes that
// down, and so does the next run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// name is the lab's: there is one demo on a machine at a time. Whatever has a
// namespace of that name is taken for one that was kept.
const name = "underlaydemo"

func main() {
	bin := flag.String("bin", "bin", "folder of macvlan, underlayctl and underlayd")
	remove := flag.Bool("remove", false, "remove what a run with KEEP=1 left up")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	err := lab.Remove(name)
	if err == nil && !*remove {
		d := demo{lab: name, bin: *bin, keep: os.Getenv("KEEP") == "1", out: os.Stdout}
		err = d.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}
