package link

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestByName(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	long, longest := "a-name-longer-than-15", strings.Repeat("x", 127)
	for _, alt := range []string{"short", long, longest} {
		s.ip(t, "link property add dev eth1 altname "+alt)
	}
	tests := []struct{ name, err string }{
		{"eth1", ""},
		{"short", ""},
		{long, ""},
		{longest, ""},
		{"", `"": no such interface`},
		{"eth", `"eth": no such interface`},
		{"exactly15octets", `"exactly15octets": no such interface`},
		{"a-name-longer-than", `"a-name-longer-than": no such interface`},
		{longest + "x", fmt.Sprintf("%q: no such interface", longest+"x")}, // than any name can be
	}
	for _, tt := range tests {
		l, err := s.h.ByName(tt.name)
		wantError(t, err, tt.err)
		switch {
		case tt.err != "" && !errors.Is(err, ErrNotFound):
			t.Errorf("%q: %v is not ErrNotFound", tt.name, err)
		case tt.err == "" && l.Name != "eth1":
			t.Errorf("%q is %q, want eth1", tt.name, l.Name)
		}
	}
}

func TestByIndex(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	l, err := s.h.ByIndex(s.show(t, "eth1").Index)
	must(t, err)
	if l.Name != "eth1" {
		t.Errorf("got %q, want eth1", l.Name)
	}
	for _, index := range []int{-1, 0, 1 << 20} {
		_, err := s.h.ByIndex(index)
		wantError(t, err, fmt.Sprintf("index %d: no such interface", index))
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%v is not ErrNotFound", err)
		}
	}
}

// What ip made is read with ours.
func TestRead(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	for _, command := range []string{
		"link add br0 type bridge",
		"link set eth1 mtu 1400 address 02:00:00:00:00:07 alias an-alias",
		"link set eth1 master br0",
		"link add child link wire address 02:00:00:00:00:08 type macvlan mode source",
		"link set child type macvlan macaddr set 02:00:00:00:00:01",
		"link add private link wire address 02:00:00:00:00:09 type macvlan mode private",
		"link set lo down",
	} {
		s.ip(t, command)
	}
	index := make(map[string]int)
	for _, name := range []string{"br0", "eth1", "wire", "child", "private"} {
		index[name] = s.show(t, name).Index
	}
	want := []Link{
		{Name: "lo", Index: 1, MTU: 65536, MAC: make(net.HardwareAddr, 6)},
		{Name: "eth1", Index: index["eth1"], Kind: "veth", MTU: 1400, MAC: mac(7), Alias: "an-alias", Up: true, Parent: index["wire"], Master: index["br0"], ethernet: true},
		{
			Name: "child", Index: index["child"], Kind: "macvlan", MTU: 1500, MAC: mac(8), Parent: index["wire"],
			Mode: ModeSource, SourceMACs: []net.HardwareAddr{mac(1)}, ethernet: true,
		},
		{Name: "private", Index: index["private"], Kind: "macvlan", MTU: 1500, MAC: mac(9), Parent: index["wire"], Mode: ModePrivate, ethernet: true},
	}
	for _, w := range want {
		if diff := cmp.Diff(w, s.link(t, w.Name), equate); diff != "" {
			t.Errorf("%s (-want +got):\n%s", w.Name, diff)
		}
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	var commands []string
	for i := range 150 {
		commands = append(commands, fmt.Sprintf("link add v%d type veth peer name w%d", i, i))
	}
	s.batch(t, commands)

	want := make(map[int]string)
	witnessed, err := s.nl.LinkList()
	must(t, err)
	for _, l := range witnessed {
		want[l.Attrs().Index] = l.Attrs().Name
	}
	if len(want) < 300 {
		t.Fatalf("there are %d links, want 300", len(want))
	}
	list, err := s.h.List()
	must(t, err)
	got := make(map[int]string)
	for _, l := range list {
		got[l.Index] = l.Name
	}
	if diff := cmp.Diff(want, got); diff != "" || len(got) != len(list) {
		t.Errorf("%d links (-want +got):\n%s", len(list), diff)
	}

	// They came in several messages: one has 32 KiB at most.
	req := newLinkRequest(unix.RTM_GETLINK, 0)
	req.AddData(withoutStats())
	payloads, err := s.h.conn.Dump(req)
	must(t, err)
	octets := 0
	for _, p := range payloads {
		octets += len(p)
	}
	if octets < 64<<10 {
		t.Errorf("the list has %d octets, too few for this test", octets)
	}
}

// A link that is longer than the kernel's usual message is not left out of the
// list, and can be removed.
func TestLongLinks(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	var macs []net.HardwareAddr
	for i := range maxSources {
		macs = append(macs, net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)})
	}
	l := s.macvlan(t, "eth1", "long", Macvlan{Mode: ModeSource, SourceMACs: macs})
	if diff := cmp.Diff(macStrings(macs), macStrings(l.SourceMACs)); diff != "" {
		t.Errorf("source MACs (-want +got):\n%s", diff)
	}
	list, err := s.h.List()
	must(t, err)
	last := list[len(list)-1]
	if last.Name != "long" || len(last.SourceMACs) != len(macs) {
		t.Errorf("last in the list is %q with %d MACs", last.Name, len(last.SourceMACs))
	}

	m := Macvlan{Mode: ModeSource, SourceMACs: macs}
	target := Target{Name: "long", NetnsFd: -1, Parent: s.link(t, "eth1").Index}
	_, err = m.Create(s.h, target)
	wantError(t, err, `create macvlan "long": an interface of that name exists`)
	m.SourceMACs = append(m.SourceMACs, mac(0))
	_, err = m.Create(s.h, target)
	wantError(t, err, `create macvlan "long": 5001 source MACs are more than the 5000 that a link can have`)
	must(t, s.h.Delete(l.Index))
}

