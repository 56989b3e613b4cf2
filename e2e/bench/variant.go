package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// Names of the variants, as the report and the budgets have them.
const (
	floor         = "floor"
	refNoIPAM     = "reference"
	refHostLocal  = "reference + host-local"
	oursNoIPAM    = "ours, no IPAM"
	oursIPAM      = "ours"
	heldHostLocal = "host-local"
	heldOurs      = "underlay"
)

// network is the name of the variants' networks.
const network = "lan"

// object is a JSON object.
type object = map[string]any

// pool says which addresses a network gives out.
type pool struct{ subnet, gateway, everywhere string }

var (
	ipv4 = pool{"10.10.0.0/16", "10.10.0.1", "0.0.0.0/0"}
	ipv6 = pool{"fd00:10::/64", "fd00:10::1", "::/0"}
)

// ipam is the pool as the `ipam` object of underlay and of host-local.
func (p pool) ipam(plugin string) object {
	return object{
		"type":   plugin,
		"ranges": [][]object{{{"subnet": p.subnet, "gateway": p.gateway}}},
		"routes": []object{{"dst": p.everywhere}},
	}
}

// variant is one of the things compared: a network and the binaries that make
// its attachments.
type variant struct {
	name  string
	every int // runs in every n-th round; 0 is each
	list  *libcni.NetworkConfigList
	cni   *libcni.CNIConfig
}

// newVariant takes a network configuration without version and name. The
// network's files lie under dir.
func newVariant(name, binaries, dir string, conf object) (variant, error) {
	text, err := json.Marshal(object{"cniVersion": "1.1.0", "name": network, "plugins": []object{conf}})
	if err != nil {
		return variant{}, err
	}
	list, err := libcni.ConfListFromBytes(text)
	if err != nil {
		return variant{}, fmt.Errorf("configure %s: %w", name, err)
	}
	cache := filepath.Join(dir, "cache")
	return variant{name: name, list: list, cni: libcni.NewCNIConfigWithCacheDir([]string{binaries}, cache, nil)}, nil
}

// attachment is one container's interface on a variant's network.
type attachment struct {
	variant
	rt *libcni.RuntimeConf
}

// attachment makes a namespace for a new container.
func (s *stage) attachment(v variant) (attachment, error) {
	path, err := s.namespace()
	if err != nil {
		return attachment{}, err
	}
	container := fmt.Sprintf("bench-%06d", s.count)
	return attachment{v, &libcni.RuntimeConf{ContainerID: container, NetNS: path, IfName: "eth0"}}, nil
}

// add returns how long an ADD took, as its runtime sees it.
func (a attachment) add(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	if _, err := a.cni.AddNetworkList(ctx, a.list, a.rt); err != nil {
		return 0, fmt.Errorf("%s: ADD: %w", a.name, err)
	}
	return time.Since(start), nil
}

// del returns how long a DEL took.
func (a attachment) del(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	if err := a.cni.DelNetworkList(ctx, a.list, a.rt); err != nil {
		return 0, fmt.Errorf("%s: DEL: %w", a.name, err)
	}
	return time.Since(start), nil
}
