package ipam

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// loadRange checks a range and fills in what it leaves out: the bounds are
// the subnet's usable hosts, the gateway its first address where the subnet
// has room for one (as host-local has it). A routed one has a gateway in each
// block instead.
func loadRange(w rangeWire, place string, routed bool) (Range, error) {
	if w.Subnet == "" {
		return Range{}, fieldErrorf(place+".subnet", "is missing")
	}
	subnet, err := netip.ParsePrefix(w.Subnet)
	if err != nil {
		return Range{}, fieldErrorf(place+".subnet", "%q is not a subnet such as 192.0.2.0/24", w.Subnet)
	}
	if subnet.Addr().Is4In6() {
		return Range{}, fieldErrorf(place+".subnet", "%s is an IPv4 subnet in IPv6 form; write it as IPv4", subnet)
	}
	if subnet.Masked() != subnet {
		return Range{}, fieldErrorf(place+".subnet", "%s has host bits set; the subnet is %s", subnet, subnet.Masked())
	}
	if a := subnet.Addr(); a.IsMulticast() || a.IsLoopback() || (subnet.Bits() < 4) {
		return Range{}, fieldErrorf(place+".subnet", "%s cannot be given to interfaces", subnet)
	}
	hosts := hostsOf(subnet)
	r := Range{Subnet: subnet, Interval: hosts}
	if r.First, err = bound(place+".rangeStart", w.RangeStart, r.First, subnet, hosts); err != nil {
		return Range{}, err
	}
	if r.Last, err = bound(place+".rangeEnd", w.RangeEnd, r.Last, subnet, hosts); err != nil {
		return Range{}, err
	}
	if r.Last.Less(r.First) {
		return Range{}, fieldErrorf(place+".rangeEnd", "%s comes before rangeStart %s", r.Last, r.First)
	}
	if w.Gateway != "" && routed {
		return Range{}, fieldErrorf(place+".gateway", "%s has no meaning in a routed pool, where the first usable address of each block is its gateway; leave it out", w.Gateway)
	}
	if w.Gateway != "" {
		if r.Gateway, err = loadAddr(place+".gateway", w.Gateway); err != nil {
			return Range{}, err
		}
		if !subnet.Contains(r.Gateway) {
			return Range{}, fieldErrorf(place+".gateway", "%s is outside %s", r.Gateway, subnet)
		}
	} else if subnet.Addr().BitLen()-subnet.Bits() > 1 && !routed {
		r.Gateway = hosts.First
	}
	if r.Exclude, err = exclusions(w.Exclude, place+".exclude", r); err != nil {
		return Range{}, err
	}
	if RangeSet([]Range{r}).Size() == 0 {
		return Range{}, fieldErrorf(place, "no address of %s is left after gateway and exclusions", r.Interval)
	}
	return r, nil
}

// hostsOf is what of a subnet an interface may carry: not the network and
// broadcast address of IPv4, not the subnet-router anycast address of IPv6
// (RFC 4291, 2.6.1); of the point-to-point lengths /31 (RFC 3021) and /127
// (RFC 6164), and of a single address, all.
func hostsOf(subnet netip.Prefix) Interval {
	h := Interval{First: subnet.Addr(), Last: lastOf(subnet)}
	if subnet.Addr().BitLen()-subnet.Bits() <= 1 {
		return h
	}
	h.First = h.First.Next()
	if subnet.Addr().Is4() {
		h.Last = h.Last.Prev()
	}
	return h
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// bound parses one end of a range. Network, broadcast and anycast address
// stand for the nearest host.
func bound(place, s string, def netip.Addr, subnet netip.Prefix, hosts Interval) (netip.Addr, error) {
	if s == "" {
		return def, nil
	}
	a, err := loadAddr(place, s)
	switch {
	case err != nil:
		return a, err
	case !subnet.Contains(a):
		return a, fieldErrorf(place, "%s is outside %s", a, subnet)
	case a.Less(hosts.First):
		return hosts.First, nil
	case hosts.Last.Less(a):
		// nerdctl ends a range with the subnet when it is told a part of it.
		return hosts.Last, nil
	}
	return a, nil
}

// exclusions parses single addresses, prefixes and first-last pairs, clips
// them to the range, adds the gateway and merges what touches.
func exclusions(list []string, place string, r Range) ([]Interval, error) {
	var out []Interval
	add := func(x Interval) {
		if !x.overlaps(r.Interval) {
			return
		}
		out = append(out, x.clip(r.Interval))
	}
	for i, s := range list {
		x, err := loadInterval(fmt.Sprintf("%s[%d]", place, i), s)
		if err != nil {
			return nil, err
		}
		if !r.Subnet.Contains(x.First) && !r.Subnet.Contains(x.Last) {
			return nil, fieldErrorf(fmt.Sprintf("%s[%d]", place, i), "%s is outside %s", s, r.Subnet)
		}
		add(x)
	}
	if r.Gateway.IsValid() {
		add(Interval{r.Gateway, r.Gateway})
	}
	slices.SortFunc(out, func(a, b Interval) int { return a.First.Compare(b.First) })
	merged := out[:0]
	for _, x := range out {
		if n := len(merged); n > 0 && (!merged[n-1].Last.Next().IsValid() || x.First.Compare(merged[n-1].Last.Next()) <= 0) {
			if merged[n-1].Last.Less(x.Last) {
				merged[n-1].Last = x.Last
			}
			continue
		}
		merged = append(merged, x)
	}
	return merged, nil
}

// clip is what two intervals have in common, which must be something.
func (i Interval) clip(o Interval) Interval {
	if i.First.Less(o.First) {
		i.First = o.First
	}
	if o.Last.Less(i.Last) {
		i.Last = o.Last
	}
	return i
}

func loadInterval(place, s string) (Interval, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		p = p.Masked()
		return Interval{p.Addr(), lastOf(p)}, nil
	}
	first, last, pair := strings.Cut(s, "-")
	if !pair {
		last = first
	}
	a, errA := netip.ParseAddr(strings.TrimSpace(first))
	b, errB := netip.ParseAddr(strings.TrimSpace(last))
	if errA != nil || errB != nil || a.Is4() != b.Is4() {
		return Interval{}, fieldErrorf(place, "%q is not an address, a prefix or first-last", s)
	}
	if b.Less(a) {
		return Interval{}, fieldErrorf(place, "%q ends before it begins", s)
	}
	return Interval{a.Unmap(), b.Unmap()}, nil
}

