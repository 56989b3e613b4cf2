package agent

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/agent/network"
)

type parentWire struct {
	Name  string `json:"name"`
	Match string `json:"match"`
	Reach string `json:"reach"`
}

// loadParents reads the value of the key parents; nil where there is none.
func loadParents(all map[string]json.RawMessage) (map[string]network.Parent, error) {
	if len(all) == 0 {
		return nil, nil
	}
	out := make(map[string]network.Parent)
	for name, text := range all {
		at := "parents." + name
		if err := ipam.CheckName(at, name); err != nil {
			return nil, err
		}
		p, err := loadParent(at, text)
		if err != nil {
			return nil, err
		}
		out[name] = p
	}
	return out, nil
}

func loadParent(at string, text json.RawMessage) (p network.Parent, err error) {
	var w parentWire
	if err := ipam.DecodeObject(text, at, &w); err != nil {
		return p, err
	}
	keys := 0
	for _, value := range []string{w.Name, w.Match, w.Reach} {
		if value != "" {
			keys++
		}
	}
	if keys != 1 {
		return p, &ipam.FieldError{Place: at, Msg: `has to be one of {"name": "eth1"}, {"match": "eth[12]"} and {"reach": "192.0.2.1"}`}
	}
	p = network.Parent{Name: w.Name, Match: w.Match}
	if _, err := p.Compile(); err != nil {
		return p, &ipam.FieldError{Place: at + ".match", Msg: fmt.Sprintf("%q is no regular expression: %v", w.Match, err)}
	}
	if w.Reach != "" {
		p.Reach, err = netip.ParseAddr(w.Reach)
		if err != nil || p.Reach.Zone() != "" {
			return p, &ipam.FieldError{Place: at + ".reach", Msg: fmt.Sprintf("%q is not an IP address", w.Reach)}
		}
		p.Reach = p.Reach.Unmap()
	}
	return p, nil
}
