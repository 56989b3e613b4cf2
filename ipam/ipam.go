// Package ipam is the domain of address management, without any I/O: pools
// and ranges, attachments and owners, the record of an address and its
// states, the requests that a plugin makes, and the choice of the next
// address. Storage lives in the subpackages; they speak in these types.
//
// An address is held by at most one attachment of a node, and every state
// change goes through one of the transitions that State documents.
package ipam

import (
	"net/netip"
	"time"
)

// Attachment is what the CNI specification calls one: an interface of a
// container on a network. All three parts are required.
type Attachment struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

func (a Attachment) String() string { return a.Network + "/" + a.ContainerID + "/" + a.IfName }

// Netns names a network namespace. A path may be used again by another
// namespace; device and inode may not within one boot while it lives.
type Netns struct {
	Path  string `json:"path,omitempty"`
	Dev   uint64 `json:"dev,omitempty"`
	Inode uint64 `json:"inode,omitempty"`
}

// State of an address. An address without a record is free.
type State string

const (
	// Held: in use by Record.Attachment.
	Held State = "held"
	// Cooling: released. Until Record.Until the last owner may have it back
	// at once, and others only when nothing else is free, oldest first.
	Cooling State = "cooling"
	// Quarantined: somebody outside the ledger answered for it; not given to
	// anybody before Record.Until.
	Quarantined State = "quarantined"
	// Reserved: kept out of use by the operator, or found in use by a rebuild
	// that could not tell by whom.
	Reserved State = "reserved"
	// Lent: of a block of a cluster pool that somebody else on this node gives out
	// addresses of, whom Record.Reason names: all of the block is out of use here.
	Lent State = "lent"
	// Giving: of a cluster pool, on its way to another node. No Record says so,
	// but what the ledger keeps of the block.
	Giving State = "giving"
	// Elsewhere: of a cluster pool, and not this node's. No Record says so.
	Elsewhere State = "elsewhere"
)

// Record is what the ledger keeps of one address that is not free.
type Record struct {
	// Version of this JSON shape; 1.
	Version int `json:"v"`
	// Pool is the pool's name; of a local pool, the network's.
	Pool string `json:"pool"`
	// PoolUUID of a cluster pool; empty for a local one.
	PoolUUID string `json:"poolUUID,omitempty"`
	// Address with the length of its subnet.
	Address netip.Prefix `json:"address"`
	// Gateway of the subnet; the zero value means none.
	Gateway netip.Addr `json:"gateway,omitzero"`
	State   State      `json:"state"`
	// Attachment that holds the address, or held it last.
	Attachment Attachment `json:"attachment,omitzero"`
	// Runtime is the name of the program that ran the plugin, so that one
	// runtime's garbage collection spares another's containers.
	Runtime string `json:"runtime,omitempty"`
	Netns   Netns  `json:"netns,omitzero"`
	// BootID of the kernel the namespace lived in.
	BootID string `json:"bootID,omitempty"`
	// MAC of the interface, where the plugin knew it; colon-separated.
	MAC string `json:"mac,omitempty"`
	// Owner is the sticky key, "namespace/pod" where the runtime tells; empty
	// where it does not.
	Owner string `json:"owner,omitempty"`
	// Since is when the record came into State, wall clock, UTC.
	Since time.Time `json:"since"`
	// Until ends Cooling and Quarantined; zero in other states.
	Until time.Time `json:"until,omitzero"`
	// Strict keeps a cooling address from anybody but its owner until Until.
	Strict bool `json:"strict,omitempty"`
	// Reason says why the address is quarantined or reserved, or to whom it is lent.
	Reason string `json:"reason,omitempty"`
	// MissedAt is when the holder's namespace was first seen to be gone.
	MissedAt time.Time `json:"missedAt,omitzero"`
}

// PoolID is Pool.ID of the record's pool.
func (r Record) PoolID() string { return poolID(r.Pool, r.PoolUUID) }

// Says is what the record says of its address, for people.
func (r Record) Says() string {
	switch {
	case r.State == "":
		return "free"
	case r.State == Held:
		return "held by " + r.Attachment.String()
	case r.Reason != "":
		return string(r.State) + ": " + r.Reason
	}
	return string(r.State)
}

