package link

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestVLANName(t *testing.T) {
	t.Parallel()
	tests := []struct {
		parent    string
		id        int
		name, alt string
	}{
		{"eth1", 100, "eth1.100", ""},
		{"enp5s0f1np1", 100, "enp5s0f1np1.100", ""}, // 15, what the kernel takes
		{"enp5s0f1np1", 1000, "ul845b45.1000", "enp5s0f1np1.1000"},
		{"a-very-long-one", 1, "ul2c19b7.1", "a-very-long-one.1"},
		{"a-very-long-one", 4094, "ul2c19b7.4094", "a-very-long-one.4094"},
	}
	for _, tt := range tests {
		name, alt := VLANName(tt.parent, tt.id)
		if name != tt.name || alt != tt.alt {
			t.Errorf("VLANName(%q, %d) = %q, %q, want %q, %q", tt.parent, tt.id, name, alt, tt.name, tt.alt)
		}
		if len(name) > unix.IFNAMSIZ-1 {
			t.Errorf("%q is too long for the kernel", name)
		}
	}
}

// The names may not change: links outlive the version that made them. (The first
// octets of: printf eth1 | sha256sum)
func TestSiblingName(t *testing.T) {
	t.Parallel()
	for parent, want := range map[string]string{"eth1": "ulh980816f3", "a-very-long-one": "ulh2c19b7a7"} {
		if got := SiblingName(parent); got != want || len(got) > unix.IFNAMSIZ-1 {
			t.Errorf("SiblingName(%q) = %q, want %q", parent, got, want)
		}
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	want := map[string]netlink.MacvlanMode{
		ModePrivate: netlink.MACVLAN_MODE_PRIVATE, ModeVEPA: netlink.MACVLAN_MODE_VEPA, ModeBridge: netlink.MACVLAN_MODE_BRIDGE,
		ModePassthru: netlink.MACVLAN_MODE_PASSTHRU, ModeSource: netlink.MACVLAN_MODE_SOURCE,
	}
	if len(want) != len(modeBits) {
		t.Errorf("there are %d modes, want %d", len(modeBits), len(want))
	}
	for name := range want {
		if !IsMacvlanMode(name) || nameOf(modeBits, modeBits[name]) != name {
			t.Errorf("mode %q is %d, which is %q", name, modeBits[name], nameOf(modeBits, modeBits[name]))
		}
	}
	for _, name := range []string{"", "Bridge", "l2"} {
		if IsMacvlanMode(name) {
			t.Errorf("%q is a mode", name)
		}
	}
	for _, bits := range []uint32{0, modeBits[ModeBridge] | modeBits[ModeVEPA], 1 << 31} {
		if got := nameOf(modeBits, bits); got != "" {
			t.Errorf("mode %#x is %q", bits, got)
		}
	}
}

func TestIpvlanNames(t *testing.T) {
	t.Parallel()
	modes := map[string]netlink.IPVlanMode{ModeL2: netlink.IPVLAN_MODE_L2, ModeL3: netlink.IPVLAN_MODE_L3, ModeL3S: netlink.IPVLAN_MODE_L3S}
	for name, want := range modes {
		if !IsIpvlanMode(name) || ipvlanModes[name] != uint32(want) || nameOf(ipvlanModes, uint32(want)) != name {
			t.Errorf("mode %q is %d, want %d", name, ipvlanModes[name], want)
		}
	}
	flags := map[string]netlink.IPVlanFlag{FlagBridge: netlink.IPVLAN_FLAG_BRIDGE, FlagPrivate: netlink.IPVLAN_FLAG_PRIVATE, FlagVEPA: netlink.IPVLAN_FLAG_VEPA}
	for name, want := range flags {
		if !IsIpvlanFlag(name) || ipvlanFlags[name] != uint32(want) || nameOf(ipvlanFlags, uint32(want)) != name {
			t.Errorf("flag %q is %d, want %d", name, ipvlanFlags[name], want)
		}
	}
	for _, name := range []string{"", "L2", "l4", "passthru"} {
		if IsIpvlanMode(name) || IsIpvlanFlag(name) {
			t.Errorf("%q is a mode or a flag", name)
		}
	}
}

func TestSplitVLAN(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, parent string
		id           int // 0 for none
	}{
		{"eth0.100", "eth0", 100},
		{"eth0.1", "eth0", 1},
		{"eth0.4094", "eth0", 4094},
		{"eth0.100.200", "eth0.100", 200},
		{"enp5s0f1np1.1000", "enp5s0f1np1", 1000},
		{"a-very-long-one.4094", "a-very-long-one", 4094},
		{"eth0.4095", "", 0},
		{"eth0.0", "", 0},
		{"eth0.010", "", 0},
		{"eth0.+10", "", 0},
		{"eth0.-1", "", 0},
		{"eth0.1a", "", 0},
		{"eth0.99999999999999999999", "", 0},
		{"eth0.", "", 0},
		{"eth0", "", 0},
		{".100", "", 0},
		{"100", "", 0},
		{"", "", 0},
	}
	for _, tt := range tests {
		parent, id, ok := SplitVLAN(tt.name)
		if parent != tt.parent || id != tt.id || ok != (tt.id != 0) {
			t.Errorf("SplitVLAN(%q) = %q, %d, %t, want %q, %d", tt.name, parent, id, ok, tt.parent, tt.id)
		}
		if name, alt := VLANName(parent, id); ok && name != tt.name && alt != tt.name {
			t.Errorf("%q is split, and put together it is %q or %q", tt.name, name, alt)
		}
	}
}

