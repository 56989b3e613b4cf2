package ipam

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// Defaults of a pool; see Config.
const (
	DefaultCoolDown   = 30 * time.Second
	DefaultQuarantine = 10 * time.Minute
	DefaultStickyFor  = 24 * time.Hour
	DefaultDataDir    = "/var/lib/cni/underlay"
	DefaultRunDir     = "/run/underlay"
)

// Config is the `ipam` object of a network configuration, checked.
type Config struct {
	Pool   Pool
	Routes []Route
	// ResolvConf is a file whose contents become the result's DNS; "" none.
	ResolvConf string
	// DataDir and RunDir are "" where the configuration names none.
	DataDir string
	RunDir  string
	// StatusOnExhausted has STATUS fail when no address is left.
	StatusOnExhausted bool
}

// Route is a route for the container, as the CNI specification 1.1 has it.
type Route struct {
	Dst netip.Prefix
	// GW is the next hop; the zero value means the gateway of the subnet.
	GW       netip.Addr
	MTU      int
	AdvMSS   int
	Priority int
	// Table and Scope are nil for the kernel's default.
	Table *int
	Scope *int
}

type configWire struct {
	Type              string              `json:"type"`
	Pool              string              `json:"pool"`
	Ranges            [][]json.RawMessage `json:"ranges"`
	Subnet            string              `json:"subnet"`
	RangeStart        string              `json:"rangeStart"`
	RangeEnd          string              `json:"rangeEnd"`
	Gateway           string              `json:"gateway"`
	Exclude           []string            `json:"exclude"`
	Routes            []json.RawMessage   `json:"routes"`
	ResolvConf        string              `json:"resolvConf"`
	DataDir           string              `json:"dataDir"`
	RunDir            string              `json:"runDir"`
	Sticky            json.RawMessage     `json:"sticky"`
	StickyFor         string              `json:"stickyFor"`
	CoolDown          string              `json:"coolDown"`
	Quarantine        string              `json:"quarantine"`
	StatusOnExhausted bool                `json:"statusOnExhausted"`
}

