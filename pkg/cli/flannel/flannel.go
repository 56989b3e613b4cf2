// Package flannel reads the configuration of a flannel network, net-conf.json,
// and says which pool and which network of ours mean the same. A block of the
// pool is what flannel calls a subnet, and the same blocks are leased.
//
// What flannel does with the document is the measure: keys in any case, unknown
// keys without effect, host bits of a network dropped. What has an effect there
// and none here is told, and what cannot be done without is refused. The leases
// of flannel's nodes are not taken over.
package flannel

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// Plan is what becomes of a flannel network.
type Plan struct {
	Pool    record.Pool    `json:"pool"`
	Network record.Network `json:"network"`
	// Differs says what is not as it is with flannel, one thing each.
	Differs []string `json:"differs"`
}

// defaultVNI is flannel's.
const defaultVNI = 1

type conf struct {
	EnableIPv4    *bool
	EnableIPv6    bool
	Network       string
	SubnetLen     int
	SubnetMin     string
	SubnetMax     string
	IPv6Network   string
	IPv6SubnetLen int
	IPv6SubnetMin string
	IPv6SubnetMax string
	Backend       json.RawMessage
}

type backend struct {
	Type          string
	VNI           *int
	Port          int
	DirectRouting bool
	GBP           bool
}

// Load reads net-conf.json; the pool and the network get the name.
func Load(text []byte, name, tenant string) (Plan, error) {
	c := conf{}
	known := []string{"EnableIPv4", "EnableIPv6", "Network", "SubnetLen", "SubnetMin", "SubnetMax",
		"IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", "Backend"}
	unknown, err := decode(text, "", &c, known)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Differs: []string{}}
	for _, key := range unknown {
		p.differ("%s: is left out: there is nothing like it here", key)
	}
	if err := p.loadBackend(c.Backend, name, tenant); err != nil {
		return Plan{}, err
	}
	if err := p.loadPool(c, name, tenant); err != nil {
		return Plan{}, err
	}
	return p, nil
}

func (p *Plan) differ(format string, args ...any) {
	p.Differs = append(p.Differs, fmt.Sprintf(format, args...))
}

// decode reads an object as flannel does, and returns the keys that are not
// among the known ones.
func decode(text []byte, place string, v any, known []string) (unknown []string, err error) {
	if err := json.Unmarshal(text, v); err != nil {
		return nil, wrong(place, err)
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(text, &keys); err != nil {
		return nil, wrong(place, err)
	}
	for key := range keys {
		if !slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, key) }) {
			unknown = append(unknown, place+key)
		}
	}
	slices.Sort(unknown)
	return unknown, nil
}

// wrong says where a document does not have the form that it should have.
func wrong(place string, err error) error {
	if t, ok := err.(*json.UnmarshalTypeError); ok && t.Field != "" {
		return fmt.Errorf("net-conf.%s%s: %s is not what flannel has there", place, t.Field, t.Value)
	}
	return fmt.Errorf("net-conf: %s%w", place, err)
}

// loadBackend makes the network.
func (p *Plan) loadBackend(text json.RawMessage, name, tenant string) error {
	b := backend{}
	if len(bytes.TrimSpace(text)) == 0 || string(text) == "null" {
		return fmt.Errorf("net-conf.Backend: is missing, which to flannel means \"udp\": %w", refuse("udp"))
	}
	unknown, err := decode(text, "Backend.", &b, []string{"Type", "VNI", "Port", "DirectRouting", "GBP"})
	if err != nil {
		return err
	}
	for _, key := range unknown {
		if strings.EqualFold(key, "Backend.MTU") {
			p.differ("%s: is left out: it is that of the parent, less what VXLAN takes of it", key)
			continue
		}
		p.differ("%s: is left out: there is nothing like it here", key)
	}
	p.Network = record.Network{Version: record.Version, Name: name, Tenant: tenant, Pool: name}
	switch kind := strings.ToLower(b.Type); kind {
	case "host-gw":
		p.Network.Backend = record.HostGW
		return nil
	case "vxlan":
		p.Network.Backend = record.VXLAN
	default:
		return fmt.Errorf("net-conf.Backend.Type: %w", refuse(kind))
	}
	if b.GBP {
		return fmt.Errorf("net-conf.Backend.GBP: a policy would be lost: group marks are not carried between nodes; set it to false if nothing relies on them")
	}
	p.Network.VNI, p.Network.Port, p.Network.DirectRouting = defaultVNI, b.Port, b.DirectRouting
	if b.VNI != nil {
		p.Network.VNI = *b.VNI
	}
	if p.Network.Port == 0 {
		p.Network.Port = record.DefaultPort
	}
	for _, n := range []struct {
		key         string
		value, most int
	}{{"VNI", p.Network.VNI, 1<<24 - 1}, {"Port", p.Network.Port, 1<<16 - 1}} {
		if n.value < 1 || n.value > n.most {
			return fmt.Errorf("net-conf.Backend.%s: %d is not between 1 and %d", n.key, n.value, n.most)
		}
	}
	return nil
}

