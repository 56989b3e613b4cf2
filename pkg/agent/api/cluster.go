package api

import (
	"net/netip"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// Cluster is the document of /v1/cluster.
type Cluster struct {
	// ID of the cluster; "" in a registry that no node has opened yet.
	ID    string      `json:"id"`
	Epoch lease.Epoch `json:"epoch"`
	// Frozen is the report of nodes which know that the registry was further.
	// Nothing changes hands until an operator has it recovered.
	Frozen *record.Frozen `json:"frozen,omitempty"`
	// Revision of the registry that the document is of.
	Revision lease.Rev `json:"revision"`
	// Waiting are the nodes that have not asserted what they have in this
	// epoch. As long as there are any, nothing changes hands either.
	Waiting []NodeName `json:"waiting"`
	// UnreadCount is the length of Unread.
	UnreadCount int `json:"unreadCount"`
	// Unread are the values that were skipped since they cannot be understood.
	Unread []Unread `json:"unread"`
}

// Unread is a value of the registry that was skipped.
type Unread struct {
	Key    string `json:"key"`
	Reason string `json:"reason"`
}

// NodeName names a node.
type NodeName struct {
	// Node is the UUID of its ledger.
	Node string `json:"node"`
	// Name is a label, "" where it is not known.
	Name string `json:"name,omitempty"`
}

// ClusterPool is an element of /v1/cluster/pools.
type ClusterPool struct {
	// Pool is the document of /v1/cluster/pools/{name}.
	Pool record.Pool `json:"pool"`
	// Sets has what is leased of each range set.
	Sets []ClusterCounts `json:"sets"`
	// Networks that refer to it, by name.
	Networks []string `json:"networks"`
}

// ClusterCounts of the usable addresses of a range set, on all nodes.
type ClusterCounts struct {
	// Usable addresses in all; 1<<63-1 stands for that many and more.
	Usable uint64 `json:"usable"`
	// Leased addresses belong to a node, whether or not it uses them.
	Leased uint64 `json:"leased"`
	// Parked addresses belong to no node and wait for a sticky owner.
	Parked uint64 `json:"parked"`
	// Blocks that have an owner.
	Blocks int `json:"blocks"`
}

// Tenant is an element of /v1/cluster/tenants.
type Tenant struct {
	// Name; "" is the tenant of pools that name none.
	Name string `json:"name"`
	// Quota of addresses; 0 is no limit.
	Quota int64 `json:"quota"`
	// VNIs that its segments get by their name; absent without such a range.
	VNIs record.VNIs `json:"vnis,omitzero"`
	// Leased counts what the quota counts: the addresses that its pools give out
	// and that belong to nodes, in use or not.
	Leased int64 `json:"leased"`
	// Pools of the tenant, by name.
	Pools []string `json:"pools"`
}

// SegmentName is an element of /v1/cluster/segments: a segment that has its VNI by
// its name, that of CNI networks.
type SegmentName struct {
	VNI    int    `json:"vni"`
	Tenant string `json:"tenant"`
	Name   string `json:"name"`
}

// ClusterNode is an element of /v1/cluster/nodes.
type ClusterNode struct {
	NodeName
	// Alive: its agent has a session. Nothing is taken from a node for want of
	// one.
	Alive bool `json:"alive"`
	// Machine ID of the host that the ledger belongs to.
	Machine string `json:"machine,omitempty"`
	// Addresses at which its peers reach it, the preferred one first.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Asserted is the number of the last epoch in which it has brought the
	// registry into line with its ledger.
	Asserted int `json:"asserted"`
	// Leased addresses in all, of those that pools give out, and those of each pool.
	Leased int        `json:"leased"`
	Pools  []NodePool `json:"pools"`
	// Removed is set for a node that an operator has removed.
	Removed *Removed `json:"removed,omitempty"`
}

// NodePool is what a node has of a pool.
type NodePool struct {
	// Pool by name; "" if it was deleted.
	Pool     string `json:"pool"`
	PoolUUID string `json:"poolUUID"`
	Leased   int    `json:"leased"`
}

// Removed says when an operator removed a node.
type Removed struct {
	At time.Time `json:"at,omitzero"`
	// Rest is how long its addresses stay out of use, in nanoseconds, counted
	// by whoever frees them.
	Rest time.Duration `json:"rest"`
}

// Lease is an element of /v1/cluster/leases: a block of which somebody has
// something.
type Lease struct {
	// Pool by name; "" if it was deleted.
	Pool     string       `json:"pool"`
	PoolUUID string       `json:"poolUUID"`
	CIDR     netip.Prefix `json:"cidr"`
	// Owner has all addresses that are not in Given; nil is nobody.
	Owner *NodeName `json:"owner,omitempty"`
	// Size counts the addresses of the block, usable or not; the others say
	// whose they are. What is left of Size is nobody's.
	Size   int `json:"size"`
	Owned  int `json:"owned"`
	Others int `json:"others"`
	Parked int `json:"parked"`
	// Lent, of a block of the node that answers, is the file that tells others on it
	// to give out the block's addresses: all of it is out of use.
	Lent string `json:"lent,omitempty"`
	// Given lists the addresses that do not follow the owner.
	Given []Given `json:"given"`
}

// Given is an address that does not follow the owner of its block.
type Given struct {
	Address netip.Addr `json:"address"`
	// Node that has it; nil when anybody may claim it.
	Node *NodeName `json:"node,omitempty"`
	// Key of the sticky owner that it is kept for.
	Key string `json:"key,omitempty"`
	// Since is when it was parked for Key.
	Since time.Time `json:"since,omitzero"`
}
