package ipam

import (
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/underlay-cni/underlay/pkg/digest"
)

// DefaultMACPrefix is locally administered and unicast, and leaves five
// octets for what makes the address its own.
const DefaultMACPrefix = "02"

// DeriveMAC makes the MAC of the interface that carries addr on network: the
// octets of prefix, then the low octets of the address shifted by an amount
// that depends on the network and on who has the address to give, by a name
// that nobody else has: of a local pool the node, of a cluster pool the pool,
// so that an owner who moves to another node keeps both. It is the same after
// every restart; within a network no two addresses of one giver share one, as
// long as the host part of the subnet fits the octets that prefix leaves; equal
// addresses of two networks, or of two nodes that give out the same ones by
// mistake, get different ones. prefix is as ParseMACPrefix accepts it.
func DeriveMAC(prefix, network, giver string, addr netip.Addr) (string, error) {
	head, err := ParseMACPrefix(prefix)
	if err != nil {
		return "", err
	}
	mac := make(net.HardwareAddr, 6)
	n := copy(mac, head)
	shift := digest.Sum256([]byte(network + "\x00" + giver))
	low := addr.As16()
	carry := 0
	for i := 5; i >= n; i-- {
		sum := int(low[10+i]) + int(shift[i]) + carry
		mac[i], carry = byte(sum), sum>>8
	}
	return mac.String(), nil
}

// ParseMAC parses a MAC that an interface may carry: six octets, unicast and
// not all zero. place names the field in the error.
func ParseMAC(place, s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	switch {
	case err != nil || len(mac) != 6:
		return nil, fieldErrorf(place, "%q is not a MAC address such as 02:00:00:00:00:01", s)
	case mac[0]&1 != 0:
		return nil, fieldErrorf(place, "%s is a multicast address; an interface needs a unicast one (second hex digit even)", s)
	case mac.String() == "00:00:00:00:00:00":
		return nil, fieldErrorf(place, "%s cannot be the address of an interface", s)
	}
	return mac, nil
}

// ParseMACPrefix parses one to three colon-separated octets of a unicast MAC.
func ParseMACPrefix(s string) ([]byte, error) {
	parts := strings.Split(s, ":")
	if len(parts) > 3 {
		return nil, fieldErrorf("macPrefix", "%q has %d octets; 1 to 3 leave enough for the rest to be unique", s, len(parts))
	}
	out := make([]byte, len(parts))
	for i, p := range parts {
		octet, err := strconv.ParseUint(p, 16, 8)
		if err != nil || len(p) != 2 {
			return nil, fieldErrorf("macPrefix", "%q is not a list of octets such as 02:42", s)
		}
		out[i] = byte(octet)
	}
	if out[0]&1 != 0 {
		return nil, fieldErrorf("macPrefix", "%q begins a multicast address; the second hex digit must be even", s)
	}
	return out, nil
}