func TestBroadcast(t *testing.T) {
	t.Parallel()
	tests := []struct{ prefix, want string }{
		{"192.0.2.10/24", "192.0.2.255"},
		{"192.0.2.9/30", "192.0.2.11"},
		{"192.0.2.255/24", "192.0.2.255"},
		{"10.1.2.3/8", "10.255.255.255"},
		{"192.0.2.1/0", "255.255.255.255"},
		{"192.0.2.10/31", ""},
		{"192.0.2.10/32", ""},
		{"2001:db8::1/64", ""},
		{"2001:db8::1/0", ""},
	}
	for _, tt := range tests {
		b, ok := broadcast(netip.MustParsePrefix(tt.prefix))
		a, _ := netip.AddrFromSlice(b)
		if ok != (tt.want != "") || ok && a.String() != tt.want {
			t.Errorf("broadcast(%s) = %s, %t, want %q", tt.prefix, a, ok, tt.want)
		}
	}
}

func TestHostAddr(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, parent, container, want string
	}{
		{"subnet before the first", "10.0.0.1/8 192.0.2.1/24 2001:db8::1/64", "192.0.2.10", "192.0.2.1"},
		{"first in no subnet", "10.0.0.1/8 192.0.2.1/24", "198.51.100.10", "10.0.0.1"},
		{"of the family", "10.0.0.1/8 2001:db8::1/64 2001:db8:1::1/64", "2001:db8:2::10", "2001:db8::1"},
		{"link-local does not do", "169.254.0.1/16 fe80::1/64 2001:db8::1/64", "2001:db8:1::10", "2001:db8::1"},
		{"link-local only", "169.254.0.1/16 fe80::1/64", "192.0.2.10", ""},
		{"link-local among its own", "fe80::1/64", "fe80::2", "fe80::1"},
		{"host route", "192.0.2.1/32", "192.0.2.10", "192.0.2.1"},
		{"another family only", "2001:db8::1/64", "192.0.2.10", ""},
		{"none", "", "192.0.2.10", ""},
	}
	for _, tt := range tests {
		var parent []Addr
		for _, s := range strings.Fields(tt.parent) {
			parent = append(parent, Addr{Prefix: netip.MustParsePrefix(s)})
		}
		got, ok := HostAddr(parent, netip.MustParseAddr(tt.container))
		if ok != (tt.want != "") || ok && got.String() != tt.want {
			t.Errorf("%s: HostAddr = %s, %t, want %q", tt.name, got, ok, tt.want)
		}
	}
}

func TestRouteString(t *testing.T) {
	t.Parallel()
	dst := netip.MustParsePrefix("0.0.0.0/0")
	got := []string{Route{Dst: dst}.String(), Route{Dst: dst, GW: netip.MustParseAddr("192.0.2.1"), Priority: 5}.String()}
	if diff := cmp.Diff([]string{"0.0.0.0/0", "0.0.0.0/0 via 192.0.2.1"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
