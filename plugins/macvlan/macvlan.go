package main

import (
	"context"
	"fmt"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/pkg/attach"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/link"
)

// kind is what is special to a macvlan link of this configuration.
func (c *config) kind() attach.Kind {
	spec := link.Macvlan{Mode: c.Mode, BCQueueLen: c.BCQueueLen, NoPromisc: c.NoPromisc, SourceMACs: c.sources}
	k := attach.Kind{
		Name:       "macvlan",
		Create:     spec.Create,
		Differs:    c.differs,
		ParentMAC:  c.Mode == link.ModePassthru,
		HostAccess: c.Mode == link.ModeBridge,
	}
	if !k.HostAccess {
		k.NoHostAccess = fmt.Sprintf("mode %s keeps siblings apart, and the host is reached through one; use mode bridge", c.Mode)
	}
	return k
}

// differs compares a link with the configuration. The list of source MACs is
// left out: it is changed live, by `underlayctl source`.
func (c *config) differs(l link.Link) string {
	if l.Mode != c.Mode {
		return fmt.Sprintf("is in mode %s, not %s", l.Mode, c.Mode)
	}
	return ""
}

func add(ctx context.Context, req *cni.Request) (*current.Result, error) {
	conf, err := load(req.Stdin)
	if err != nil {
		return nil, err
	}
	return attach.Add(ctx, req, &conf.Config, conf.kind())
}

func del(ctx context.Context, req *cni.Request) error {
	conf := loadAnyway(req.Stdin)
	return attach.Del(ctx, req, &conf.Config, conf.kind())
}

func check(ctx context.Context, req *cni.Request) error {
	conf, err := load(req.Stdin)
	if err != nil {
		return err
	}
	return attach.Check(ctx, req, &conf.Config, conf.kind())
}

func gc(ctx context.Context, req *cni.Request) error {
	conf := loadAnyway(req.Stdin)
	return attach.GC(ctx, req, &conf.Config, conf.kind())
}

func status(ctx context.Context, req *cni.Request) error {
	conf, err := load(req.Stdin)
	if err != nil {
		return err
	}
	return attach.Status(ctx, req, &conf.Config, conf.kind())
}
