package cluster

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/pkg/agent/event"
	"github.com/underlay-cni/underlay/pkg/agent/leases"
)

// Ledger is the agent's.
type Ledger interface {
	// With runs a function on the ledger, or says why there is none.
	With(func(*ledger.Ledger) error) error
}

// Config of a Cluster. All but Addresses, Loan, Events and Now are required.
type Config struct {
	// Open connects to the registry's store; close ends the connection, and
	// failed tells of a store in this process that has broken. It is called again
	// after registry.ErrUnreachable; any other error ends the agent.
	Open func(ctx context.Context) (store registry.Store, failed <-chan error, close func(), err error)
	// Ledger, once there is one, says which node this is.
	Ledger Ledger
	// Node is the node's name.
	Node string
	Log  *slog.Logger
	// Registry takes the metrics.
	Registry prometheus.Registerer
	// Addresses are those at which peers reach this node, the preferred one first;
	// none while nobody knows them. Each round tells the registry, if they are
	// others than before.
	Addresses func() []netip.Addr
	// Loan is called for each trader: what this node lends; nil is nothing.
	Loan func() *leases.Loan
	// Events hear of what changes; default: the Log alone.
	Events *event.Log
	// Now is the wall clock; default fault.Now.
	Now func() time.Time
}
