package nlsock

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Address is one of an interface, as RTM_NEWADDR and RTM_DELADDR tell of it.
type Address struct {
	Prefix netip.Prefix
	Index  int    // of the interface
	Flags  uint32 // IFA_F_*
	Scope  uint8  // RT_SCOPE_*
}

// Passing reports whether the address is on its way out, or a temporary one.
func (a Address) Passing() bool {
	passing := uint32(unix.IFA_F_DEPRECATED)
	if a.Prefix.Addr().Is6() {
		passing |= unix.IFA_F_TEMPORARY // of IPv4 the same bit is "secondary"
	}
	return a.Flags&passing != 0
}

// ParseAddress reads the body of a message (linux/if_addr.h).
func ParseAddress(body []byte) (a Address, err error) {
	if len(body) < unix.SizeofIfAddrmsg {
		return a, ErrCutOff
	}
	msg := nl.DeserializeIfAddrmsg(body)
	attrs, err := Attributes(body[unix.SizeofIfAddrmsg:])
	// IFA_ADDRESS is the other end of a point-to-point link where there is an
	// IFA_LOCAL, and IPv6 has only it where there is none.
	var local, address netip.Addr
	a.Index, a.Flags, a.Scope = int(msg.Index), uint32(msg.Flags), msg.Scope
	for _, attr := range attrs {
		switch attr.Kind {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(attr.Value)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(attr.Value)
		case unix.IFA_FLAGS:
			if len(attr.Value) == 4 {
				a.Flags = binary.NativeEndian.Uint32(attr.Value)
			}
		}
	}
	if !local.IsValid() {
		local = address
	}
	a.Prefix = netip.PrefixFrom(local, int(msg.Prefixlen))
	return a, err
}
