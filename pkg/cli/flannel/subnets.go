package flannel

import (
	"fmt"
	"net/netip"
)

// family is what flannel's rules have as numbers for an address family.
type family struct {
	name string
	// prefix of its keys.
	prefix string
	width  int
	// length of a node's subnet where the network has room for four of it, and
	// the longest one that somebody may ask for.
	usual, longest int
	// smallest network that flannel can do anything with.
	smallest int
}

var (
	ipv4 = family{"IPv4", "", 32, 24, 30, 28}
	ipv6 = family{"IPv6", "IPv6", 128, 64, 126, 124}
)

// subnets are those that flannel leases: all of a length from first to last.
type subnets struct {
	network     netip.Prefix
	length      int
	first, last netip.Prefix
}

// subnets applies flannel's rules, those of its own registry: with the
// Kubernetes API, the blocks are that one's, and these keys have no effect.
func (f family) subnets(network string, length int, first, last string) (subnets, error) {
	at := func(key string) string { return "net-conf." + f.prefix + key }
	if network == "" {
		return subnets{}, fmt.Errorf("%s: is missing, and Enable%s is not false", at("Network"), f.name)
	}
	n, err := netip.ParsePrefix(network)
	if err != nil || n.Addr().BitLen() != f.width || n.Addr().Is4In6() {
		return subnets{}, fmt.Errorf("%s: %q is not an %s prefix", at("Network"), network, f.name)
	}
	s := subnets{network: n.Masked(), length: length}
	switch {
	case length == 0 && n.Bits() > f.smallest:
		return subnets{}, fmt.Errorf("%s: %s is smaller than a /%d, of which four nodes can have a subnet", at("Network"), s.network, f.smallest)
	case length == 0:
		// A quarter of a network in which there is no room for four usual ones.
		s.length = max(f.usual, n.Bits()+2)
	case length < n.Bits()+2:
		return subnets{}, fmt.Errorf("%s: %s has no room for four subnets of /%d", at("SubnetLen"), s.network, length)
	case length > f.longest:
		return subnets{}, fmt.Errorf("%s: a /%d has no room for a gateway and a container; the longest is %d", at("SubnetLen"), length, f.longest)
	}
	// Flannel leaves out the first subnet, whose first address is the network's.
	if s.first, err = s.bound(at("SubnetMin"), first, s.block(after(s.block(s.network.Addr())))); err != nil {
		return subnets{}, err
	}
	if s.last, err = s.bound(at("SubnetMax"), last, s.block(lastOf(s.network))); err != nil {
		return subnets{}, err
	}
	if s.last.Addr().Less(s.first.Addr()) {
		return subnets{}, fmt.Errorf("%s: %s comes before SubnetMin %s, and nothing can be leased", at("SubnetMax"), s.last.Addr(), s.first.Addr())
	}
	return s, nil
}

// block is the subnet that an address lies in.
func (s subnets) block(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, s.length).Masked() }

// bound reads the address of the first or last subnet.
func (s subnets) bound(place, text string, usual netip.Prefix) (netip.Prefix, error) {
	if text == "" {
		return usual, nil
	}
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return usual, fmt.Errorf("%s: %q is not an address", place, text)
	// As flannel has it, the unspecified address is none.
	case a.IsUnspecified():
		return usual, nil
	case !s.network.Contains(a):
		return usual, fmt.Errorf("%s: %s is outside %s", place, a, s.network)
	case s.block(a).Addr() != a:
		return usual, fmt.Errorf("%s: %s is not the first address of a /%d; %s is", place, a, s.length, s.block(a).Addr())
	}
	return s.block(a), nil
}

// after is the address that follows a prefix.
func after(p netip.Prefix) netip.Addr { return lastOf(p).Next() }
