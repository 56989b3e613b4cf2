package cni

import (
	"context"
	"fmt"

	"github.com/containernetworking/cni/pkg/invoke"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// Foreign is a plugin of somebody else's, found in CNI_PATH and executed with
// this process's environment and the whole network configuration.
type Foreign struct {
	Type string
	Conf []byte
}

// Add executes ADD and returns its result.
func (f Foreign) Add(ctx context.Context) (*current.Result, error) {
	res, err := invoke.DelegateAdd(ctx, f.Type, f.Conf, nil)
	if err != nil {
		return nil, f.wrap("ADD", err)
	}
	out, err := current.NewResultFromResult(res)
	if err != nil {
		return nil, f.wrap("ADD", err)
	}
	return out, nil
}

// Del executes DEL.
func (f Foreign) Del(ctx context.Context) error {
	return f.wrap("DEL", invoke.DelegateDel(ctx, f.Type, f.Conf, nil))
}

// Check executes CHECK.
func (f Foreign) Check(ctx context.Context) error {
	return f.wrap("CHECK", invoke.DelegateCheck(ctx, f.Type, f.Conf, nil))
}

// GC executes GC.
func (f Foreign) GC(ctx context.Context) error {
	return f.wrap("GC", invoke.DelegateGC(ctx, f.Type, f.Conf, nil))
}

// Status executes STATUS.
func (f Foreign) Status(ctx context.Context) error {
	return f.wrap("STATUS", invoke.DelegateStatus(ctx, f.Type, f.Conf, nil))
}

func (f Foreign) wrap(verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("ipam %q: %s: %w", f.Type, verb, err)
}
