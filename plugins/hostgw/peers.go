package main

import (
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/pkg/cni"
)

func (c *config) peers() ([]netip.Prefix, error) { return nil, nil }

func invalid(format string, args ...any) error {
	return cni.Errorf(types.ErrInvalidNetworkConfig, format, args...)
}

var _ = fmt.Sprint
