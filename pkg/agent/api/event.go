package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// EventKind says what an event is about.
type EventKind string

// Kinds of events.
const (
	// AddressConflict: somebody else on the wire uses an address of this node's.
	AddressConflict EventKind = "conflict"
	// LeakReleased: an attachment whose container has gone without a DEL.
	LeakReleased EventKind = "leakReleased"
	// AddressLost: in use here, and another node's by the registry.
	AddressLost EventKind = "addressLost"
	// BlockLeased and BlockReturned: of a cluster pool, by this node.
	BlockLeased   EventKind = "blockLeased"
	BlockReturned EventKind = "blockReturned"
	// AddressesGiven: to other nodes; AddressesClaimed: had from blocks that are
	// not this node's.
	AddressesGiven   EventKind = "addressesGiven"
	AddressesClaimed EventKind = "addressesClaimed"
	// RegistryConnected, RegistryAway: the registry is followed, or no more.
	RegistryConnected EventKind = "registryConnected"
	RegistryAway      EventKind = "registryAway"
	// RegistryFrozen: it has gone back, and waits for an operator.
	RegistryFrozen EventKind = "registryFrozen"
	// NodeRenewed: this node was removed, and is another one from now on.
	NodeRenewed EventKind = "nodeRenewed"
	// NodeSwept: what a removed node had is free again.
	NodeSwept EventKind = "nodeSwept"
	// PoolChanged: an operator has made, changed or deleted a cluster pool.
	PoolChanged EventKind = "poolChanged"
)

// EventKinds are all of them.
func EventKinds() []EventKind {
	return []EventKind{AddressConflict, LeakReleased, AddressLost, BlockLeased, BlockReturned, AddressesGiven, AddressesClaimed,
		RegistryConnected, RegistryAway, RegistryFrozen, NodeRenewed, NodeSwept, PoolChanged}
}

// Event is something that changed on this node. Fields that do not apply are
// empty.
type Event struct {
	// Seq rises from event to event, over restarts of the agent too.
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	Kind EventKind `json:"kind"`
	// Network, Container and IfName are those of the attachment.
	Network   string `json:"network,omitempty"`
	Container string `json:"container,omitempty"`
	IfName    string `json:"ifName,omitempty"`
	// Pool by name.
	Pool  string       `json:"pool,omitempty"`
	Addr  netip.Addr   `json:"addr,omitzero"`
	Block netip.Prefix `json:"block,omitzero"`
	// Node is another one, by name or UUID.
	Node string `json:"node,omitempty"`
	// Text for people.
	Text string `json:"text"`
}

// EventFilter says which events are wanted; empty fields are any.
type EventFilter struct {
	// Since leaves out events up to this Seq.
	Since uint64
	Kind  EventKind
}

func (f EventFilter) since() string {
	if f.Since == 0 {
		return ""
	}
	return strconv.FormatUint(f.Since, 10)
}

// Events lists those that the agent remembers, the oldest first.
func (c *Client) Events(ctx context.Context, f EventFilter) (e []Event, err error) {
	return e, c.call(ctx, http.MethodGet, "/v1/events", query("since", f.since(), "kind", string(f.Kind)), &e)
}

// FollowEvents calls fn with the events that the agent remembers, and then with
// each as it comes, until ctx or the agent ends or fn returns an error.
func (c *Client) FollowEvents(ctx context.Context, f EventFilter, fn func(Event) error) (err error) {
	res, err := c.open(ctx, http.MethodGet, "/v1/events", query("follow", "true", "since", f.since(), "kind", string(f.Kind)), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	if res.StatusCode >= 400 {
		return decode(res, "/v1/events", nil)
	}
	for lines := json.NewDecoder(res.Body); ; {
		var e Event
		switch err := lines.Decode(&e); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("agent: events: %w", err)
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}
