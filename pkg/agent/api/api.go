// Package api is the Admin API of the agent as Go programs see it: the types of
// its documents, and a client. The agent serves it with HTTP and JSON on the
// unix socket api.sock in its run folder; openapi.yaml beside this file
// describes it for all others.
//
// Records and local pools are those of package ipam, cluster pools and networks
// those of package record. Within v1 keys are added and never changed.
package api

import (
	_ "embed"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// SocketName is that of the socket in the run folder.
const SocketName = "api.sock"

// OpenAPI is the description, as the agent serves it at /v1/openapi.yaml.
//
//go:embed openapi.yaml
var OpenAPI []byte

// Node is the document of /v1/node.
type Node struct {
	Name string `json:"name"`
	// Version of the agent.
	Version string `json:"version"`
	// DataDir is the folder of the ledger.
	DataDir string      `json:"dataDir"`
	Ledger  ledger.Info `json:"ledger"`
}

// Pool is an element of /v1/pools.
type Pool struct {
	ipam.Pool
	// Counts of each range set.
	Counts []ipam.Counts `json:"counts"`
}

// Check is the document of /v1/ledger/check.
type Check struct {
	// Findings are what is wrong with the ledger, a sentence each.
	Findings []string `json:"findings"`
}

// Ready is the document of /readyz.
type Ready struct {
	Ready bool `json:"ready"`
	// Pending are the tasks that have not got going.
	Pending []string `json:"pending,omitempty"`
	// Reason says why plugins are not served, if so.
	Reason string `json:"reason,omitempty"`
}

// Problem is the document that comes with a status of 400 and above.
type Problem struct {
	Error *wire.Failure `json:"error"`
	// Kind says more than the status, where there is more to say: see
	// openapi.yaml.
	Kind string `json:"kind,omitempty"`
}
