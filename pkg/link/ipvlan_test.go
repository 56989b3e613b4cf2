package link

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// Without ipvlan in the kernel, it is named.
func TestIpvlanLacking(t *testing.T) {
	t.Parallel()
	linktest.Lack(t, "ipvlan")
	host, container := newHost(t), newSpace(t)
	_, err := Ipvlan{ModeL2, FlagBridge}.Create(host.h, Target{Name: "eth0", NetnsFd: container.fd(), Parent: host.link(t, "eth1").Index})
	wantError(t, err, `create ipvlan "eth0": the kernel has no ipvlan support; try: modprobe ipvlan`)
}

func TestIpvlanCreate(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "ipvlan")
	for mode, wantMode := range ipvlanModes {
		for flag, wantFlag := range ipvlanFlags {
			for _, mtu := range []int{0, 1400} {
				i := Ipvlan{mode, flag}
				host, container := newHost(t), newSpace(t)
				// Other links of the host may have the name.
				host.ip(t, "link add eth0 type bridge")
				parent := host.link(t, "eth1")
				index, err := i.Create(host.h, Target{Name: "eth0", NetnsFd: container.fd(), Parent: parent.Index, MTU: mtu})
				must(t, err)

				found, err := container.nl.LinkByName("eth0")
				must(t, err)
				got, ok := found.(*netlink.IPVlan)
				if !ok {
					t.Fatalf("made a %s", found.Type())
				}
				wantMTU := mtu
				if mtu == 0 {
					wantMTU = parent.MTU
				}
				switch {
				case got.Index != index || index < leastIndex:
					t.Errorf("%v: index %d, told %d", i, got.Index, index)
				case uint32(got.Mode) != wantMode || uint32(got.Flag) != wantFlag || got.MTU != wantMTU:
					t.Errorf("%v: mode %d, flag %d, MTU %d, want %d, %d, %d", i, got.Mode, got.Flag, got.MTU, wantMode, wantFlag, wantMTU)
				case got.ParentIndex != parent.Index || got.HardwareAddr.String() != parent.MAC.String():
					t.Errorf("%v: parent %d, MAC %s", i, got.ParentIndex, got.HardwareAddr)
				}
				want := Link{
					Name: "eth0", Index: index, Kind: "ipvlan", MTU: wantMTU, MAC: parent.MAC, Parent: parent.Index, Mode: mode, Flag: flag,
					abroad: true, ethernet: true,
				}
				if diff := cmp.Diff(want, container.link(t, "eth0"), equate); diff != "" {
					t.Errorf("read back (-want +got):\n%s", diff)
				}

				must(t, container.h.Up(index, "underlay:net:container", nil))
				shown := container.show(t, "eth0")
				if !shown.up() || shown.Alias != "underlay:net:container" || shown.MAC != parent.MAC.String() {
					t.Errorf("after Up: %+v", shown)
				}
				// Where there is no layer 2, the kernel switches ARP off.
				if l := container.link(t, "eth0"); l.noARP != (mode != ModeL2) {
					t.Errorf("%v: ARP is off: %t", i, l.noARP)
				}
			}
		}
	}
}