// Over reports whether a Cooling or Quarantined record has run its time.
func (r Record) Over(now time.Time) bool {
	switch r.State {
	case Cooling, Quarantined:
		return RestOver(now, r.Since, r.Until)
	}
	return false
}

// RestOver reports whether what was to last from since to until is over. A clock
// that was set back by more than that ends it too, since a wrong clock must not
// keep an address out of use for much longer. One set back by less does not:
// what a strict pool keeps for an owner would be anybody's after each small
// correction.
func RestOver(now, since, until time.Time) bool {
	return !now.Before(until) || since.Sub(now) > until.Sub(since)
}

// Uses are the things on this node that attachments share and that go with
// their last user. The zero value uses nothing.
type Uses struct {
	// Parent interface by name.
	Parent string `json:"parent,omitempty"`
	// VLAN id of the sub-interface made on Parent; 0 means none.
	VLAN int `json:"vlan,omitempty"`
	// HostAccess: the attachment is reached from the host through the sibling
	// on Parent (or on its VLAN sub-interface).
	HostAccess bool `json:"hostAccess,omitempty"`
	// Port is the setting that all children of the parent have in common, such
	// as "ipvlan mode l3, flag bridge"; "" where each child has its own.
	Port string `json:"port,omitempty"`
	// Network, by name, whose peers the attachment reaches by this host's routes;
	// "" for one that has no such routes.
	Network string `json:"network,omitempty"`
	// Masquerade: what the attachment of Network sends out of the cluster gets an
	// address of this host.
	Masquerade bool `json:"masquerade,omitempty"`
	// Segment that the attachment is in.
	Segment Segment `json:"segment,omitzero"`
}

// Shared reports whether anything is used that needs a reference count.
func (u Uses) Shared() bool { return u.VLAN != 0 || u.HostAccess || u.Segment.Port != 0 }

// Any reports whether there is anything that others have to know of.
func (u Uses) Any() bool {
	return u.Shared() || u.Port != "" || u.Network != "" || u.Segment != Segment{}
}

// Segment is the VXLAN segment that an attachment is in; the zero value is none.
type Segment struct {
	// VNI, 1 to 1<<24-1.
	VNI int `json:"vni,omitempty"`
	// Port is the UDP port, for an attachment that the segment is made for and
	// goes with; 0 where another one of the chain does that.
	Port int `json:"port,omitempty"`
}

// AttachmentRecord is what the ledger keeps of an attachment beside its
// addresses; it exists for every attachment that holds an address or has any
// Uses.
type AttachmentRecord struct {
	Version    int        `json:"v"`
	Attachment Attachment `json:"attachment"`
	Runtime    string     `json:"runtime,omitempty"`
	Netns      Netns      `json:"netns,omitzero"`
	BootID     string     `json:"bootID,omitempty"`
	MAC        string     `json:"mac,omitempty"`
	Uses       Uses       `json:"uses,omitzero"`
	// Addresses held, in the order of the pool's range sets.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Since     time.Time    `json:"since"`
	// MissedAt is when the namespace was first seen to be gone.
	MissedAt time.Time `json:"missedAt,omitzero"`
	// Token is that of the ADD by which it came to be; 0 where that had none.
	Token uint64 `json:"-"`
}

// Hold is a time for which an attachment held an address.
type Hold struct {
	Address    netip.Addr `json:"address"`
	Attachment Attachment `json:"attachment"`
	// Netns is the path of the namespace.
	Netns string `json:"netns,omitempty"`
	MAC   string `json:"mac,omitempty"`
	Owner string `json:"owner,omitempty"`
	// BootID of the kernel the namespace lived in.
	BootID string    `json:"bootID,omitempty"`
	Since  time.Time `json:"since"`
	// Until is when it ended; zero while it lasts.
	Until time.Time `json:"until,omitzero"`
}

// Hold is what the record of a held address says of its holder, until a time.
func (r Record) Hold(until time.Time) Hold {
	return Hold{Address: r.Address.Addr(), Attachment: r.Attachment, Netns: r.Netns.Path, MAC: r.MAC, Owner: r.Owner,
		BootID: r.BootID, Since: r.Since, Until: until}
}

// At reports whether the address was held at a time.
func (h Hold) At(t time.Time) bool {
	return !t.Before(h.Since) && (h.Until.IsZero() || t.Before(h.Until))
}
