package agent

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/agent/network"
)

// DefaultConfig is the file that is read unless another one is named. It may
// be missing: the defaults serve local pools.
const DefaultConfig = "/etc/underlay/underlayd.json"

// Config of an Agent.
type Config struct {
	// NodeName is a label of this node for people; default: the host's name.
	NodeName string
	// DataDir holds the ledger, RunDir the sockets; absolute paths; defaults as
	// of the plugins.
	DataDir string
	RunDir  string
	// APIGroup is the group, by name, whose members may use the Admin API
	// beside root; "" is root's own.
	APIGroup string
	// Registry of the cluster that the node is in; nil for a node on its own.
	Registry *RegistryConfig
	// Containerd is the path of containerd's socket, absolute. Attachments of
	// containers that it does not know are then released, too; "" asks nobody.
	Containerd string
	// Parents are the interfaces at which peers reach this node, by names for
	// people, whose order is that of preference; default: those of the default
	// routes.
	Parents map[string]network.Parent
	// Networks are those whose routes and rules are kept; nil means all.
	Networks []string
	// FixForwardDrop lets what our rules have marked pass others' policies that
	// drop it.
	FixForwardDrop bool
	// SubnetFile tells others on the node which block they give out addresses of;
	// nil where nobody does.
	SubnetFile *network.SubnetFile
}

// configWire is underlayd.json.
type configWire struct {
	NodeName string          `json:"nodeName"`
	DataDir  string          `json:"dataDir"`
	RunDir   string          `json:"runDir"`
	API      json.RawMessage `json:"api"`

	Parents        map[string]json.RawMessage `json:"parents"`
	Registry       json.RawMessage            `json:"registry"`
	Networks       []string                   `json:"networks"`
	FixForwardDrop bool                       `json:"fixForwardDrop"`
	Containerd     string                     `json:"containerd"`
	SubnetFile     json.RawMessage            `json:"subnetFile"`
}

type apiWire struct {
	Group string `json:"group"`
}

// LoadConfig reads a configuration, one JSON object, and fills in the defaults.
// Errors are *ipam.FieldError with the place, such as `api.group`, and where in the
// text that is.
func LoadConfig(r io.Reader) (Config, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return Config{}, err
	}
	c, err := loadConfig(text)
	return c, ipam.Locate(text, "", err)
}

func loadConfig(text []byte) (Config, error) {
	var w configWire
	if err := ipam.DecodeObject(text, "", &w); err != nil {
		return Config{}, err
	}
	var api apiWire
	if w.API != nil {
		if err := ipam.DecodeObject(w.API, "api", &api); err != nil {
			return Config{}, err
		}
	}
	registry, err := loadRegistry(w.Registry)
	if err != nil {
		return Config{}, err
	}
	c := Config{
		NodeName: w.NodeName, DataDir: w.DataDir, RunDir: w.RunDir, APIGroup: api.Group, Registry: registry, Containerd: w.Containerd,
		Networks: w.Networks, FixForwardDrop: w.FixForwardDrop,
	}
	if c.Parents, err = loadParents(w.Parents); err != nil {
		return Config{}, err
	}
	if c.SubnetFile, err = loadSubnetFile(w.SubnetFile, w.Networks); err != nil {
		return Config{}, err
	}
	return c, c.complete()
}

// complete fills in the defaults and checks.
func (c *Config) complete() error {
	if c.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("nodeName: is missing, and the host's name is unknown: %w", err)
		}
		c.NodeName = name
	}
	if len(c.NodeName) > 253 || strings.ContainsFunc(c.NodeName, func(r rune) bool { return r <= ' ' || r == '/' || r == 0x7f }) {
		return &ipam.FieldError{Place: "nodeName", Msg: fmt.Sprintf("%.40q has blanks or slashes, or is longer than 253 octets", c.NodeName)}
	}
	if c.Registry != nil {
		// The other nodes have to read it.
		if err := ipam.CheckName("nodeName", c.NodeName); err != nil {
			return err
		}
	} else if c.SubnetFile != nil {
		return &ipam.FieldError{Place: "subnetFile", Msg: `needs "registry": what is lent is a block of a cluster pool`}
	}
	for i, n := range c.Networks {
		if err := ipam.CheckName(fmt.Sprintf("networks[%d]", i), n); err != nil {
			return err
		}
	}
	if c.Containerd != "" && !filepath.IsAbs(c.Containerd) {
		return &ipam.FieldError{Place: "containerd", Msg: fmt.Sprintf("%q is not an absolute path", c.Containerd)}
	}
	place := client.New(c.DataDir, c.RunDir)
	c.DataDir, c.RunDir = place.Options().DataDir, place.Options().RunDir
	return place.CheckPlace()
}