func TestIpvlanRefused(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "ipvlan")
	tests := []struct {
		name    string
		prepare string // on the host
		ipvlan  Ipvlan
		parent  string
		target  Target
		is      error
		want    string
	}{
		{name: "name is taken", target: Target{Name: "lo"}, is: ErrExists, want: "an interface of that name exists"},
		{name: "bridge port", prepare: "link set eth1 master br0", is: ErrBusy, want: "parent is busy"},
		{name: "beside macvlan", prepare: "link add child link eth1 type macvlan", is: ErrBusy, want: "parent is busy"},
		{name: "loopback", parent: "lo", is: ErrNotEthernet, want: `parent "lo" is not an Ethernet interface`},
		{name: "loopback with an MTU", parent: "lo", target: Target{MTU: 1400}, is: ErrNotEthernet, want: `parent "lo" is not an Ethernet interface`},
		{name: "MTU", target: Target{MTU: 1501}, want: `MTU 1501 is more than the 1500 of parent "eth1"`},
		{name: "MAC", target: Target{MAC: mac(1)}, want: "MAC 02:00:00:00:00:01: all ipvlan links have that of their parent"},
		{name: "mode of macvlan", ipvlan: Ipvlan{ModePassthru, FlagBridge}, want: `there is no mode "passthru"`},
		{name: "no flag", ipvlan: Ipvlan{Mode: ModeL2}, want: `there is no flag ""`},
		{name: "no parent", parent: "none", want: "no such device"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host, container := newHost(t), newSpace(t)
			host.ip(t, "link add br0 type bridge")
			if tt.prepare != "" {
				host.ip(t, tt.prepare)
			}
			if tt.ipvlan == (Ipvlan{}) {
				tt.ipvlan = Ipvlan{ModeL3, FlagBridge}
			}
			target := tt.target
			if target.Name == "" {
				target.Name = "eth0"
			}
			target.NetnsFd = container.fd()
			switch tt.parent {
			case "":
				target.Parent = host.link(t, "eth1").Index
			case "none":
				target.Parent = 1 << 20
			default:
				target.Parent = host.link(t, tt.parent).Index
			}
			_, err := tt.ipvlan.Create(host.h, target)
			wantError(t, err, `create ipvlan "`+target.Name+`": `+tt.want)
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is not %v", err, tt.is)
			}
			if list, err := container.nl.LinkList(); err != nil || len(list) != 1 {
				t.Errorf("links are left: %v, %v", list, err)
			}
		})
	}
}

// What makes IpvlanOn necessary.
func TestIpvlanLastOneDecides(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "ipvlan")
	host, container := newHost(t), newSpace(t)
	host.put(t, container, "first", Ipvlan{ModeL2, FlagBridge}.Create)
	host.put(t, container, "second", Ipvlan{ModeL3S, FlagPrivate}.Create)
	if l := container.link(t, "first"); l.Mode != ModeL3S || l.Flag != FlagPrivate {
		t.Errorf("the first one is in mode %s, flag %s", l.Mode, l.Flag)
	}
	// Not so one that is refused.
	host.ip(t, "link add eth0 type bridge")
	if _, err := (Ipvlan{ModeL2, FlagVEPA}).Create(host.h, Target{Name: "eth0", NetnsFd: -1, Parent: host.link(t, "eth1").Index}); !errors.Is(err, ErrExists) {
		t.Errorf("got %v, want %v", err, ErrExists)
	}
	if l := container.link(t, "first"); l.Mode != ModeL3S || l.Flag != FlagPrivate {
		t.Errorf("the first one is in mode %s, flag %s", l.Mode, l.Flag)
	}
}

func TestIpvlanOn(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "ipvlan")
	host, container := newHost(t), newSpace(t)
	path := container.live(t)
	eth1 := host.link(t, "eth1")
	expect := func(parent Link, want Child) {
		t.Helper()
		got, found, err := host.h.IpvlanOn(parent)
		must(t, err)
		if diff := cmp.Diff(want, got, equate); diff != "" || found != (want.Name != "") {
			t.Errorf("found %t (-want +got):\n%s", found, diff)
		}
	}
	host.twin(t).put(t, container, "other", Ipvlan{ModeL2, FlagPrivate}.Create)
	expect(eth1, Child{})
	host.put(t, container, "there", Ipvlan{ModeL3, FlagVEPA}.Create)
	there := container.link(t, "there")
	if there.Mode != ModeL3 || there.Flag != FlagVEPA {
		t.Errorf("%+v", there)
	}
	expect(eth1, Child{there, path})
	host.put(t, host, "here", Ipvlan{ModeL3, FlagVEPA}.Create)
	here := host.link(t, "here")
	expect(eth1, Child{here, ""})
	// The kernel puts what is to be on an ipvlan link beside it.
	expect(here, Child{here, ""})
	must(t, host.h.Delete(here.Index))
	must(t, container.h.Delete(there.Index))
	expect(eth1, Child{})
	host.ip(t, "link add tap link eth1 type ipvtap mode l2 private")
	if tap := host.link(t, "tap"); tap.Mode != ModeL2 || tap.Flag != FlagPrivate {
		t.Errorf("%+v", tap)
	}
	expect(eth1, Child{host.link(t, "tap"), ""})
}
