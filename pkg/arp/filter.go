package arp

import "golang.org/x/sys/unix"

// Offsets at which a classic BPF program loads what the kernel knows of a
// frame (linux/filter.h).
const (
	bpfPacketType = 0xfffff000 + 4
	bpfVLANTag    = 0xfffff000 + 44 // the frame itself never has one
	// Before 6.2, where a sub-interface has taken the tag off, the kernel still
	// tells it, and only this says that it is no more.
	bpfVLANPresent = 0xfffff000 + 48
)

// filter passes incoming ARP and ND frames of this VLAN. Without the look at
// the tag, a parent would hear all the VLANs on it as if they were its own.
var filter = []unix.SockFilter{
	load(unix.BPF_W, bpfPacketType),
	jump(unix.BPF_JEQ, unix.PACKET_OUTGOING, 12, 0),
	load(unix.BPF_W, bpfVLANPresent),
	jump(unix.BPF_JEQ, 0, 2, 0),
	load(unix.BPF_W, bpfVLANTag),
	jump(unix.BPF_JSET, 0x0fff, 8, 0), // VLAN 0 is only a priority
	load(unix.BPF_H, 12),
	jump(unix.BPF_JEQ, typeARP, 7, 0),
	jump(unix.BPF_JEQ, typeIPv6, 0, 5),
	load(unix.BPF_B, lenEthernet+6), // next header
	jump(unix.BPF_JEQ, protoICMPv6, 0, 3),
	load(unix.BPF_B, lenEthernet+lenIPv6), // message type
	jump(unix.BPF_JEQ, ndSolicit, 2, 0),
	jump(unix.BPF_JEQ, ndAdvertise, 1, 0),
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
}

func load(size uint16, offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | size, K: offset}
}

// jump skips yes or no instructions.
func jump(test uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | test, K: k, Jt: yes, Jf: no}
}
