package record

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
)

// Node is a node that has come to the cluster and was not removed.
type Node struct {
	Version int `json:"version"`
	// Node is the UUID of its ledger.
	Node lease.Node `json:"node"`
	// Name is a label for people.
	Name string `json:"name"`
	// Machine is the machine ID of the host that the ledger belongs to.
	Machine string `json:"machine,omitempty"`
	// Boot and Folder are the boot in which it came last, and the folder that its
	// ledger was in then, "device:inode".
	Boot   string `json:"boot,omitempty"`
	Folder string `json:"folder,omitempty"`
	// Addresses at which its peers reach it, the preferred one first.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Asserted is the number of the last epoch in which it has brought the
	// registry into line with its ledger.
	Asserted int `json:"asserted"`
}

// Gone is the tombstone of a node that an operator removed. It stays for ever.
type Gone struct {
	Version int        `json:"version"`
	Node    lease.Node `json:"node"`
	Name    string     `json:"name"`
	// Rest is how long the node's addresses stay out of use, in nanoseconds,
	// counted by whoever frees them from when it first saw the tombstone:
	// clocks of two nodes are not compared.
	Rest time.Duration `json:"rest"`
	// At is when it was removed, for people.
	At time.Time `json:"at"`
}

// Live says that the agent of a node runs. It goes with the agent's session,
// and nothing is taken from a node for want of it.
type Live struct {
	Version int        `json:"version"`
	Node    lease.Node `json:"node"`
	Machine string     `json:"machine"`
	Boot    string     `json:"boot"`
	// Device and Inode of the ledger's file.
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// Same reports whether two agents have the same ledger: the file itself, not
// a copy of it. Then the later one, which has the ledger's lock, may take over
// from the earlier one, which is dead.
func (l Live) Same(o Live) bool {
	return l.Node == o.Node && l.Machine == o.Machine && l.Boot == o.Boot && l.Device == o.Device && l.Inode == o.Inode
}

// Want is the flag that an agent raises for an ADD that waits.
type Want struct {
	Version int        `json:"version"`
	Node    lease.Node `json:"node"`
	// Pool is its UUID.
	Pool string `json:"pool"`
	// Set and Have: see lease.Want.
	Set  int `json:"set,omitempty"`
	Have int `json:"have"`
}

// EncodeNode returns the form of a node.
func EncodeNode(n Node) []byte { n.Version = Version; return encode(n) }

// DecodeNode is the inverse of EncodeNode.
func DecodeNode(value []byte) (Node, error) {
	n, ok := formOfNode(value)
	if !ok {
		n = Node{}
		if err := decode(value, "node", &n.Version, &n); err != nil {
			return Node{}, err
		}
	}
	if err := checkNode("node.node", n.Node); err != nil {
		return Node{}, err
	}
	if n.Name != "" {
		if err := checkName("node.name", n.Name); err != nil {
			return Node{}, err
		}
	}
	for i, a := range n.Addresses {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
			return Node{}, fmt.Errorf("node.addresses[%d]: %s is not the address of a node", i, a)
		}
	}
	return n, nil
}

// EncodeGone returns the form of a tombstone.
func EncodeGone(g Gone) []byte { g.Version = Version; return encode(g) }

// DecodeGone is the inverse of EncodeGone.
func DecodeGone(value []byte) (Gone, error) {
	var g Gone
	if err := decode(value, "gone", &g.Version, &g); err != nil {
		return Gone{}, err
	}
	if g.Rest < 0 {
		return Gone{}, fmt.Errorf("gone.rest: %s is negative", g.Rest)
	}
	return g, checkNode("gone.node", g.Node)
}

// EncodeLive returns the form of a sign of life.
func EncodeLive(l Live) []byte { l.Version = Version; return encode(l) }

// DecodeLive is the inverse of EncodeLive.
func DecodeLive(value []byte) (Live, error) {
	var l Live
	if err := decode(value, "live", &l.Version, &l); err != nil {
		return Live{}, err
	}
	return l, checkNode("live.node", l.Node)
}

// EncodeWant returns the form of a flag.
func EncodeWant(f Want) []byte { f.Version = Version; return encode(f) }

// DecodeWant is the inverse of EncodeWant.
func DecodeWant(value []byte) (Want, error) {
	var f Want
	if err := decode(value, "want", &f.Version, &f); err != nil {
		return Want{}, err
	}
	if !ValidUUID(f.Pool) {
		return Want{}, fmt.Errorf("want.pool: %q is no UUID", f.Pool)
	}
	if f.Set < 0 || f.Have < 0 {
		return Want{}, fmt.Errorf("want: set %d or have %d is negative", f.Set, f.Have)
	}
	return f, checkNode("want.node", f.Node)
}