// Cut makes of a range set that of a routed pool: each block of a prefix length
// is a subnet of its own, with the first usable address as its gateway. That one,
// the address before it (network, or subnet-router anycast) and, of IPv4, the
// last one (broadcast) are given to nobody.
func (s RangeSet) Cut(bits int) RangeSet {
	out := slices.Clone(s)
	for i := range out {
		out[i].BlockBits = bits
	}
	return out
}

// Address is what an attachment is told of its address.
func (r Range) Address(a netip.Addr) Address {
	if r.BlockBits == 0 {
		return Address{Prefix: netip.PrefixFrom(a, r.Subnet.Bits()), Gateway: r.Gateway}
	}
	p := netip.PrefixFrom(a, r.BlockBits)
	return Address{Prefix: p, Gateway: p.Masked().Addr().Next()}
}

// offset is the number of an address in its block, and how many that has; 0 for
// a range without blocks, or with some that Cut was not to make.
func (r Range) offset(a netip.Addr) (n, size uint64) {
	host := a.BitLen() - r.BlockBits
	if r.BlockBits == 0 || host < 2 || host > 62 {
		return 0, 0
	}
	b := a.As16()
	size = 1 << host
	return binary.BigEndian.Uint64(b[8:]) & (size - 1), size
}

// keeps reports whether a block has the address to itself.
func (r Range) keeps(a netip.Addr) bool {
	n, size := r.offset(a)
	return size > 0 && (n < 2 || a.Is4() && n == size-1)
}

// count counts the usable addresses of an interval, saturating at 1<<63-1.
func (r Range) count(x Interval) uint64 {
	if !x.overlaps(r.Interval) {
		return 0
	}
	x = x.clip(r.Interval)
	n := r.unkept(x)
	for _, e := range r.Exclude {
		if n != math.MaxInt64 && e.overlaps(x) {
			n -= r.unkept(e.clip(x))
		}
	}
	return n
}

// unkept counts the addresses that no block has to itself.
func (r Range) unkept(x Interval) uint64 {
	n := x.size()
	first, size := r.offset(x.First)
	if size == 0 || n == math.MaxInt64 {
		return n
	}
	kept := []uint64{0, 1}
	if x.First.Is4() {
		kept = append(kept, size-1)
	}
	last := first + n - 1 // in the count that begins with the first block
	for _, k := range kept {
		if k <= last%size {
			n--
		}
		n -= last / size
		if k < first {
			n++
		}
	}
	return n
}

// refusal says why the range does not give out an address of its subnet, "" if
// it does or is not about it.
func (r Range) refusal(a netip.Addr) string {
	_, ex := r.excluded(a)
	switch block := netip.PrefixFrom(a, r.BlockBits).Masked(); {
	case a == r.Gateway:
		return fmt.Sprintf("the gateway of %s", r.Subnet)
	case r.Subnet.Contains(a) && r.keeps(a):
		return keptAs(a, block)
	case r.Contains(a) && ex:
		return fmt.Sprintf("excluded from %s", r.Interval)
	}
	return ""
}

// keptAs says what a block has an address for.
func keptAs(a netip.Addr, block netip.Prefix) string {
	gateway, what := block.Addr().Next(), "broadcast"
	switch {
	case a == gateway:
		return fmt.Sprintf("the gateway of block %s", block)
	case a == block.Addr() && a.Is4():
		what = "network"
	case a == block.Addr():
		what = "subnet-router anycast"
	}
	return fmt.Sprintf("the %s address of block %s, whose gateway is %s", what, block, gateway)
}
