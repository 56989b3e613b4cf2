// Command macvlan is the CNI main plugin for macvlan interfaces: containers
// get a MAC and addresses of their own on the network that the parent
// interface is on. README.md describes its configuration.
package main

import (
	"context"
	"os"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/cni"
)

func main() {
	os.Exit(cni.Plugin{
		Name:   "macvlan",
		Add:    add,
		Del:    onLink(attach.Del),
		Check:  onLink(attach.Check),
		GC:     onLink(attach.GC),
		Status: onLink(attach.Status),
	}.Main())
}

func add(ctx context.Context, req *cni.Request) (*current.Result, error) {
	conf, err := load(req.Stdin)
	if err != nil {
		return nil, err
	}
	return attach.Add(ctx, req, &conf.Config, conf.kind())
}
