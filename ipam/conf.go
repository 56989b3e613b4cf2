package ipam

import (
	"encoding/json"
	"fmt"
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
	// Pool is the network's own; the zero value with Cluster.
	Pool Pool
	// Cluster is the name of the cluster pool to draw on instead.
	Cluster string
	Routes  []Route
	// ResolvConf is a file whose contents become the result's DNS; "" none.
	ResolvConf string
	// DataDir and RunDir are "" where the configuration names none.
	DataDir string
	RunDir  string
	// StatusOnExhausted has STATUS fail when no address is left.
	StatusOnExhausted bool
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
	if err := c.loadPool(w, network, extra); err != nil {
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

// PoolName is that of the pool that addresses come from.
func (c *Config) PoolName() string {
	if c.Cluster != "" {
		return c.Cluster
	}
	return c.Pool.Name
}

// loadPool loads what a local pool consists of, or sees that nothing of that
// stands beside the name of a cluster pool.
func (c *Config) loadPool(w configWire, network string, extra [][]json.RawMessage) error {
	if w.Pool == "" {
		c.Pool.Name = network
		if err := c.loadTimes(w); err != nil {
			return err
		}
		return c.loadSets(w, extra, false)
	}
	if err := CheckName("ipam.pool", w.Pool); err != nil {
		return err
	}
	c.Cluster = w.Pool
	for _, k := range []struct {
		place string
		there bool
	}{
		{"ipam.ranges", len(w.Ranges) > 0}, {"ipam.subnet", w.Subnet != ""}, {"ipam.rangeStart", w.RangeStart != ""}, {"ipam.rangeEnd", w.RangeEnd != ""},
		{"ipam.gateway", w.Gateway != ""}, {"ipam.exclude", len(w.Exclude) > 0}, {"runtimeConfig.ipRanges", len(extra) > 0},
	} {
		if k.there {
			return fieldErrorf(k.place, "cannot stand beside ipam.pool: the registry says which addresses pool %q has", w.Pool)
		}
	}
	for _, k := range []struct {
		key   string
		there bool
	}{
		{"coolDown", w.CoolDown != ""}, {"quarantine", w.Quarantine != ""}, {"sticky", w.Sticky != nil}, {"stickyFor", w.StickyFor != ""},
	} {
		if k.there {
			return fieldErrorf("ipam."+k.key, "cannot stand beside ipam.pool: it belongs to pool %q in the registry; change it there: underlayctl pool update", w.Pool)
		}
	}
	return nil
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

func (c *Config) loadSets(w configWire, extra [][]json.RawMessage, routed bool) error {
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
				r, err := loadRange(rw, place, routed)
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
		r, err := loadRange(inline, "ipam", routed)
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
		return fieldErrorf("ipam.ranges", "is missing: give ranges, subnet, or a cluster pool")
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

func loadAddr(place, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fieldErrorf(place, "%q is not an IP address", s)
	}
	return a.Unmap(), nil
}
