package ipam

import (
	"net/netip"
	"time"
)

// AllocateRequest asks for one address from every range set of the pool, in
// one transaction with the record of what else the attachment uses.
type AllocateRequest struct {
	Attachment Attachment `json:"attachment"`
	// Pool to draw from; one without range sets records Uses alone.
	Pool Pool `json:"pool"`
	// Cluster is the name of the cluster pool to draw from instead, as the
	// ledger knows it.
	Cluster string `json:"cluster,omitempty"`
	// Routes of the configuration, with Cluster; see Pool.RoutesOf.
	Routes []Route `json:"routes,omitempty"`
	// Addresses asked for, each inside a range set of its own; the range
	// sets that are left choose freely.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Places where they were asked for, for errors; "ips[0]" and so on where
	// there are none.
	Places []string `json:"places,omitempty"`
	// Avoid lists addresses that are in use without a record: the host's own.
	Avoid []netip.Addr `json:"avoid,omitempty"`
	// MAC of the interface when the user fixed it.
	MAC string `json:"mac,omitempty"`
	// MACPrefix, where MAC is empty, has the MAC derived from network and
	// first address: one to three octets, colon-separated. Empty: no MAC.
	MACPrefix string `json:"macPrefix,omitempty"`
	Owner     string `json:"owner,omitempty"`
	Runtime   string `json:"runtime,omitempty"`
	Netns     Netns  `json:"netns,omitzero"`
	Uses      Uses   `json:"uses,omitzero"`
	// Wire is the name of the interface of the host that leads to the wire which
	// the addresses are for, where others on it can be asked whether they use
	// them; "" where not. The ledger has no use for it.
	Wire string `json:"wire,omitempty"`
	// Token, unless 0, is a number that this ADD alone has: what the attachment
	// holds by it is not Known, but came of an earlier try that had no answer.
	Token uint64 `json:"token,omitempty"`
}

// DrawOn has the addresses come from the pool of a configuration.
func (r *AllocateRequest) DrawOn(c Config) {
	r.Pool, r.Cluster = c.Pool, c.Cluster
	if c.Cluster != "" {
		r.Routes = c.Routes
	}
}

// Ask adds an address to ask for, and the place where that was done.
func (r *AllocateRequest) Ask(a netip.Addr, place string) {
	r.Addresses, r.Places = append(r.Addresses, a), append(r.Places, place)
}

// Allocation is what an attachment holds after AllocateRequest.
type Allocation struct {
	// Addresses, one for each range set, in its order.
	Addresses []Address `json:"addresses,omitempty"`
	// Routes that go with a cluster pool.
	Routes []Route `json:"routes,omitempty"`
	// MAC to give the interface; empty when the request left it open.
	MAC string `json:"mac,omitempty"`
	// Known is set when the attachment held exactly this before the request:
	// a failed ADD must then not release it.
	Known bool `json:"known,omitempty"`
	// Peers and Rivals, for a request whose Uses have a Port, are some of the
	// others on that parent and VLAN: with the same Port, and with another one.
	// There are none only where the list is empty.
	Peers  []AttachmentRecord `json:"peers,omitempty"`
	Rivals []AttachmentRecord `json:"rivals,omitempty"`
	// Replaced is what the attachment had on record before, if it shared other
	// things then: nobody counts it as their user any more.
	Replaced AttachmentRecord `json:"replaced,omitzero"`
}

// Address of an allocation.
type Address struct {
	// Prefix is the address with the length of its subnet.
	Prefix  netip.Prefix `json:"prefix"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

// ReleaseRequest gives back all that the attachment holds and uses; that it
// holds nothing is no error.
type ReleaseRequest struct {
	Attachment Attachment `json:"attachment"`
	// Before, unless zero, spares records made at or after it.
	Before time.Time `json:"before,omitzero"`
	// Ledger and Seq are set by whoever spools a release that was to have no
	// Before: the ID of the ledger in use then, and its last transaction. In that
	// ledger Before does not count, unless it was rebuilt since.
	Ledger string `json:"ledger,omitempty"`
	Seq    uint64 `json:"seq,omitempty"`
	// Token, unless 0, is about what the ADD with this token was given, and nothing
	// else, whatever the clocks say.
	Token uint64 `json:"token,omitempty"`
	// Undo releases without cooling: the addresses were never in use.
	Undo bool `json:"undo,omitempty"`
	// Conflict, unless empty, quarantines the addresses listed instead of
	// freeing them.
	Conflict []Conflict `json:"conflict,omitempty"`
}

// Covers reports whether the request is about a record, which knows the time as
// precisely as that.
func (r ReleaseRequest) Covers(att AttachmentRecord, precision time.Duration) bool {
	if r.Token != 0 {
		return r.Token == att.Token
	}
	return r.Before.IsZero() || att.Since.Before(r.Before.Truncate(precision))
}

// Conflict is a sign of life of somebody else at an address.
type Conflict struct {
	Address netip.Addr `json:"address"`
	// Reason for people, such as "answered by 02:00:00:00:00:01".
	Reason string `json:"reason"`
}

// Released says what a release has left behind.
type Released struct {
	// Records freed, cooled or quarantined, as they were before.
	Records []Record `json:"records,omitempty"`
	// Uses of the attachment that ended; the zero value when it used nothing.
	Uses Uses `json:"uses,omitzero"`
}
