package attach

import (
	"context"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/pkg/cni"
)

// Load reads the configuration of a main plugin from stdin and checks what is
// the plugin's own in it. Besides an error it returns what could be read: DEL
// and GC take back what was made when the configuration was still valid.
type Load func(stdin []byte) (*Config, Kind, error)

// Plugin is a main plugin whose configuration load reads.
func Plugin(name string, load Load) cni.Plugin {
	valid := func(act func(context.Context, *cni.Request, *Config, Kind) error) func(context.Context, *cni.Request) error {
		return func(ctx context.Context, req *cni.Request) error {
			conf, kind, err := load(req.Stdin)
			if err != nil {
				return err
			}
			return act(ctx, req, conf, kind)
		}
	}
	anyway := func(act func(context.Context, *cni.Request, *Config, Kind) error) func(context.Context, *cni.Request) error {
		return func(ctx context.Context, req *cni.Request) error {
			conf, kind, _ := load(req.Stdin) // that it is JSON with a name has been checked before
			return act(ctx, req, conf, kind)
		}
	}
	add := func(ctx context.Context, req *cni.Request) (*current.Result, error) {
		conf, kind, err := load(req.Stdin)
		if err != nil {
			return nil, err
		}
		return Add(ctx, req, conf, kind)
	}
	return cni.Plugin{Name: name, Add: add, Del: anyway(Del), Check: valid(Check), GC: anyway(GC), Status: valid(Status)}
}
