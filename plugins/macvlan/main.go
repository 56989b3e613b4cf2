// Command macvlan is the CNI main plugin for macvlan interfaces: containers
// get a MAC and addresses of their own on the network that the parent
// interface is on. README.md describes its configuration.
package main

import (
	"os"

	"github.com/underlay-cni/underlay/pkg/attach"
)

func main() {
	os.Exit(attach.Plugin("macvlan", load).Main())
}
