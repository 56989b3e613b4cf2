package nft

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/underlay-cni/underlay/pkg/nft/drop"
)

// list reads the table: all of it, or that there is none. knftables would start
// nft for each set.
func list(ctx context.Context) ([]table, error) {
	listing, err := drop.Output(ctx, "nft", "--json", "list", "table", string(family), name)
	switch {
	case err != nil && strings.Contains(err.Error(), "No such file or directory"): // nft speaks English everywhere
		return nil, nil
	case err != nil:
		return nil, err
	}
	c, err := parseTable([]byte(listing))
	if err != nil {
		return nil, fmt.Errorf("nft list table %s: %w", name, err)
	}
	return []table{c.table()}, nil
}

// parseTable reads what nft lists as JSON (libnftables-json(5)). What is none of
// ours comes out as something that is never wanted.
func parseTable(listing []byte) (c content, err error) {
	c = content{chains: make(map[string][]string), sets: make(map[string][]string)}
	var all struct {
		Objects []map[string]json.RawMessage `json:"nftables"`
	}
	if err := json.Unmarshal(listing, &all); err != nil {
		return c, err
	}
	for _, o := range all.Objects {
		for kind, raw := range o {
			var object struct {
				Name, Chain, Comment string
				Elem                 []json.RawMessage
			}
			if err := json.Unmarshal(raw, &object); err != nil {
				return c, err
			}
			switch kind {
			case "metainfo", "table":
			case "chain":
				rules := c.chains[object.Name]
				c.chains[object.Name] = rules // there, also if it has none
			case "rule":
				c.chains[object.Chain] = append(c.chains[object.Chain], object.Comment)
			case "set":
				c.sets[object.Name] = nil
				for _, e := range object.Elem {
					c.sets[object.Name] = append(c.sets[object.Name], value(e))
				}
			default:
				c.sets[kind+"/"+object.Name] = nil
			}
		}
	}
	return c, nil
}

// value is an element as it is written in a set: an address or a port, or a
// prefix.
func value(raw json.RawMessage) string {
	var address string
	if json.Unmarshal(raw, &address) == nil {
		return address
	}
	var p struct {
		Prefix struct {
			Addr string
			Len  int
		}
	}
	if json.Unmarshal(raw, &p) == nil && p.Prefix.Addr != "" {
		return fmt.Sprintf("%s/%d", p.Prefix.Addr, p.Prefix.Len)
	}
	return strings.Join(strings.Fields(string(raw)), "") // a number, or none of ours
}
