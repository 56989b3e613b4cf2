package migrate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ipPool is an IPPool of whereabouts, or a list of them: what kubectl prints.
type ipPool struct {
	Kind     string   `json:"kind"`
	Items    []ipPool `json:"items"`
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		Range string `json:"range"`
		// Allocations by the number of the address, counted from the one that
		// Range begins with.
		Allocations map[string]struct {
			ID     string `json:"id"`
			PodRef string `json:"podref"`
			IfName string `json:"ifname"`
		} `json:"allocations"`
	} `json:"spec"`
}

// Whereabouts reads IPPools as `kubectl get ippools.whereabouts.cni.cncf.io -o
// json` prints them, from a file that errors call name. pools are the names of
// those that are wanted; without any there must be one in all.
func Whereabouts(name string, b []byte, pools []string) ([]Entry, error) {
	var doc ipPool
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, &Error{placeOf(name, b, err), err}
	}
	lines, err := keyLines(b)
	if err != nil {
		return nil, &Error{name, err}
	}
	list, paths := []ipPool{doc}, []string{""}
	if doc.Kind == "List" || doc.Kind == "IPPoolList" || doc.Items != nil {
		list, paths = doc.Items, nil
		for i := range list {
			paths = append(paths, fmt.Sprintf("/items/%d", i))
		}
	}
	for _, want := range pools {
		if !slices.ContainsFunc(list, func(p ipPool) bool { return p.Metadata.Name == want }) {
			return nil, bad(name, "it has no IPPool %q", want)
		}
	}
	if len(pools) == 0 && len(list) != 1 {
		var names []string
		for _, p := range list {
			names = append(names, p.Metadata.Name)
		}
		return nil, bad(name, "it has %d IPPools, and one network is to take them in; choose with --ippool: %s", len(list), strings.Join(names, ", "))
	}
	var entries []Entry
	for i, p := range list {
		if len(pools) > 0 && !slices.Contains(pools, p.Metadata.Name) {
			continue
		}
		more, err := p.entries(func(path string) string {
			if line, ok := lines[paths[i]+path]; ok {
				return fmt.Sprintf("%s:%d", name, line)
			}
			return name
		})
		if err != nil {
			return nil, err
		}
		entries = append(entries, more...)
	}
	return entries, nil
}

func (p *ipPool) entries(place func(path string) string) (entries []Entry, err error) {
	if p.Kind != "" && p.Kind != "IPPool" {
		return nil, bad(place("/kind"), "%q is no IPPool", p.Kind)
	}
	subnet, err := netip.ParsePrefix(p.Spec.Range)
	if err != nil {
		return nil, bad(place("/spec/range"), "range: %w", err)
	}
	for offset, a := range p.Spec.Allocations {
		at := place("/spec/allocations/" + offset)
		n, err := strconv.ParseUint(offset, 10, 63)
		if err != nil {
			return nil, bad(at, "%q is no number of an address", offset)
		}
		addr, ok := plus(subnet.Addr(), n)
		if !ok || !subnet.Contains(addr) {
			return nil, bad(at, "address number %d is outside of %s", n, p.Spec.Range)
		}
		if err := checkName(a.ID); err != nil {
			return nil, bad(at, "id %w", err)
		}
		for what, s := range map[string]string{"ifname": a.IfName, "podref": a.PodRef} {
			if s == "" {
				continue
			}
			if err := checkName(s); err != nil {
				return nil, bad(at, "%s %w", what, err)
			}
		}
		entries = append(entries, Entry{Addr: addr.Unmap(), ContainerID: a.ID, IfName: a.IfName, Owner: a.PodRef, Subnet: subnet.Masked(), Place: at})
	}
	slices.SortFunc(entries, func(a, b Entry) int { return a.Addr.Compare(b.Addr) })
	return entries, nil
}

// plus returns the address that is n after a, unless there is none.
func plus(a netip.Addr, n uint64) (netip.Addr, bool) {
	b := a.AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += uint64(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	out, ok := netip.AddrFromSlice(b)
	return out, ok && n == 0
}

// placeOf is the file and line of a mistake in JSON.
func placeOf(name string, b []byte, err error) string {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	offset := int64(-1)
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &kind):
		offset = kind.Offset
	}
	if offset < 0 || offset > int64(len(b)) {
		return name
	}
	return fmt.Sprintf("%s:%d", name, 1+bytes.Count(b[:offset], []byte("\n")))
}

// keyLines finds the line of each key of a JSON document, by its path.
func keyLines(b []byte) (map[string]int, error) {
	lines := make(map[string]int)
	d := json.NewDecoder(bytes.NewReader(b))
	line, upTo := 1, int64(0)
	var walk func(path string) error
	walk = func(path string) error {
		token, err := d.Token()
		if err != nil {
			return err
		}
		switch token {
		case json.Delim('{'):
			for d.More() {
				key, err := d.Token()
				if err != nil {
					return err
				}
				line += bytes.Count(b[upTo:d.InputOffset()], []byte("\n"))
				upTo = d.InputOffset()
				at := fmt.Sprintf("%s/%s", path, key)
				lines[at] = line
				if err := walk(at); err != nil {
					return err
				}
			}
		case json.Delim('['):
			for i := 0; d.More(); i++ {
				if err := walk(fmt.Sprintf("%s/%d", path, i)); err != nil {
					return err
				}
			}
		default:
			return nil
		}
		_, err = d.Token() // the end
		return err
	}
	if err := walk(""); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return lines, nil
}
