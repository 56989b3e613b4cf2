// Package export is what a ledger says of itself to people and programs: the
// document of `underlayctl ledger export`; and what is found of it elsewhere, for
// one that is made anew or that takes over from others.
package export

import (
	"bytes"
	"encoding/json"
	"io"
	"net/netip"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
)

// Info is what there is to know of a ledger as a whole.
type Info struct {
	Path string `json:"path"`
	// ID is the UUID that was minted with the file.
	ID string `json:"id"`
	// Schema of the buckets and records.
	Schema int `json:"schema"`
	// Sequence counts the transactions that changed it.
	Sequence uint64 `json:"sequence"`
	// MachineID and BootID are of the machine that made it, and of the boot
	// in which it was last open for writing.
	MachineID string `json:"machineID,omitempty"`
	BootID    string `json:"bootID"`
	// Size of the file and FreeBytes inside of it, in bytes.
	Size      int64 `json:"size"`
	FreeBytes int64 `json:"freeBytes"`
	// Refused says why no address is given out, if so.
	Refused string `json:"refused,omitempty"`

	Pools       int `json:"pools"`
	Attachments int `json:"attachments"`
	// Held to Reserved count addresses by state.
	Held        int `json:"held"`
	Cooling     int `json:"cooling"`
	Quarantined int `json:"quarantined"`
	Reserved    int `json:"reserved"`
	// History counts the holds that have ended and are remembered.
	History int `json:"history"`
}

// Dump is all that a ledger knows, the document that Export writes.
type Dump struct {
	// Version of this shape; 1.
	Version    int       `json:"version"`
	ExportedAt time.Time `json:"exportedAt"`

	Ledger      Info                    `json:"ledger"`
	Pools       []ipam.Pool             `json:"pools"`
	Attachments []ipam.AttachmentRecord `json:"attachments"`
	Addresses   []ipam.Record           `json:"addresses"`
	// Blocks of cluster pools that the node leases or has leased.
	Blocks []Block `json:"blocks"`
}

// Block is what a ledger has of a block of a cluster pool.
type Block struct {
	PoolUUID string       `json:"poolUUID"`
	CIDR     netip.Prefix `json:"cidr"`
	// Revision of the registry's record that it knows.
	Revision lease.Rev `json:"revision"`
	// Addresses that are the node's, free or in use.
	Addresses []netip.Addr `json:"addresses"`
	// Giving are those on their way out: to a node, or back.
	Giving map[netip.Addr]lease.Node `json:"giving,omitempty"`
}

// NewBlock is the document of a block of a pool, which is a UUID.
func NewBlock(pool string, b record.Block) Block {
	out := Block{PoolUUID: pool, CIDR: b.CIDR, Revision: b.Rev, Addresses: []netip.Addr{}}
	b.Each(func(a netip.Addr) { out.Addresses = append(out.Addresses, a) })
	for a, to := range b.Giving {
		if out.Giving == nil {
			out.Giving = map[netip.Addr]lease.Node{}
		}
		out.Giving[a] = to.Node
	}
	return out
}

// WriteTo writes it as one JSON document.
func (d Dump) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	if err := e.Encode(d); err != nil {
		return 0, err
	}
	return b.WriteTo(w)
}

// Found is an attachment that was found alive on this node.
type Found struct {
	// Attachment, or the zero value for addresses of which it is not known
	// who uses them; they become reserved, for Reason.
	Attachment ipam.Attachment `json:"attachment,omitzero"`
	Reason     string          `json:"reason,omitempty"`
	Runtime    string          `json:"runtime,omitempty"`
	Netns      ipam.Netns      `json:"netns,omitzero"`
	MAC        string          `json:"mac,omitempty"`
	Owner      string          `json:"owner,omitempty"`
	Uses       ipam.Uses       `json:"uses,omitzero"`
	// Pool that the addresses are from.
	Pool string `json:"pool"`
	// Addresses with prefix length and gateway, in the order of range sets.
	Addresses []ipam.Address `json:"addresses"`
}
