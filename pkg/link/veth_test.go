package link

import (
	"errors"
	"strings"
	"testing"
)

func TestVeth(t *testing.T) {
	t.Parallel()
	host, pod := newSpace(t), newSpace(t)
	target := Target{Name: "eth0", NetnsFd: pod.fd(), Peer: "ulpeer", MTU: 1400, MAC: mac(7)}
	_, err := Veth{MAC: HopMAC()}.Create(host.h, target)
	must(t, err)
	for _, end := range []struct {
		in        *space
		name, mac string
	}{{pod, "eth0", "02:00:00:00:00:07"}, {host, "ulpeer", HopMAC().String()}} {
		if l := end.in.show(t, end.name); l.MAC != end.mac || l.MTU != 1400 || l.up() || l.Info.Kind != "veth" {
			t.Errorf("%s: %+v", end.name, l)
		}
	}
	if _, err := (Veth{}).Create(host.h, target); !errors.Is(err, ErrExists) || errors.Is(err, ErrPeerExists) {
		t.Errorf("the name is taken: %v", err)
	}
	target.Name = "eth1"
	if _, err := (Veth{}).Create(host.h, target); !errors.Is(err, ErrPeerExists) {
		t.Errorf("the name of the host's end is taken: %v", err)
	}

	must(t, host.h.DressPeer(host.link(t, "ulpeer").Index, "mine"))
	if l := host.show(t, "ulpeer"); l.Alias != "mine" || !l.up() || l.AddrGen != "none" {
		t.Errorf("dressed: %+v", l)
	}
	must(t, host.h.SetMTU(host.link(t, "ulpeer").Index, 1300))
	if l := host.show(t, "ulpeer"); l.MTU != 1300 {
		t.Errorf("MTU %d", l.MTU)
	}
	if err := host.h.SetMTU(host.link(t, "ulpeer").Index, 1); err == nil {
		t.Error("an MTU that no link has is set")
	}
	must(t, host.h.DeletePeer("ulpeer", "another's"))
	host.show(t, "ulpeer") // stays
	must(t, host.h.DeletePeer("ulpeer", "mine"))
	must(t, host.h.DeletePeer("ulpeer", "mine"))
	if _, err := pod.h.ByName("eth0"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the other end is left: %v", err)
	}
}

func TestBridge(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	l, ours, err := s.h.EnsureBridge("ul0")
	if err != nil || !ours || !l.Up {
		t.Fatalf("a new bridge: %+v, ours %t, %v", l, ours, err)
	}
	was := s.show(t, "ul0")
	must(t, s.h.Plug(s.link(t, "eth1").Index, l.Index))
	if port := s.link(t, "eth1"); port.Master != l.Index || !port.Hairpin {
		t.Errorf("the port: %+v", port)
	}
	if out := s.ip(t, "-d link show eth1"); !strings.Contains(out, "hairpin on") {
		t.Errorf("the port: %s", out)
	}
	if is := s.show(t, "ul0"); is.MAC != was.MAC || is.AddrGen != "none" {
		t.Errorf("with a port: %+v", is)
	}
	must(t, s.h.DeleteBridge("ul0"))
	s.ip(t, "link set ul0 down") // has a port, so it is there
	if l, ours, err = s.h.EnsureBridge("ul0"); err != nil || !ours || !l.Up {
		t.Errorf("one that was down: %+v, ours %t, %v", l, ours, err)
	}
	s.ip(t, "link set eth1 nomaster")
	must(t, s.h.DeleteBridge("ul0"))
	must(t, s.h.DeleteBridge("ul0"))
	if _, err := s.h.ByName("ul0"); !errors.Is(err, ErrNotFound) {
		t.Errorf("without ports it is left: %v", err)
	}

	// Its maker died: it is finished by the next one, and removed by a DEL.
	_, err = s.h.makeBridge("ul0")
	must(t, err)
	if l, ours, err := s.h.EnsureBridge("ul0"); err != nil || !ours || !l.Up || s.show(t, "ul0").Group != "default" {
		t.Errorf("finished: %+v, ours %t, %v", l, ours, err)
	}
	must(t, s.h.DeleteBridge("ul0"))
	_, err = s.h.makeBridge("ul0")
	must(t, err)
	must(t, s.h.DeleteBridge("ul0"))

	s.ip(t, "link add br0 type bridge")
	if _, _, err := s.h.EnsureBridge("br0"); !errors.Is(err, ErrDown) {
		t.Errorf("somebody else's that is down: %v", err)
	}
	s.ip(t, "link set br0 up")
	if _, ours, err := s.h.EnsureBridge("br0"); err != nil || ours {
		t.Errorf("somebody else's: ours %t, %v", ours, err)
	}
	must(t, s.h.DeleteBridge("br0"))
	s.show(t, "br0") // stays
	if _, _, err := s.h.EnsureBridge("eth1"); !errors.Is(err, ErrExists) {
		t.Errorf("no bridge: %v", err)
	}
}

func TestLeg(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{
		"lg5001": 5001, "lg1": 1, "lg0": 0, "lg-1": 0, "lg": 0, "lg05": 0, "lg+5": 0, "eth1": 0, "5001": 0, "lg5001.100": 0,
	} {
		if got := LegOf(name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
	if l := (Link{Name: "lg7", Kind: "veth", Alias: SharedAlias}); l.Segment() != 7 {
		t.Errorf("%+v: %d", l, l.Segment())
	}
	if l := (Link{Name: "lg7", Kind: "veth"}); l.Segment() != 0 {
		t.Errorf("somebody else's: %d", l.Segment())
	}
}
