package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/agent/network"
)

type subnetFileWire struct {
	Path    string `json:"path"`
	Network string `json:"network"`
	IPMasq  bool   `json:"ipMasq"`
}

// loadSubnetFile reads the value of the key subnetFile: an object, or the path
// alone, which is that of the only one of the networks. "" is none.
func loadSubnetFile(text json.RawMessage, networks []string) (*network.SubnetFile, error) {
	at := func(key, format string, args ...any) error {
		return &ipam.FieldError{Place: "subnetFile" + key, Msg: fmt.Sprintf(format, args...)}
	}
	text = bytes.TrimSpace(text)
	var w subnetFileWire
	switch {
	case len(text) == 0 || string(text) == "null":
		return nil, nil
	case text[0] == '"':
		if err := json.Unmarshal(text, &w.Path); err != nil {
			return nil, at("", "%v", err)
		}
		if w.Path == "" {
			return nil, nil
		}
		if len(networks) != 1 {
			return nil, at("", `of which network? List exactly one in "networks", or say {"path": %q, "network": "pods"}`, w.Path)
		}
		w.Network = networks[0]
	default:
		if err := ipam.DecodeObject(text, "subnetFile", &w); err != nil {
			return nil, err
		}
	}
	switch {
	case w.Path == "":
		return nil, at(".path", "is missing; flannel's CNI plugin reads /run/flannel/subnet.env")
	case !filepath.IsAbs(w.Path) || filepath.Clean(w.Path) != w.Path:
		return nil, at(".path", "%q is not the absolute path of a file", w.Path)
	}
	if err := ipam.CheckName("subnetFile.network", w.Network); err != nil {
		return nil, err
	}
	if networks != nil && !slices.Contains(networks, w.Network) {
		return nil, at(".network", `this node does not follow %q; add it to "networks"`, w.Network)
	}
	return &network.SubnetFile{Path: w.Path, Network: w.Network, IPMasq: w.IPMasq}, nil
}