type rangeWire struct {
	Subnet     string   `json:"subnet"`
	RangeStart string   `json:"rangeStart"`
	RangeEnd   string   `json:"rangeEnd"`
	Gateway    string   `json:"gateway"`
	Exclude    []string `json:"exclude"`
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

// Load checks the `ipam` object of network, in host-local's shape with this
// suite's additions. extra are range sets that the runtime passed
// (runtimeConfig.ipRanges); they stand before those of the object. Errors
// are *FieldError with the place from `ipam` on.
func Load(object json.RawMessage, network string, extra [][]json.RawMessage) (Config, error) {
	var w configWire
	if err := decodeStrict(object, "ipam", &w); err != nil {
		return Config{}, err
	}
	c := Config{ResolvConf: w.ResolvConf, DataDir: w.DataDir, RunDir: w.RunDir, StatusOnExhausted: w.StatusOnExhausted}
	c.Pool.Name = network
	if w.Pool != "" {
		return Config{}, fieldErrorf("ipam.pool", "%q is a cluster pool, which needs a node agent that serves it; define the ranges here instead", w.Pool)
	}
	if err := c.loadTimes(w); err != nil {
		return Config{}, err
	}
	if err := c.loadSets(w, extra); err != nil {
		return Config{}, err
	}
	for i, raw := range w.Routes {
		r, err := loadRoute(raw, fmt.Sprintf("ipam.routes[%d]", i))
		if err != nil {
			return Config{}, err
		}
		c.Routes = append(c.Routes, r)
	}
	return c, nil
}

// Dirs are dataDir and runDir of an `ipam` object that may be invalid
// otherwise: a release must find its ledger whatever else is wrong.
func Dirs(object json.RawMessage) (dataDir, runDir string) {
	var w struct {
		DataDir string `json:"dataDir"`
		RunDir  string `json:"runDir"`
	}
	if json.Unmarshal(object, &w) != nil {
		return "", ""
	}
	return w.DataDir, w.RunDir
}

func (c *Config) loadTimes(w configWire) error {
	var err error
	if c.Pool.CoolDown, err = loadDuration("ipam.coolDown", w.CoolDown, DefaultCoolDown); err != nil {
		return err
	}
	if c.Pool.Quarantine, err = loadDuration("ipam.quarantine", w.Quarantine, DefaultQuarantine); err != nil {
		return err
	}
	switch string(w.Sticky) {
	case "", "false", "null":
		if w.StickyFor != "" {
			return fieldErrorf("ipam.stickyFor", `%q has no meaning without "sticky": true`, w.StickyFor)
		}
		return nil
	case "true":
		c.Pool.Sticky = StickySoft
	case `"strict"`:
		c.Pool.Sticky = StickyStrict
	default:
		return fieldErrorf("ipam.sticky", `%s is none of false, true, "strict"`, short(w.Sticky))
	}
	c.Pool.StickyFor, err = loadDuration("ipam.stickyFor", w.StickyFor, DefaultStickyFor)
	return err
}

func loadDuration(place, s string, def time.Duration) (time.Duration, error) {
	if s == "" {
		return def, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fieldErrorf(place, `%q is not a duration such as "30s" or "24h"`, s)
	}
	return d, nil
}

func (c *Config) loadSets(w configWire, extra [][]json.RawMessage) error {
	var places [][]string
	add := func(list string, sets [][]json.RawMessage) error {
		for i, raws := range sets {
			var set RangeSet
			var at []string
			for j, raw := range raws {
				place := fmt.Sprintf("%s[%d][%d]", list, i, j)
				var rw rangeWire
				// nerdctl keeps its --ip-range beside the range it made of it.
				if err := decodeStrict(raw, place, &rw, "ipRange"); err != nil {
					return err
				}
				r, err := loadRange(rw, place)
				if err != nil {
					return err
				}
				if len(set) > 0 && set.Is4() != r.First.Is4() {
					return fieldErrorf(place+".subnet", "%s is of another address family than the other ranges of its set; give it a set of its own", r.Subnet)
				}
				set, at = append(set, r), append(at, place)
			}
			if len(set) == 0 {
				return fieldErrorf(fmt.Sprintf("%s[%d]", list, i), "a range set needs at least one range")
			}
			c.Pool.Sets, places = append(c.Pool.Sets, set), append(places, at)
		}
		return nil
	}
	if err := add("runtimeConfig.ipRanges", extra); err != nil {
		return err
	}
	inline := rangeWire{w.Subnet, w.RangeStart, w.RangeEnd, w.Gateway, w.Exclude}
	if w.Subnet != "" {
		r, err := loadRange(inline, "ipam")
		if err != nil {
			return err
		}
		c.Pool.Sets, places = append(c.Pool.Sets, RangeSet{r}), append(places, []string{"ipam"})
	} else if w.RangeStart != "" || w.RangeEnd != "" || w.Gateway != "" || len(w.Exclude) > 0 {
		return fieldErrorf("ipam.subnet", "is missing, but rangeStart, rangeEnd, gateway or exclude stand beside it")
	}
	if err := add("ipam.ranges", w.Ranges); err != nil {
		return err
	}
	if len(c.Pool.Sets) == 0 {
		return fieldErrorf("ipam.ranges", "is missing: give ranges or subnet")
	}
	return checkOverlaps(c.Pool.Sets, places)
}

func checkOverlaps(sets []RangeSet, places [][]string) error {
	type placed struct {
		Range
		at string
	}
	var seen []placed
	for i, set := range sets {
		for j, r := range set {
			for _, o := range seen {
				if r.overlaps(o.Interval) {
					return fieldErrorf(places[i][j], "%s overlaps %s: %s", r.Interval, o.at, o.Interval)
				}
			}
			seen = append(seen, placed{r, places[i][j]})
		}
	}
	return nil
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

func loadAddr(place, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fieldErrorf(place, "%q is not an IP address", s)
	}
	return a.Unmap(), nil
}
