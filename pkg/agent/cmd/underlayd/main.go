// Command underlayd is the node agent: see `underlayd -h` and
// conf/reference/underlayd.jsonc.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/agent"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	status := agent.Run(ctx, os.Args[1:], agent.Stdio{Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(status)
}