// refuse says what to use instead of a backend.
func refuse(kind string) error {
	instead, known := map[string]string{
		"udp":         `it copies each packet through a process; "vxlan" does the same in the kernel`,
		"ipip":        `use "vxlan", with "DirectRouting" if it had that`,
		"alloc":       `it only leases; underlayctl pool create makes a pool without a network`,
		"extension":   `its commands are not run; use "host-gw" or "vxlan"`,
		"wireguard":   `nothing is encrypted here; use "vxlan" on a WireGuard interface of the host as the parent`,
		"ipsec":       `nothing is encrypted here; use "vxlan" on hosts that have IPsec between them`,
		"aws-vpc":     `the tables of a cloud are not written; use "vxlan"`,
		"gce":         `the tables of a cloud are not written; use "vxlan"`,
		"ali-vpc":     `the tables of a cloud are not written; use "vxlan"`,
		"tencent-vpc": `the tables of a cloud are not written; use "vxlan"`,
	}[kind]
	switch {
	case kind == "":
		return fmt.Errorf(`is missing; it is "host-gw" where all hosts share an L2 segment, else "vxlan"`)
	case !known:
		return fmt.Errorf(`%q is neither "host-gw" nor "vxlan"`, kind)
	}
	return fmt.Errorf("the backend %q is not taken over: %s", kind, instead)
}

// loadPool makes the pool.
func (p *Plan) loadPool(c conf, name, tenant string) error {
	with4, with6 := c.EnableIPv4 == nil || *c.EnableIPv4, c.EnableIPv6
	if !with4 && !with6 {
		return fmt.Errorf("net-conf.EnableIPv4: is false, and EnableIPv6 is not true: nothing would have an address")
	}
	document := map[string]any{"version": record.Version, "name": name, "tenant": tenant, "kind": record.Routed}
	ranges, lengths := [][]any{}, map[string]int{}
	for _, f := range []struct {
		family
		on            bool
		length        int
		net, min, max string
	}{
		{ipv4, with4, c.SubnetLen, c.Network, c.SubnetMin, c.SubnetMax},
		{ipv6, with6, c.IPv6SubnetLen, c.IPv6Network, c.IPv6SubnetMin, c.IPv6SubnetMax},
	} {
		if !f.on {
			if f.net != "" {
				p.differ("%sNetwork: is left out, as flannel does: Enable%s is not true", f.prefix, f.name)
			}
			continue
		}
		s, err := f.subnets(f.net, f.length, f.min, f.max)
		if err != nil {
			return err
		}
		ranges = append(ranges, []any{map[string]string{
			"subnet": s.network.String(), "rangeStart": s.first.Addr().String(), "rangeEnd": lastOf(s.last).String(),
		}})
		lengths[strings.ToLower(f.name)] = s.length
		if least := f.width - record.MaxBlockBits; s.length < least {
			lengths[strings.ToLower(f.name)] = least
			p.differ("%sSubnetLen: %d becomes %d, of which a block has %d addresses, the most: a node leases another when one is full",
				f.prefix, s.length, least, 1<<record.MaxBlockBits)
		}
	}
	document["ranges"], document["blockPrefix"] = ranges, lengths
	text, err := json.Marshal(document)
	if err != nil {
		return err
	}
	p.Pool, err = record.LoadPool(text)
	return err
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
