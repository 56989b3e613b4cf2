// Command hostgw is the CNI plugin for networks that hosts route to: as a main
// plugin it gives a container a veth pair, whose addresses the host has routes
// to; after another it adds what is missing to reach the containers of other
// hosts. README.md describes its configuration.
package main

import "os"

func main() {
	os.Exit(plugin().Main())
}
