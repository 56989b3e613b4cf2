package record

import (
	"encoding/json"
	"fmt"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

// Kinds of pools.
const (
	// Shared: any address may be on any node, and nodes trade single ones.
	Shared = "shared"
	// Routed: each node has whole blocks, which the others route to it.
	Routed = "routed"
)

// States of a pool. A pool in use has none.
const (
	// Pending: it is being compared with the other pools of its tenant.
	Pending = "pending"
	// Updating: the same, of a pool that may have leases already.
	Updating = "updating"
	// Deleting: nothing of it may be leased any more.
	Deleting = "deleting"
)

// DefaultNodes is how many nodes a pool is expected to serve.
const DefaultNodes = 64

// Default blocks of routed pools, and the limit for shared ones.
const (
	routedBits4    = 26
	routedBits6    = 122
	maxSharedBlock = 64
)

// Pool is a cluster pool.
type Pool struct {
	Name string
	// UUID tells it from a pool that had the name before; set when created.
	UUID   string
	Tenant string
	Kind   string
	// Ranges as they were written; Sets are what they mean.
	Ranges [][]json.RawMessage
	Sets   []ipam.RangeSet
	// Routes as they were written; IPAM says what they mean.
	Routes []json.RawMessage
	// Bits4 and Bits6 are the prefix lengths of blocks, which never change; 0
	// where no range is of the family.
	Bits4, Bits6  int
	ExpectedNodes int
	Sticky        ipam.Sticky
	StickyFor     time.Duration
	CoolDown      time.Duration
	Quarantine    time.Duration
	State         string
}

type poolWire struct {
	Version       int                 `json:"version"`
	Name          string              `json:"name"`
	UUID          string              `json:"uuid,omitempty"`
	Tenant        string              `json:"tenant"`
	Kind          string              `json:"kind"`
	Ranges        [][]json.RawMessage `json:"ranges"`
	Routes        []json.RawMessage   `json:"routes,omitempty"`
	BlockPrefix   json.RawMessage     `json:"blockPrefix,omitempty"`
	ExpectedNodes *int                `json:"expectedNodes,omitempty"`
	Sticky        any                 `json:"sticky"`
	StickyFor     string              `json:"stickyFor,omitempty"`
	CoolDown      string              `json:"coolDown,omitempty"`
	Quarantine    string              `json:"quarantine,omitempty"`
	State         string              `json:"state,omitempty"`
}

type blockPrefixWire struct {
	IPv4 int `json:"ipv4,omitempty"`
	IPv6 int `json:"ipv6,omitempty"`
}

// EncodePool returns the form of a pool that DecodePool or LoadPool made.
func EncodePool(p Pool) []byte {
	w := poolWire{
		Version: Version, Name: p.Name, UUID: p.UUID, Tenant: p.Tenant, Kind: p.Kind, Ranges: p.Ranges, Routes: p.Routes,
		BlockPrefix: encode(blockPrefixWire{p.Bits4, p.Bits6}), ExpectedNodes: &p.ExpectedNodes,
		Sticky:   map[ipam.Sticky]any{ipam.NotSticky: false, ipam.StickySoft: true, ipam.StickyStrict: "strict"}[p.Sticky],
		CoolDown: p.CoolDown.String(), Quarantine: p.Quarantine.String(), State: p.State,
	}
	if p.Sticky != ipam.NotSticky {
		w.StickyFor = p.StickyFor.String()
	}
	return encode(w)
}

// MarshalJSON is EncodePool, for documents that hold pools.
func (p Pool) MarshalJSON() ([]byte, error) { return EncodePool(p), nil }

// UnmarshalJSON is LoadPool.
func (p *Pool) UnmarshalJSON(value []byte) (err error) {
	*p, err = LoadPool(value)
	return err
}

// DecodePool is the inverse of EncodePool.
func DecodePool(value []byte) (Pool, error) {
	p, err := LoadPool(value)
	if err == nil && !ValidUUID(p.UUID) {
		err = fmt.Errorf("pool.uuid: %q is no UUID", p.UUID)
	}
	return p, err
}

// LoadPool reads a pool as a user writes it: without a UUID, and with defaults
// for what is left out.
func LoadPool(value []byte) (Pool, error) {
	var w poolWire
	if err := decode(value, "pool", &w.Version, &w); err != nil {
		return Pool{}, err
	}
	p, err := w.load()
	if err != nil {
		return Pool{}, fmt.Errorf("pool.%w", err)
	}
	return p, nil
}

func (w poolWire) load() (p Pool, err error) {
	p = Pool{Name: w.Name, UUID: w.UUID, Tenant: w.Tenant, Kind: w.Kind, Ranges: w.Ranges, Routes: w.Routes, ExpectedNodes: DefaultNodes, State: w.State}
	if err := checkName("name", p.Name); err != nil {
		return p, err
	}
	if err := checkTenant(p.Tenant); err != nil {
		return p, err
	}
	if p.UUID != "" && !ValidUUID(p.UUID) {
		return p, fmt.Errorf("uuid: %q is no UUID", p.UUID)
	}
	if p.Kind != Shared && p.Kind != Routed {
		return p, fmt.Errorf("kind: %q is neither %q nor %q", p.Kind, Shared, Routed)
	}
	if p.State != "" && p.State != Pending && p.State != Updating && p.State != Deleting {
		return p, fmt.Errorf("state: %q is not known", p.State)
	}
	if n := w.ExpectedNodes; n != nil {
		if *n < 1 || *n > 1<<20 {
			return p, fmt.Errorf("expectedNodes: %d is not between 1 and %d", *n, 1<<20)
		}
		p.ExpectedNodes = *n
	}
	if err := w.loadTimes(&p); err != nil {
		return p, err
	}
	if _, err := ipam.LoadRoutes(w.Routes); err != nil {
		return p, err
	}
	if p.Sets, err = ipam.LoadRanges(w.Ranges, p.Kind == Routed); err != nil {
		return p, err
	}
	return p, w.loadBlocks(&p)
}

func (w poolWire) loadTimes(p *Pool) error {
	switch w.Sticky {
	case nil, false:
	case true:
		p.Sticky = ipam.StickySoft
	case "strict":
		p.Sticky = ipam.StickyStrict
	default:
		return fmt.Errorf(`sticky: %v is none of false, true, "strict"`, w.Sticky)
	}
	if p.Sticky != ipam.NotSticky && p.Kind == Routed {
		return fmt.Errorf("sticky: an address of a routed pool cannot follow its owner to another node")
	}
	// What is left out, and stickyFor without sticky, which the samples have,
	// means the default.
	for _, d := range []struct {
		key, text string
		to        *time.Duration
		def       time.Duration
	}{
		{"stickyFor", w.StickyFor, &p.StickyFor, ipam.DefaultStickyFor},
		{"coolDown", w.CoolDown, &p.CoolDown, ipam.DefaultCoolDown},
		{"quarantine", w.Quarantine, &p.Quarantine, ipam.DefaultQuarantine},
	} {
		*d.to = d.def
		if d.text == "" {
			continue
		}
		v, err := time.ParseDuration(d.text)
		if err != nil || v < 0 {
			return fmt.Errorf("%s: %q is not a duration such as \"24h\"", d.key, d.text)
		}
		*d.to = v
	}
	if p.Sticky == ipam.NotSticky {
		p.StickyFor = 0
	}
	return nil
}

func (w poolWire) loadBlocks(p *Pool) error {
	var b blockPrefixWire
	if w.BlockPrefix != nil {
		if err := ipam.DecodeObject(w.BlockPrefix, "blockPrefix", &b); err != nil {
			return err
		}
	}
	for _, set := range p.Sets {
		key, have, to, width := "blockPrefix.ipv6", b.IPv6, &p.Bits6, 128
		if set.Is4() {
			key, have, to, width = "blockPrefix.ipv4", b.IPv4, &p.Bits4, 32
		}
		switch {
		case have == 0:
			// One length for all sets of a family: that of the smallest.
			*to = max(*to, DefaultBits(p.Kind, set, p.ExpectedNodes))
		case have > width || have < width-lease.MaxBits:
			return fmt.Errorf("%s: %d is not between %d and %d", key, have, width-lease.MaxBits, width)
		default:
			*to = have
		}
	}
	if p.Kind == Routed {
		if err := cut(p, b); err != nil {
			return err
		}
	}
	// A block is of one set, or its lease would be two.
	seen := make(map[int]lease.Grid)
	for i := range p.Sets {
		g, err := p.Grid(i)
		if err != nil {
			return fmt.Errorf("ranges[%d]: %w", i, err)
		}
		for _, r := range p.Sets[i] {
			for j, other := range seen {
				for _, a := range []netip.Addr{r.First, r.Last} {
					if block := netip.PrefixFrom(a, p.bits(a.Is4())).Masked(); other.Contains(block) {
						return fmt.Errorf("ranges[%d]: shares the block %s with ranges[%d]", i, block, j)
					}
				}
			}
		}
		seen[i] = g
	}
	return nil
}

// cut makes each block a subnet of its own. asked is what the user said of them.
func cut(p *Pool, asked blockPrefixWire) error {
	for i, set := range p.Sets {
		key, have, longest, keeps := "blockPrefix.ipv6", asked.IPv6, 126, "its subnet-router anycast address and its gateway"
		if set.Is4() {
			key, have, longest, keeps = "blockPrefix.ipv4", asked.IPv4, 30, "its network address, its gateway and its broadcast address"
		}
		bits := p.bits(set.Is4())
		if bits > longest && have == 0 {
			key = fmt.Sprintf("ranges[%d]", i)
		}
		if bits > longest {
			return fmt.Errorf("%s: a block of /%d has no address for a container beside %s; a routed pool needs /%d or shorter", key, bits, keeps, longest)
		}
		p.Sets[i] = set.Cut(bits)
		for j, r := range p.Sets[i] {
			if (ipam.RangeSet{r}).Size() == 0 {
				return fmt.Errorf("ranges[%d][%d]: no address of %s is left beside what its blocks keep (%s) and the exclusions", i, j, r.Interval, keeps)
			}
		}
	}
	return nil
}

// Nodes calls f with everybody whom lease.Block.Nodes has, and how many of those
// addresses are theirs that the pool gives out: first with the owner, then with
// each who has been given one, again for another.
func (p Pool) Nodes(b lease.Block) iter.Seq2[lease.Node, int] {
	return func(f func(lease.Node, int) bool) {
		given := 0
		for a := range b.Given {
			given += p.gives(a)
		}
		if b.Owner != "" && !f(b.Owner, p.Usable(b.CIDR)-given) {
			return
		}
		for a, e := range b.Given {
			if e.Node != "" && !f(e.Node, p.gives(a)) {
				return
			}
		}
	}
}

// gives is 1 for an address that the pool gives out, else 0.
func (p Pool) gives(a netip.Addr) int {
	if slices.ContainsFunc(p.Sets, func(s ipam.RangeSet) bool { _, usable := s.Find(a); return usable }) {
		return 1
	}
	return 0
}

// Usable counts the addresses of a block that the pool gives out.
func (p Pool) Usable(block netip.Prefix) int {
	n := uint64(0)
	for _, set := range p.Sets {
		n += set.Within(block)
	}
	return int(n)
}

// DefaultBits is the prefix length of the blocks of a range set: of a shared
// pool a power of two of addresses of which each expected node can have two,
// at most 64.
func DefaultBits(kind string, set ipam.RangeSet, nodes int) int {
	if kind == Routed {
		least := routedBits6
		if set.Is4() {
			least = routedBits4
		}
		// A subnet smaller than that is one block.
		for _, r := range set {
			least = max(least, r.Subnet.Bits())
		}
		return least
	}
	size := min(max(set.Size()/(2*uint64(nodes)), 1), maxSharedBlock)
	host := bits.Len64(size) - 1
	if set.Is4() {
		return 32 - host
	}
	return 128 - host
}

// Bits is the prefix length of the block that an address lies in.
func (p Pool) Bits(a netip.Addr) int { return p.bits(a.Is4()) }

func (p Pool) bits(is4 bool) int {
	if is4 {
		return p.Bits4
	}
	return p.Bits6
}

// Grid cuts a range set of the pool into blocks.
func (p Pool) Grid(set int) (lease.Grid, error) {
	return lease.NewGrid(p.Sets[set], p.bits(p.Sets[set].Is4()))
}

// IPAM is the pool as the ledger knows it.
func (p Pool) IPAM() ipam.Pool {
	routes, _ := ipam.LoadRoutes(p.Routes) // which was done before, to check them
	return ipam.Pool{Name: p.Name, UUID: p.UUID, Sets: p.Sets, Routes: routes, CoolDown: p.CoolDown, Quarantine: p.Quarantine, Sticky: p.Sticky, StickyFor: p.StickyFor}
}

// Overlap returns what two pools have in common: addresses, or blocks if one
// of them is routed.
func (p Pool) Overlap(o Pool) (netip.Prefix, bool) {
	for _, x := range p.extents(o.Kind) {
		for _, y := range o.extents(p.Kind) {
			if x.First.Is4() == y.First.Is4() && x.First.Compare(y.Last) <= 0 && y.First.Compare(x.Last) <= 0 {
				a := x.First
				if a.Less(y.First) {
					a = y.First
				}
				return netip.PrefixFrom(a, a.BitLen()), true
			}
		}
	}
	return netip.Prefix{}, false
}

// extents are the ranges, rounded to whole blocks where blocks are routed.
func (p Pool) extents(other string) []ipam.Interval {
	var out []ipam.Interval
	for _, set := range p.Sets {
		for _, r := range set {
			x := r.Interval
			if p.Kind == Routed || other == Routed {
				x.First = netip.PrefixFrom(x.First, p.bits(x.First.Is4())).Masked().Addr()
				lease.Block{CIDR: netip.PrefixFrom(x.Last, p.bits(x.Last.Is4())).Masked()}.Addrs(func(a netip.Addr) bool {
					x.Last = a
					return true
				})
			}
			out = append(out, x)
		}
	}
	return out
}
