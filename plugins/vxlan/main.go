// Command vxlan is the CNI plugin for networks over VXLAN: in mode routed,
// behind another plugin, it fits a container's interface to the network whose
// peers are reached through a VXLAN device; in mode segment, first in a chain, it
// makes a tenant's L2 segment, on which the plugin after it puts the container.
// README.md describes its configuration.
package main

import "os"

func main() {
	os.Exit(plugin().Main())
}
