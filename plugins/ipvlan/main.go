// Command ipvlan is the CNI main plugin for ipvlan interfaces: containers get
// addresses of their own on the network that the parent interface is on, and
// share its MAC. README.md describes its configuration.
package main

import (
	"os"

	"github.com/underlay-cni/underlay/pkg/attach"
)

func main() {
	os.Exit(attach.Plugin("ipvlan", load).Main())
}