func TestUp(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	parent := s.link(t, "eth1")
	one, two := s.macvlan(t, "eth1", "one", Macvlan{Mode: ModeBridge}), s.macvlan(t, "eth1", "two", Macvlan{Mode: ModeBridge})

	must(t, s.h.Up(one.Index, "underlay:net:container", mac(1)))
	got := s.show(t, "one")
	if !got.up() || got.Alias != "underlay:net:container" || got.MAC != "02:00:00:00:00:01" {
		t.Errorf("after Up: %+v", got)
	}
	// Neither is touched unless it is given.
	must(t, s.h.Up(one.Index, "", nil))
	if diff := cmp.Diff(got, s.show(t, "one")); diff != "" {
		t.Errorf("second Up (-before +after):\n%s", diff)
	}

	for _, taken := range []net.HardwareAddr{mac(1), parent.MAC} {
		err := s.h.Up(two.Index, "alias", taken)
		wantError(t, err, fmt.Sprintf("bring link %d up: MAC address is in use on the parent", two.Index))
		if !errors.Is(err, ErrMACInUse) || s.show(t, "two").up() {
			t.Errorf("%s is in use: %v, %+v", taken, err, s.show(t, "two"))
		}
	}
	must(t, s.h.Up(two.Index, "alias", mac(2)))
	wantError(t, s.h.Up(1<<20, "alias", nil), "bring link 1048576 up: no such device")
}

func TestDelete(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	index := s.link(t, "eth1").Index
	for range 2 { // gone already is success
		must(t, s.h.Delete(index))
		var notFound netlink.LinkNotFoundError
		if _, err := s.nl.LinkByName("eth1"); !errors.As(err, &notFound) {
			t.Errorf("the library finds eth1: %v", err)
		}
	}
	if err := s.h.Delete(1); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("lo is removed: %v", err)
	}
}

func TestUpSetsMAC(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	s.veth(t, "eth2", "wire2")
	bridge, passthru := s.macvlan(t, "eth1", "bridge", Macvlan{Mode: ModeBridge}), s.macvlan(t, "eth2", "passthru", Macvlan{Mode: ModePassthru})

	must(t, s.h.Up(bridge.Index, "", mac(1)))
	must(t, s.h.Up(passthru.Index, "", mac(2)))
	for name, want := range map[string]string{"bridge": "02:00:00:00:00:01", "eth1": s.link(t, "eth1").MAC.String(), "passthru": "02:00:00:00:00:02", "eth2": "02:00:00:00:00:02"} {
		if got := s.show(t, name).MAC; got != want {
			t.Errorf("%s has %s, want %s", name, got, want)
		}
	}
}
