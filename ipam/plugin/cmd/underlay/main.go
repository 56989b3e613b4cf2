// Command underlay is the IPAM plugin `"ipam": {"type": "underlay"}` for main
// plugins that are not of this suite.
package main

import (
	"os"

	"github.com/underlay-cni/underlay/ipam/plugin"
)

func main() { os.Exit(plugin.Main()) }
