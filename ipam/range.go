package ipam

import (
	"fmt"
	"net/netip"
	"sort"
	"strings"
)

// loadRange checks a range and fills in what it leaves out: the bounds are
// the subnet's usable hosts, the gateway its first address where the subnet
// has room for one (as host-local has it).
func loadRange(w rangeWire, place string) (Range, error) {
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
	if w.Gateway != "" {
		if r.Gateway, err = loadAddr(place+".gateway", w.Gateway); err != nil {
			return Range{}, err
		}
		if !subnet.Contains(r.Gateway) {
			return Range{}, fieldErrorf(place+".gateway", "%s is outside %s", r.Gateway, subnet)
		}
	} else if subnet.Addr().BitLen()-subnet.Bits() > 1 {
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
		if x.First.Less(r.First) {
			x.First = r.First
		}
		if r.Last.Less(x.Last) {
			x.Last = r.Last
		}
		out = append(out, x)
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
	sort.Sort(byFirst(out))
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

// byFirst is for package sort: package slices would make a sort of its own for
// the type, of 20 kB in every plugin.
type byFirst []Interval

func (s byFirst) Len() int           { return len(s) }
func (s byFirst) Less(i, j int) bool { return s[i].First.Less(s[j].First) }
func (s byFirst) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }

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
