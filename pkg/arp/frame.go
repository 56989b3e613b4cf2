package arp

import (
	"encoding/binary"
	"net/netip"
)

// Ethernet types, ARP operations, and ND types and options, as on the wire.
const (
	typeARP  = 0x0806
	typeIPv6 = 0x86dd

	arpRequest = 1
	arpIsAt    = 2

	protoICMPv6     = 58
	ndSolicit       = 135
	ndAdvertise     = 136
	ndFlagOverride  = 0x20
	optSourceMAC    = 1  // RFC 4861, 4.6.1
	optTargetMAC    = 2  // RFC 4861, 4.6.1
	optNonce        = 14 // RFC 3971, 5.3.2
	ndHopLimit      = 255
	lenEthernet     = 14
	lenARP          = 28
	lenIPv6         = 40
	lenND           = 24 // without options
	lenOption       = 8
	offsetICMPv6Sum = 2
)

type mac = [6]byte

var (
	broadcastMAC = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodesMAC  = mac{0x33, 0x33, 0, 0, 0, 1}
	allNodes     = netip.IPv6LinkLocalAllNodes()
)

// arpProbe asks for a without claiming it: sender 0.0.0.0, target MAC zero
// (RFC 5227, 2.1.1).
func arpProbe(src mac, a netip.Addr) []byte {
	return arpFrame(arpRequest, src, netip.IPv4Unspecified(), mac{}, a)
}

// arpAnnounce is the request form of gratuitous ARP: the question for one's
// own address (RFC 5227, 2.3).
func arpAnnounce(src mac, a netip.Addr) []byte {
	return arpFrame(arpRequest, src, a, mac{}, a)
}

// arpReply is the reply form of gratuitous ARP, with the sender as its own
// target (RFC 5944, 4.6).
func arpReply(src mac, a netip.Addr) []byte {
	return arpFrame(arpIsAt, src, a, src, a)
}

func arpFrame(op uint16, src mac, sender netip.Addr, target mac, targetIP netip.Addr) []byte {
	f := ethernet(broadcastMAC, src, typeARP, lenARP)
	f = append(f, 0, 1, 8, 0, 6, 4) // Ethernet and IPv4, with the lengths of their addresses
	f = binary.BigEndian.AppendUint16(f, op)
	f = append(f, src[:]...)
	f = append(f, sender.AsSlice()...)
	f = append(f, target[:]...)
	return append(f, targetIP.AsSlice()...)
}

// ndProbe is the solicitation of duplicate address detection, from ::.
func ndProbe(src mac, a netip.Addr, nonce mac) []byte {
	return ndFrame(solicitedMAC(a), src, netip.IPv6Unspecified(), solicited(a), ndSolicit, 0, a, optNonce, nonce)
}

// ndAsk is the solicitation of one who wants to send to a. It tells its own MAC,
// so the answer comes straight back, while that to ndProbe goes to all nodes.
func ndAsk(src mac, a netip.Addr) []byte {
	return ndFrame(solicitedMAC(a), src, linkLocal(src), solicited(a), ndSolicit, 0, a, optSourceMAC, src)
}

// ndAnnounce is the unsolicited advertisement (RFC 4861, 7.2.6).
func ndAnnounce(src mac, a netip.Addr) []byte {
	return ndFrame(allNodesMAC, src, a, allNodes, ndAdvertise, ndFlagOverride, a, optTargetMAC, src)
}

func ndFrame(dst, src mac, from, to netip.Addr, kind, flags byte, target netip.Addr, option byte, value mac) []byte {
	f := ethernet(dst, src, typeIPv6, lenIPv6+lenND+lenOption)
	f = append(f, 0x60, 0, 0, 0, 0, lenND+lenOption, protoICMPv6, ndHopLimit)
	f = append(f, from.AsSlice()...)
	f = append(f, to.AsSlice()...)
	f = append(f, kind, 0, 0, 0, flags, 0, 0, 0) // the checksum follows below
	f = append(f, target.AsSlice()...)
	f = append(f, option, lenOption/8)
	f = append(f, value[:]...)
	packet := f[lenEthernet:]
	binary.BigEndian.PutUint16(packet[lenIPv6+offsetICMPv6Sum:], checksum(packet))
	return f
}

// ethernet starts a frame with room for n more bytes.
func ethernet(dst, src mac, kind uint16, n int) []byte {
	f := make([]byte, 0, lenEthernet+n)
	f = append(f, dst[:]...)
	f = append(f, src[:]...)
	return binary.BigEndian.AppendUint16(f, kind)
}

