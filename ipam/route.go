package ipam

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// Route is a route for the container, as the CNI specification 1.1 has it.
type Route struct {
	Dst netip.Prefix `json:"dst"`
	// GW is the next hop; the zero value means the gateway of the subnet.
	GW       netip.Addr `json:"gw,omitzero"`
	MTU      int        `json:"mtu,omitempty"`
	AdvMSS   int        `json:"advmss,omitempty"`
	Priority int        `json:"priority,omitempty"`
	// Table and Scope are nil for the kernel's default.
	Table *int `json:"table,omitempty"`
	Scope *int `json:"scope,omitempty"`
}

// Equal reports whether both say the same.
func (r Route) Equal(o Route) bool {
	same := func(a, b *int) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }
	tables, scopes := same(r.Table, o.Table), same(r.Scope, o.Scope)
	r.Table, r.Scope, o.Table, o.Scope = nil, nil, nil, nil
	return r == o && tables && scopes
}

// RoutesOf are the routes of whoever draws on a cluster pool: those of the pool,
// or, if it has none, those of the configuration. They are not mixed, and which
// of two lists is right only the user can tell.
func (p Pool) RoutesOf(configured []Route) ([]Route, error) {
	switch {
	case len(p.Routes) == 0:
		return configured, nil
	case len(configured) == 0 || sameRoutes(p.Routes, configured):
		return p.Routes, nil
	}
	// They consist of what any JSON has a form of.
	here, _ := json.Marshal(configured)
	there, _ := json.Marshal(p.Routes)
	return nil, fieldErrorf("ipam.routes", "%s differ from those of pool %q, which are %s; leave them out here, or change the pool: underlayctl pool update", here, p.Name, there)
}

// sameRoutes compares lists in any order.
func sameRoutes(a, b []Route) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(r Route) bool { return !slices.ContainsFunc(b, r.Equal) })
}

// LoadRoutes checks routes in the shape that Config has them in. Errors are
// *FieldError with the place from `routes` on.
func LoadRoutes(routes []json.RawMessage) ([]Route, error) {
	var out []Route
	for i, raw := range routes {
		r, err := loadRoute(raw, fmt.Sprintf("routes[%d]", i))
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

type routeWire struct {
	Dst      string `json:"dst"`
	GW       string `json:"gw"`
	MTU      int    `json:"mtu"`
	AdvMSS   int    `json:"advmss"`
	Priority int    `json:"priority"`
	Table    *int   `json:"table"`
	Scope    *int   `json:"scope"`
}

func loadRoute(raw json.RawMessage, place string) (Route, error) {
	var w routeWire
	if err := decodeStrict(raw, place, &w); err != nil {
		return Route{}, err
	}
	r := Route{MTU: w.MTU, AdvMSS: w.AdvMSS, Priority: w.Priority, Table: w.Table, Scope: w.Scope}
	dst, err := netip.ParsePrefix(w.Dst)
	if err != nil {
		return Route{}, fieldErrorf(place+".dst", "%q is not a prefix such as 0.0.0.0/0", w.Dst)
	}
	if r.Dst = dst.Masked(); r.Dst != dst {
		return Route{}, fieldErrorf(place+".dst", "%s has host bits set; the prefix is %s", dst, r.Dst)
	}
	if dst.Addr().Is4In6() {
		return Route{}, fieldErrorf(place+".dst", "%s is an IPv4 prefix in IPv6 form; write it as IPv4", dst)
	}
	for _, n := range []struct {
		key   string
		value *int
		most  int
	}{
		{"mtu", &w.MTU, math.MaxUint16}, {"advmss", &w.AdvMSS, math.MaxUint16}, {"priority", &w.Priority, math.MaxUint32},
		{"table", w.Table, math.MaxUint32}, {"scope", w.Scope, math.MaxUint8},
	} {
		if n.value != nil && (*n.value < 0 || *n.value > n.most) {
			return Route{}, fieldErrorf(place+"."+n.key, "%d is not between 0 and %d", *n.value, n.most)
		}
	}
	if w.GW != "" {
		if r.GW, err = loadAddr(place+".gw", w.GW); err != nil {
			return Route{}, err
		}
		if r.GW.Is4() != r.Dst.Addr().Is4() {
			return Route{}, fieldErrorf(place+".gw", "%s is of another address family than dst %s", r.GW, r.Dst)
		}
	}
	return r, nil
}
