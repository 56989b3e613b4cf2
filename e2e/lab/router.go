package lab

import (
	"context"
	"fmt"
	"net/netip"
)

// far is the bridge of the second L2 segment.
const far = "br1"

// routerHost is the last part of the router's address on each segment.
const routerHost = 254

// Subnets of the two segments, IPv4 and IPv6.
var (
	Near = [2]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}
	Far  = [2]netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}
)

// AddRouter adds a second switch, and a router between the two, which are in one
// namespace. Hosts are plugged into the first one.
func (l *Lab) AddRouter(ctx context.Context) error {
	lines := []string{"link add name " + far + " up type bridge mcast_snooping 0"}
	for i, subnets := range [][2]netip.Prefix{Near, Far} {
		dev := [2]string{bridge, far}[i]
		// A bridge's own MAC would change with its ports.
		lines = append(lines, fmt.Sprintf("link set %s address 02:00:00:00:%02d:fe", dev, i))
		for _, s := range subnets {
			line := fmt.Sprintf("addr add %s/%d dev %s", at(s, routerHost), s.Bits(), dev)
			if s.Addr().Is6() {
				line += " nodad"
			}
			lines = append(lines, line)
		}
	}
	if err := l.Switch.ip(ctx, lines...); err != nil {
		return err
	}
	_, err := l.Switch.Exec(ctx, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	return err
}

// at is an address of a subnet by its last octet.
func at(s netip.Prefix, last byte) netip.Addr {
	b := s.Addr().AsSlice()
	b[len(b)-1] = last
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Move plugs a host into the switch of a segment, Near or Far, where it has other
// addresses, which end in last, and its routes.
func (h *Host) Move(ctx context.Context, segment [2]netip.Prefix, last byte) error {
	dev := bridge
	if segment == Far {
		dev = far
	}
	if err := h.lab.Switch.ip(ctx, "link set dev "+h.Name+" master "+dev); err != nil {
		return err
	}
	lines := []string{"addr flush dev " + Parent + " scope global"}
	for _, s := range segment {
		line := fmt.Sprintf("addr add %s/%d dev %s", at(s, last), s.Bits(), Parent)
		if s.Addr().Is6() {
			line += " nodad"
		}
		lines = append(lines, line)
	}
	if err := h.ip(ctx, lines...); err != nil {
		return err
	}
	return h.Route(ctx, segment)
}

// Route gives a host of a segment the router as its default route of each family.
func (h *Host) Route(ctx context.Context, segment [2]netip.Prefix) error {
	var lines []string
	for _, s := range segment {
		lines = append(lines, fmt.Sprintf("route replace default via %s dev %s", at(s, routerHost), Parent))
	}
	return h.ip(ctx, lines...)
}