// solicited is the solicited-node multicast address (RFC 4291, 2.7.1).
func solicited(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

// linkLocal is the address that a MAC stands for (RFC 4291, appendix A).
func linkLocal(m mac) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// solicitedMAC is where frames to the solicited-node address go (RFC 2464, 7).
func solicitedMAC(a netip.Addr) mac {
	b := a.As16()
	return mac{0x33, 0x33, 0xff, b[13], b[14], b[15]}
}

// groups are the Ethernet multicast groups that other users of addrs send to:
// advertisements go to all nodes, probes to the solicited-node group.
func groups(addrs []netip.Addr) []mac {
	var gs []mac
	for _, a := range addrs {
		if !a.Is6() {
			continue
		}
		if gs == nil {
			gs = append(gs, allNodesMAC)
		}
		gs = append(gs, solicitedMAC(a))
	}
	return gs
}

// checksum is that of ICMPv6 over an IPv6 packet without extension headers
// (RFC 4443, 2.3); 0 if a packet already has the right one.
func checksum(packet []byte) uint16 {
	message := packet[lenIPv6:]
	sum := uint32(len(message)) + protoICMPv6
	for _, part := range [][]byte{packet[8:lenIPv6], message} {
		for ; len(part) > 1; part = part[2:] {
			sum += uint32(binary.BigEndian.Uint16(part))
		}
		if len(part) == 1 {
			sum += uint32(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// claim is what a frame says: its holder has addr, or is probing to take it.
type claim struct {
	addr   netip.Addr
	holder mac
	source mac    // of the Ethernet frame
	probe  bool   // the holder does not have it yet
	nonce  []byte // of an IPv6 probe; nil if it has none
}

// parse reads a frame from the wire. It is false for all that claims no
// address: other protocols, malformed frames, questions after an address.
func parse(frame []byte) (claim, bool) {
	if len(frame) < lenEthernet {
		return claim{}, false
	}
	source, kind, body := mac(frame[6:12]), binary.BigEndian.Uint16(frame[12:]), frame[lenEthernet:]
	var c claim
	switch kind {
	case typeARP:
		c = parseARP(body)
	case typeIPv6:
		c = parseND(body, source)
	}
	c.source = source
	return c, c.addr.IsValid() && !c.addr.IsUnspecified()
}

// parseARP returns a claim without an address if there is none in the packet.
func parseARP(b []byte) claim {
	if len(b) < lenARP || [6]byte(b) != [6]byte{0, 1, 8, 0, 6, 4} {
		return claim{}
	}
	op := binary.BigEndian.Uint16(b[6:])
	if op != arpRequest && op != arpIsAt {
		return claim{}
	}
	c := claim{addr: netip.AddrFrom4([4]byte(b[14:])), holder: mac(b[8:])}
	if c.addr.IsUnspecified() && op == arpRequest {
		c.addr, c.probe = netip.AddrFrom4([4]byte(b[24:])), true
	}
	return c
}

// parseND returns a claim without an address if there is none in the packet.
// It checks what RFC 4861, 7.1 wants checked before a message is believed.
func parseND(b []byte, source mac) claim {
	if len(b) < lenIPv6+lenND || b[0]>>4 != 6 || b[6] != protoICMPv6 || b[7] != ndHopLimit {
		return claim{}
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n < lenND || n > len(b)-lenIPv6 {
		return claim{}
	}
	b = b[:lenIPv6+n] // the rest is padding
	from, message := netip.AddrFrom16([16]byte(b[8:])), b[lenIPv6:]
	if message[1] != 0 || checksum(b) != 0 {
		return claim{}
	}
	c := claim{addr: netip.AddrFrom16([16]byte(message[8:])), holder: source}
	switch message[0] {
	case ndSolicit:
		if !from.IsUnspecified() {
			return claim{} // looks for addr, does not want it
		}
		c.probe = true
	case ndAdvertise:
	default:
		return claim{}
	}
	for options := message[lenND:]; len(options) > 0; {
		if len(options) < 2 || options[1] == 0 || len(options) < 8*int(options[1]) {
			return claim{}
		}
		value := options[2 : 8*int(options[1])]
		switch {
		case options[0] == optNonce && message[0] == ndSolicit:
			c.nonce = value
		case options[0] == optTargetMAC && message[0] == ndAdvertise && len(value) == len(c.holder):
			c.holder = mac(value)
		}
		options = options[2+len(value):]
	}
	return c
}
