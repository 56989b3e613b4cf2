package record

import (
	"encoding/json"
	"fmt"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

// Cluster is what the registry says of itself.
type Cluster struct {
	// ID is the UUID of the cluster, made with its first contact.
	ID    string
	Epoch lease.Epoch
	// Frozen is set when a node saw the registry go back.
	Frozen *Frozen
}

// Frozen is the report of nodes which know that the registry was further.
type Frozen struct {
	// Node that saw it first.
	Node   lease.Node `json:"node"`
	Reason string     `json:"reason"`
	// Cluster is the ID that the node knows: another one if the registry was
	// not restored, but made anew.
	Cluster string `json:"cluster,omitempty"`
	// Epoch and Rev are the highest that any of them had seen before.
	Epoch int       `json:"epoch"`
	Rev   lease.Rev `json:"rev"`
}

type clusterWire struct {
	Version int         `json:"version"`
	ID      string      `json:"id"`
	Epoch   lease.Epoch `json:"epoch"`
	Frozen  *Frozen     `json:"frozen,omitempty"`
}

// EncodeCluster returns the form of the cluster's record.
func EncodeCluster(c Cluster) []byte { return encode(clusterWire{Version, c.ID, c.Epoch, c.Frozen}) }

// DecodeCluster is the inverse of EncodeCluster.
func DecodeCluster(value []byte) (Cluster, error) {
	var w struct {
		Version int             `json:"version"`
		ID      string          `json:"id"`
		Epoch   json.RawMessage `json:"epoch"`
		Frozen  json.RawMessage `json:"frozen"`
	}
	if err := decode(value, "cluster", &w.Version, &w); err != nil {
		return Cluster{}, err
	}
	c := Cluster{ID: w.ID}
	if !ValidUUID(c.ID) {
		return Cluster{}, fmt.Errorf("cluster.id: %q is no UUID", c.ID)
	}
	if err := ipam.DecodeObject(w.Epoch, "cluster.epoch", &c.Epoch); err != nil {
		return Cluster{}, err
	}
	if c.Epoch.Number < 1 || !ValidUUID(c.Epoch.ID) {
		return Cluster{}, fmt.Errorf("cluster.epoch: %d %q names none", c.Epoch.Number, c.Epoch.ID)
	}
	if w.Frozen != nil {
		c.Frozen = new(Frozen)
		if err := ipam.DecodeObject(w.Frozen, "cluster.frozen", c.Frozen); err != nil {
			return Cluster{}, err
		}
		if id := c.Frozen.Cluster; id != "" && !ValidUUID(id) {
			return Cluster{}, fmt.Errorf("cluster.frozen.cluster: %q is no UUID", id)
		}
	}
	return c, nil
}
