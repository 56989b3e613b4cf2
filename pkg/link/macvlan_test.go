package link

import (
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

func TestCreate(t *testing.T) {
	t.Parallel()
	macs := []net.HardwareAddr{mac(1), mac(2)}
	tests := []struct {
		name    string
		macvlan Macvlan
		target  Target
		mode    netlink.MacvlanMode
		queue   uint32
	}{
		{name: "bridge", macvlan: Macvlan{Mode: ModeBridge}, mode: netlink.MACVLAN_MODE_BRIDGE},
		{name: "private", macvlan: Macvlan{Mode: ModePrivate}, target: Target{MTU: 1400}, mode: netlink.MACVLAN_MODE_PRIVATE},
		{name: "vepa", macvlan: Macvlan{Mode: ModeVEPA}, target: Target{MAC: mac(9)}, mode: netlink.MACVLAN_MODE_VEPA},
		{name: "passthru", macvlan: Macvlan{Mode: ModePassthru, NoPromisc: true}, mode: netlink.MACVLAN_MODE_PASSTHRU},
		{name: "source", macvlan: Macvlan{Mode: ModeSource, SourceMACs: macs}, mode: netlink.MACVLAN_MODE_SOURCE},
		{name: "source without senders", macvlan: Macvlan{Mode: ModeSource}, mode: netlink.MACVLAN_MODE_SOURCE},
		{
			name: "all", macvlan: Macvlan{Mode: ModeBridge, BCQueueLen: 4321}, mode: netlink.MACVLAN_MODE_BRIDGE,
			target: Target{MAC: mac(9), MTU: 1280}, queue: 4321,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host, container := newHost(t), newSpace(t)
			parent := host.link(t, "eth1")
			target := tt.target
			target.Name, target.NetnsFd, target.Parent = "eth0", container.fd(), parent.Index
			index, err := tt.macvlan.Create(host.h, target)
			must(t, err)

			found, err := container.nl.LinkByName("eth0")
			must(t, err)
			got, ok := found.(*netlink.Macvlan)
			if !ok {
				t.Fatalf("made a %s", found.Type())
			}
			wantMTU, wantQueue := tt.target.MTU, tt.queue
			if wantMTU == 0 {
				wantMTU = parent.MTU
			}
			if wantQueue == 0 {
				wantQueue = 1000 // MACVLAN_DEFAULT_BC_QUEUE_LEN
			}
			switch {
			case got.Index != index || index < 1<<16:
				t.Errorf("index %d, told %d", got.Index, index)
			case got.Mode != tt.mode || got.MTU != wantMTU || got.BCQueueLen != wantQueue:
				t.Errorf("mode %d, MTU %d, queue %d, want %d, %d, %d", got.Mode, got.MTU, got.BCQueueLen, tt.mode, wantMTU, wantQueue)
			case got.ParentIndex != parent.Index:
				t.Errorf("parent %d, want %d", got.ParentIndex, parent.Index)
			case tt.target.MAC != nil && got.HardwareAddr.String() != tt.target.MAC.String():
				t.Errorf("MAC %s, want %s", got.HardwareAddr, tt.target.MAC)
			case container.show(t, "eth0").up():
				t.Error("it is up")
			}
			if diff := cmp.Diff(macStrings(tt.macvlan.SourceMACs), macStrings(got.MACAddrs)); diff != "" {
				t.Errorf("source MACs (-want +got):\n%s", diff)
			}
			if l := container.link(t, "eth0"); l.Mode != tt.macvlan.Mode || l.Index != index || l.Parent != parent.Index || !l.abroad {
				t.Errorf("read back %+v", l)
			}
		})
	}
}

// Passthru alone makes its parent promiscuous, and nopromisc keeps it from it.
func TestNoPromisc(t *testing.T) {
	t.Parallel()
	for noPromisc, want := range map[bool]int{false: 1, true: 0} {
		t.Run(fmt.Sprint(noPromisc), func(t *testing.T) {
			t.Parallel()
			host, container := newHost(t), newSpace(t)
			index, err := Macvlan{Mode: ModePassthru, NoPromisc: noPromisc}.Create(host.h, Target{Name: "eth0", NetnsFd: container.fd(), Parent: host.link(t, "eth1").Index})
			must(t, err)
			must(t, container.h.Up(index, "", nil))
			// IFF_PROMISC among the flags is only what a user has set.
			if got := host.show(t, "eth1").Promisc; got != want {
				t.Errorf("promiscuity %d, want %d", got, want)
			}
		})
	}
}

