package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Lengths of the Ethernet and IPv6 headers, in bytes.
const (
	headerLen = 14
	ipv6Len   = 40
)

// EtherTypes that Frame.String knows by name.
const (
	TypeARP  = 0x0806
	TypeIPv4 = 0x0800
	TypeIPv6 = 0x86dd
)

// Frame is an Ethernet frame without its check sum.
type Frame struct {
	Time     time.Time
	Raw      []byte // at least the header's 14 bytes
	Outgoing bool   // sent by the interface, not received
}

// Dst is the destination's hardware address.
func (f Frame) Dst() net.HardwareAddr { return net.HardwareAddr(f.Raw[:6]) }

// Src is the source's hardware address.
func (f Frame) Src() net.HardwareAddr { return net.HardwareAddr(f.Raw[6:12]) }

// Type is the EtherType.
func (f Frame) Type() uint16 { return binary.BigEndian.Uint16(f.Raw[12:]) }

// Payload is what follows the Ethernet header.
func (f Frame) Payload() []byte { return f.Raw[headerLen:] }

// String says in one line who sent what to whom, after tcpdump's manner:
//
//	02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff: arp who-has 192.0.2.2 tell 192.0.2.1
//	02:00:00:00:00:02 > 02:00:00:00:00:01: arp reply 192.0.2.2 is-at 02:00:00:00:00:02
//	02:00:00:00:00:01 > 33:33:ff:00:00:02: 2001:db8::1 > ff02::1:ff00:2: icmp6 who-has 2001:db8::2
//	02:00:00:00:00:02 > 02:00:00:00:00:01: 2001:db8::2 > 2001:db8::1: icmp6 adv 2001:db8::2
//	02:00:00:00:00:01 > 02:00:00:00:00:02: 192.0.2.1 > 192.0.2.2: icmp echo
func (f Frame) String() string {
	return fmt.Sprintf("%s > %s: %s", f.Src(), f.Dst(), f.payload())
}

func (f Frame) payload() string {
	p := f.Payload()
	switch {
	case f.Type() == TypeARP && len(p) >= 28:
		sender, target := ip(p[14:18]), ip(p[24:28])
		if binary.BigEndian.Uint16(p[6:]) == 2 {
			return fmt.Sprintf("arp reply %s is-at %s", sender, net.HardwareAddr(p[8:14]))
		}
		return fmt.Sprintf("arp who-has %s tell %s", target, sender)
	case f.Type() == TypeIPv4 && len(p) >= 20:
		body := p[min(int(p[0]&0xf)*4, len(p)):]
		return fmt.Sprintf("%s > %s: %s", ip(p[12:16]), ip(p[16:20]), icmp4(p[9], body))
	case f.Type() == TypeIPv6 && len(p) >= ipv6Len:
		return fmt.Sprintf("%s > %s: %s", ip(p[8:24]), ip(p[24:40]), icmp6(p[6], p[ipv6Len:]))
	}
	return fmt.Sprintf("type %#04x, %d bytes", f.Type(), len(p))
}

func icmp4(protocol byte, body []byte) string {
	if protocol != 1 || len(body) == 0 {
		return fmt.Sprintf("protocol %d", protocol)
	}
	switch body[0] {
	case 0:
		return "icmp reply"
	case 8:
		return "icmp echo"
	}
	return fmt.Sprintf("icmp type %d", body[0])
}

func icmp6(protocol byte, body []byte) string {
	if protocol != 58 || len(body) == 0 {
		return fmt.Sprintf("protocol %d", protocol)
	}
	switch kind := body[0]; {
	case kind == 128:
		return "icmp6 echo"
	case kind == 129:
		return "icmp6 reply"
	case kind == 135 && len(body) >= 24:
		return "icmp6 who-has " + ip(body[8:24]).String()
	case kind == 136 && len(body) >= 24:
		return "icmp6 adv " + ip(body[8:24]).String()
	}
	return fmt.Sprintf("icmp6 type %d", body[0])
}

// ip reads an address of 4 or 16 bytes.
func ip(b []byte) netip.Addr {
	addr, _ := netip.AddrFromSlice(b)
	return addr
}
