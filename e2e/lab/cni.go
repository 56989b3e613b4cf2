package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// CNI runs plugins as a container runtime on the host would, through libcni:
// the plugins' processes start in the host's namespace. Its methods may run at
// once.
//
// Each takes a configuration, of one plugin or a list, as JSON. Plugins whose
// configuration has no dataDir or runDir get the host's, since all hosts of a
// lab share the machine's file system.
type CNI struct {
	// Env is added to the plugins' environment, as "KEY=value".
	Env []string
	// Stderr is where the plugins' goes; nil: this process's own.
	Stderr io.Writer

	host *Host
	bin  []string
}

// CNI returns a runtime that looks for plugins in the folders, in their order.
func (h *Host) CNI(bin ...string) *CNI { return &CNI{host: h, bin: bin} }

// Runtime returns what a runtime says of an attachment of the container as
// eth0. Args (CNI_ARGS) and CapabilityArgs may be set on it, and what is there
// may be changed, for example to a NetNS that is empty.
func (c *Container) Runtime() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: c.ID, NetNS: c.Path, IfName: "eth0"}
}

// Add attaches and returns the result of the last plugin.
func (c *CNI) Add(ctx context.Context, conf string, rt *libcni.RuntimeConf) (result *current.Result, err error) {
	err = c.do(conf, func(cni *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		answer, err := cni.AddNetworkList(ctx, list, rt)
		if err != nil {
			return err
		}
		result, err = current.NewResultFromResult(answer)
		return err
	})
	return result, err
}

// Check verifies an attachment that Add made.
func (c *CNI) Check(ctx context.Context, conf string, rt *libcni.RuntimeConf) error {
	return c.do(conf, func(cni *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		return cni.CheckNetworkList(ctx, list, rt)
	})
}

// Del detaches.
func (c *CNI) Del(ctx context.Context, conf string, rt *libcni.RuntimeConf) error {
	return c.do(conf, func(cni *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		return cni.DelNetworkList(ctx, list, rt)
	})
}

// GC removes what attachments that are not valid left behind. libcni itself
// sends a DEL for those that it has in its cache.
func (c *CNI) GC(ctx context.Context, conf string, valid ...types.GCAttachment) error {
	return c.do(conf, func(cni *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		return cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid})
	})
}

// Status says whether the network can take an ADD.
func (c *CNI) Status(ctx context.Context, conf string) error {
	return c.do(conf, func(cni *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		return cni.GetStatusNetworkList(ctx, list)
	})
}

// do runs f in the host's namespace, with the configuration parsed.
func (c *CNI) do(conf string, f func(*libcni.CNIConfig, *libcni.NetworkConfigList) error) error {
	list, err := c.host.load(conf)
	if err != nil {
		return err
	}
	var stderr io.Writer = os.Stderr
	if c.Stderr != nil {
		stderr = c.Stderr
	}
	exec := &execWithEnv{&invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: stderr}}, c.Env}
	cni := libcni.NewCNIConfigWithCacheDir(c.bin, c.host.cache, exec)
	return c.host.Do(func() error { return f(cni, list) })
}

// execWithEnv is libcni's way to execute plugins, with a larger environment.
type execWithEnv struct {
	*invoke.DefaultExec
	env []string
}

func (e *execWithEnv) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	return e.DefaultExec.ExecPlugin(ctx, path, stdin, append(env, e.env...))
}

// load parses a configuration and points each plugin in it to the host's folders.
func (h *Host) load(conf string) (*libcni.NetworkConfigList, error) {
	var wire map[string]any
	if err := json.Unmarshal([]byte(conf), &wire); err != nil {
		return nil, fmt.Errorf("network configuration: %w", err)
	}
	plugins, isList := wire["plugins"].([]any)
	if !isList {
		plugins = []any{wire}
		wire = map[string]any{"name": wire["name"], "plugins": plugins}
		if version, ok := plugins[0].(map[string]any)["cniVersion"]; ok {
			wire["cniVersion"] = version
		}
	}
	for _, p := range plugins {
		plugin, ok := p.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("network configuration: plugin %v is no object", p)
		}
		setDefault(plugin, "dataDir", h.DataDir)
		setDefault(plugin, "runDir", h.RunDir)
		if ipam, ok := plugin["ipam"].(map[string]any); ok && ipam["type"] == "host-local" {
			setDefault(ipam, "dataDir", h.DataDir)
		}
	}
	full, err := json.Marshal(wire)
	if err != nil {
		return nil, fmt.Errorf("network configuration: %w", err)
	}
	return libcni.NetworkConfFromBytes(full)
}

func setDefault(object map[string]any, key, value string) {
	if _, ok := object[key]; !ok {
		object[key] = value
	}
}
