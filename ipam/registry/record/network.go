package record

import (
	"encoding/json"
	"fmt"

	"github.com/underlay-cni/underlay/ipam"
)

// Backends of a network: how its nodes reach each other's blocks.
const (
	HostGW = "hostgw"
	VXLAN  = "vxlan"
)

// DefaultPort of VXLAN, which Linux had before there was a standard.
const DefaultPort = 8472

// Network says how the nodes that have blocks of a pool reach each other.
type Network struct {
	Version int    `json:"version"`
	Name    string `json:"name"`
	Tenant  string `json:"tenant"`
	// Pool by name, of the same tenant.
	Pool    string `json:"pool"`
	Backend string `json:"backend"`
	// VNI, 1 to 1<<24-1, and UDP port; of the backend vxlan only.
	VNI  int `json:"vni,omitempty"`
	Port int `json:"port,omitempty"`
	// DirectRouting routes without VXLAN where two nodes share a subnet.
	DirectRouting bool `json:"directRouting,omitempty"`
}

// EncodeNetwork returns the form of a network.
func EncodeNetwork(n Network) []byte {
	n.Version = Version
	return encode(n)
}

// DecodeNetwork is the inverse of EncodeNetwork.
func DecodeNetwork(value []byte) (Network, error) {
	var n Network
	if err := decode(value, "network", &n.Version, &n); err != nil {
		return Network{}, err
	}
	if n.Backend == VXLAN && n.Port == 0 {
		n.Port = DefaultPort
	}
	if err := n.check(); err != nil {
		return Network{}, fmt.Errorf("network.%w", err)
	}
	return n, nil
}

func (n Network) check() error {
	if err := checkName("name", n.Name); err != nil {
		return err
	}
	if err := checkTenant(n.Tenant); err != nil {
		return err
	}
	if err := checkName("pool", n.Pool); err != nil {
		return err
	}
	switch n.Backend {
	case HostGW:
		if n.VNI != 0 || n.Port != 0 || n.DirectRouting {
			return fmt.Errorf("backend: vni, port and directRouting are for %q", VXLAN)
		}
	case VXLAN:
		if n.VNI < 1 || n.VNI > MaxVNI {
			return fmt.Errorf("vni: %d is not between 1 and %d", n.VNI, MaxVNI)
		}
		if n.Port < 1 || n.Port > 65535 {
			return fmt.Errorf("port: %d is not between 1 and 65535", n.Port)
		}
	default:
		return fmt.Errorf("backend: %q is neither %q nor %q", n.Backend, HostGW, VXLAN)
	}
	return nil
}

// Tenant limits what the pools of a tenant may take, and has the VNIs of its
// segments. A tenant without this record has no limit, and no VNIs.
type Tenant struct {
	Version int    `json:"version"`
	Name    string `json:"name"`
	// Quota of addresses that nodes lease of all its pools; 0 is no limit.
	Quota int64 `json:"quota"`
	// VNIs that its segments get whose configuration names none; the zero value is
	// none.
	VNIs VNIs `json:"vnis,omitzero"`
}

// VNIs are those from First to Last, both included.
type VNIs struct {
	First int `json:"first"`
	Last  int `json:"last"`
}

// Has reports whether a VNI is one of them.
func (r VNIs) Has(vni int) bool { return vni != 0 && r.First <= vni && vni <= r.Last }

func (r VNIs) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

// EncodeTenant returns the form of a tenant.
func EncodeTenant(t Tenant) []byte {
	t.Version = Version
	return encode(t)
}

// DecodeTenant is the inverse of EncodeTenant.
func DecodeTenant(value []byte) (Tenant, error) {
	var t Tenant
	if err := decode(value, "tenant", &t.Version, &t); err != nil {
		return Tenant{}, err
	}
	if err := checkName("tenant.name", t.Name); err != nil {
		return Tenant{}, err
	}
	if t.Quota < 0 {
		return Tenant{}, fmt.Errorf("tenant.quota: %d is negative", t.Quota)
	}
	return t, t.VNIs.check(value)
}

// check also looks for keys in the range that are not ours.
func (r VNIs) check(value []byte) error {
	var w struct {
		VNIs json.RawMessage `json:"vnis"`
	}
	if err := json.Unmarshal(value, &w); err != nil || w.VNIs == nil {
		return err
	}
	if err := ipam.DecodeObject(w.VNIs, "tenant.vnis", new(VNIs)); err != nil {
		return err
	}
	switch {
	case r.First < 1 || r.First > MaxVNI:
		return fmt.Errorf("tenant.vnis.first: %d is not between 1 and %d", r.First, MaxVNI)
	case r.Last < r.First || r.Last > MaxVNI:
		return fmt.Errorf("tenant.vnis.last: %d is not between the first, %d, and %d", r.Last, r.First, MaxVNI)
	}
	return nil
}

// checkTenant: the empty name is the tenant of who has none.
func checkTenant(s string) error {
	if s == "" {
		return nil
	}
	return checkName("tenant", s)
}
