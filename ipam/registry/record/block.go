package record

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

// MaxBlockBits limits a block to 1<<MaxBlockBits addresses.
const MaxBlockBits = lease.MaxBits

type blockWire struct {
	Version int                        `json:"version"`
	CIDR    string                     `json:"cidr"`
	Owner   string                     `json:"owner,omitempty"`
	Given   map[string]json.RawMessage `json:"given,omitempty"`
}

type entryWire struct {
	Node  string    `json:"node,omitempty"`
	Key   string    `json:"key,omitempty"`
	Since time.Time `json:"since,omitzero"`
}

// EncodeBlock returns the form of a block record.
func EncodeBlock(b lease.Block) ([]byte, error) {
	if err := checkBlock(b); err != nil {
		return nil, fmt.Errorf("block.%w", err)
	}
	w := blockWire{Version: Version, CIDR: b.CIDR.String(), Owner: string(b.Owner)}
	if len(b.Given) > 0 {
		w.Given = make(map[string]json.RawMessage, len(b.Given))
	}
	for a, e := range b.Given {
		w.Given[a.String()] = encode(entryWire{string(e.Node), e.Key, e.Since.UTC()})
	}
	return encode(w), nil
}

// DecodeBlock is the inverse of EncodeBlock.
func DecodeBlock(value []byte) (lease.Block, error) {
	if b, ok := formOfBlock(value); ok {
		return b, nil
	}
	return fullBlock(value)
}

func fullBlock(value []byte) (lease.Block, error) {
	var w blockWire
	if err := decode(value, "block", &w.Version, &w); err != nil {
		return lease.Block{}, err
	}
	cidr, err := netip.ParsePrefix(w.CIDR)
	if err != nil || cidr.String() != w.CIDR {
		return lease.Block{}, fmt.Errorf("block.cidr: %q is not a prefix", w.CIDR)
	}
	b := lease.Block{CIDR: cidr, Owner: lease.Node(w.Owner)}
	if len(w.Given) > 0 {
		b.Given = make(map[netip.Addr]lease.Entry, len(w.Given))
	}
	for text, raw := range w.Given {
		place := "block.given." + text
		a, err := netip.ParseAddr(text)
		// One form only, so that no address stands there twice.
		if err != nil || a.String() != text {
			return lease.Block{}, fmt.Errorf("%s: the key is not an address", place)
		}
		var e entryWire
		if err := ipam.DecodeObject(raw, place, &e); err != nil {
			return lease.Block{}, err
		}
		b.Given[a] = lease.Entry{Node: lease.Node(e.Node), Key: e.Key, Since: e.Since.UTC()}
	}
	if err := checkBlock(b); err != nil {
		return lease.Block{}, fmt.Errorf("block.%w", err)
	}
	return b, nil
}

func checkBlock(b lease.Block) error {
	if err := b.Validate(); err != nil {
		return err
	}
	if b.Owner != "" {
		if err := checkNode("owner", b.Owner); err != nil {
			return err
		}
	}
	for a, e := range b.Given {
		if e.Node != "" {
			if err := checkNode(fmt.Sprintf("given.%s.node", a), e.Node); err != nil {
				return err
			}
		}
	}
	return nil
}