func TestCreateRefused(t *testing.T) {
	t.Parallel()
	sit := func(m Macvlan) func(*testing.T, *space, *space) {
		return func(t *testing.T, host, _ *space) { host.macvlan(t, "eth1", "child", m) }
	}
	tests := []struct {
		name    string
		prepare func(t *testing.T, host, container *space)
		macvlan Macvlan
		parent  string
		target  Target
		is      error
		want    string
	}{
		{
			name: "name is taken", is: ErrExists, want: "an interface of that name exists",
			prepare: func(t *testing.T, _, container *space) { container.ip(t, "link add eth0 type bridge") },
		},
		{
			name: "alternative name is taken", is: ErrExists, want: "an interface of that name exists",
			prepare: func(t *testing.T, _, container *space) { container.ip(t, "link property add dev lo altname eth0") },
		},
		{
			name: "bridge port", is: ErrBusy, want: "parent is busy",
			prepare: func(t *testing.T, host, _ *space) {
				host.ip(t, "link add br0 type bridge")
				host.ip(t, "link set eth1 master br0")
			},
		},
		{name: "passthru beside others", prepare: sit(Macvlan{Mode: ModeBridge}), macvlan: Macvlan{Mode: ModePassthru}, is: ErrPassthru, want: ErrPassthru.Error()},
		{name: "beside passthru", prepare: sit(Macvlan{Mode: ModePassthru}), is: ErrPassthru, want: ErrPassthru.Error()},
		{name: "passthru beside passthru", prepare: sit(Macvlan{Mode: ModePassthru}), macvlan: Macvlan{Mode: ModePassthru}, is: ErrPassthru, want: ErrPassthru.Error()},
		// The kernel has the same number for all these.
		{name: "loopback", parent: "lo", want: `parent "lo" is not an Ethernet interface`},
		{name: "MTU", target: Target{MTU: 1501}, want: `MTU 1501 is more than the 1500 of parent "eth1"`},
		{name: "no such mode", macvlan: Macvlan{Mode: "l2"}, want: `there is no mode "l2"`},
		// And others for these.
		{name: "no parent", parent: "none", want: "no such device"},
		{name: "multicast MAC", target: Target{MAC: net.HardwareAddr{1, 0, 0, 0, 0, 1}}, want: "cannot assign requested address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host, container := newHost(t), newSpace(t)
			if tt.prepare != nil {
				tt.prepare(t, host, container)
			}
			if tt.macvlan.Mode == "" {
				tt.macvlan.Mode = ModeBridge
			}
			target := tt.target
			target.Name, target.NetnsFd = "eth0", container.fd()
			switch tt.parent {
			case "":
				target.Parent = host.link(t, "eth1").Index
			case "none":
				target.Parent = 1 << 20
			default:
				target.Parent = host.link(t, tt.parent).Index
			}
			before, err := container.nl.LinkList()
			must(t, err)
			_, err = tt.macvlan.Create(host.h, target)
			wantError(t, err, `create macvlan "eth0": `+tt.want)
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is not %v", err, tt.is)
			}
			after, err := container.nl.LinkList()
			must(t, err)
			if len(after) != len(before) {
				t.Errorf("%d links, were %d", len(after), len(before))
			}
		})
	}
}

// Other links of the host may have the name that the link has elsewhere. Some
// kernels look there, unless they are told an index.
func TestCreateNameOfHost(t *testing.T) {
	t.Parallel()
	host, container := newHost(t), newSpace(t)
	host.ip(t, "link add eth0 type bridge")
	target := Target{Name: "eth0", NetnsFd: container.fd(), Parent: host.link(t, "eth1").Index}
	index, err := Macvlan{Mode: ModeBridge}.Create(host.h, target)
	must(t, err)
	if got := container.show(t, "eth0"); got.Index != index || got.Info.Kind != "macvlan" {
		t.Errorf("link %+v, told index %d", got, index)
	}
	// In the handle's own namespace the name is taken.
	target.NetnsFd = -1
	if _, err := (Macvlan{Mode: ModeBridge}).Create(host.h, target); !errors.Is(err, ErrExists) {
		t.Errorf("got %v, want %v", err, ErrExists)
	}
	target.Name = "eth7"
	if _, err := (Macvlan{Mode: ModeBridge}).Create(host.h, target); err != nil || host.show(t, "eth7").Info.Kind != "macvlan" {
		t.Error(err)
	}
}

func TestSourceMACs(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	l := s.macvlan(t, "eth1", "source", Macvlan{Mode: ModeSource, SourceMACs: []net.HardwareAddr{mac(1)}})
	bridge := s.macvlan(t, "eth1", "bridge", Macvlan{Mode: ModeBridge})
	steps := []struct {
		change func(int, net.HardwareAddr) error
		mac    byte
		want   []string
	}{
		{s.h.AddSourceMAC, 2, []string{"02:00:00:00:00:01", "02:00:00:00:00:02"}},
		{s.h.AddSourceMAC, 2, []string{"02:00:00:00:00:01", "02:00:00:00:00:02"}},
		{s.h.RemoveSourceMAC, 1, []string{"02:00:00:00:00:02"}},
		{s.h.RemoveSourceMAC, 1, []string{"02:00:00:00:00:02"}},
		{s.h.RemoveSourceMAC, 2, []string{}},
		{s.h.AddSourceMAC, 1, []string{"02:00:00:00:00:01"}},
	}
	for i, step := range steps {
		must(t, step.change(l.Index, mac(step.mac)))
		found, err := s.nl.LinkByIndex(l.Index)
		must(t, err)
		if diff := cmp.Diff(step.want, macStrings(found.(*netlink.Macvlan).MACAddrs)); diff != "" {
			t.Errorf("step %d, the library (-want +got):\n%s", i, diff)
		}
		if diff := cmp.Diff(step.want, macStrings(s.link(t, "source").SourceMACs)); diff != "" {
			t.Errorf("step %d (-want +got):\n%s", i, diff)
		}
	}
	wantError(t, s.h.AddSourceMAC(bridge.Index, mac(1)), fmt.Sprintf("add source MAC 02:00:00:00:00:01 to link %d: invalid argument", bridge.Index))
	wantError(t, s.h.AddSourceMAC(1<<20, mac(1)), "add source MAC 02:00:00:00:00:01 to link 1048576: no such device")
	wantError(t, s.h.RemoveSourceMAC(1<<20, mac(1)), "remove source MAC 02:00:00:00:00:01 from link 1048576: no such device")
}
