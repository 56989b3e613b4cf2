package link

import (
	"errors"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// Without 802.1q in the kernel, it is named, and nothing is left.
func TestEnsureVLANLacking(t *testing.T) {
	t.Parallel()
	linktest.Lack(t, "vlan")
	s := newHost(t)
	before := s.showAll(t, "")
	_, err := s.h.EnsureVLAN(s.link(t, "eth1"), 100)
	wantError(t, err, `sub-interface "eth1.100": the kernel has no 802.1q support; try: modprobe 8021q`)
	must(t, s.h.DeleteVLAN("eth1", 100))
	if diff := cmp.Diff(before, s.showAll(t, "")); diff != "" {
		t.Errorf("links (-before +after):\n%s", diff)
	}
}

// parents have names that leave room for an id, that leave none, and that have
// none themselves.
var parents = []string{"eth1", "enp5s0f1np1", "a-very-long-one"}

func TestEnsureVLAN(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "vlan")
	for _, parent := range parents {
		t.Run(parent, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.veth(t, parent, "wire")
			name, _ := VLANName(parent, 1000)
			l, err := s.h.EnsureVLAN(s.link(t, parent), 1000)
			must(t, err)
			wantVLAN(t, s, parent, 1000, l)
			s.ip(t, "link set "+name+" down")
			again, err := s.h.EnsureVLAN(s.link(t, parent), 1000)
			must(t, err)
			if diff := cmp.Diff(l, again, equate); diff != "" || !s.show(t, name).up() {
				t.Errorf("second time (-first +second):\n%s", diff)
			}
			for range 2 { // none is success
				must(t, s.h.DeleteVLAN(parent, 1000))
				if _, err := s.h.ByName(name); !errors.Is(err, ErrNotFound) {
					t.Errorf("after delete: %v", err)
				}
			}
		})
	}
}

// wantVLAN checks a sub-interface that is finished, and what is told of it.
func wantVLAN(t *testing.T, s *space, parent string, id int, told Link) {
	t.Helper()
	name, alt := VLANName(parent, id)
	found, err := s.nl.LinkByName(name)
	must(t, err)
	on := s.link(t, parent)
	made, ok := found.(*netlink.Vlan)
	if !ok || made.VlanId != id || made.ParentIndex != on.Index || made.Group != 0 {
		t.Errorf("made %+v", found)
	}
	got := s.show(t, name)
	if !got.up() || got.Alias != "underlay" || alt != "" && !slices.Contains(got.AltNames, alt) {
		t.Errorf("made %+v", got)
	}
	// By its full name too, be that an alternative one.
	for _, known := range []string{name, parent + "." + strconv.Itoa(id)} {
		l := s.link(t, known)
		if diff := cmp.Diff(l, told, equate); diff != "" {
			t.Errorf("what is told of %q (-kernel +got):\n%s", known, diff)
		}
		if !l.OwnVLAN() || l.VLAN != id || l.Parent != on.Index {
			t.Errorf("%q is not VLAN %d of %q: %+v", known, id, parent, l)
		}
	}
}

// However far the maker of a sub-interface came before it died, the next one
// goes on from there, or removes it.
func TestVLANHalfMade(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "vlan")
	steps := map[string]func(h *Handle, index int, alt string) error{
		"made":  func(*Handle, int, string) error { return nil },
		"named": (*Handle).addAltName,
	}
	for _, parent := range parents {
		for step, take := range steps {
			name, alt := VLANName(parent, 1000)
			if step == "named" && alt == "" {
				continue
			}
			t.Run(parent+" "+step, func(t *testing.T) {
				t.Parallel()
				s := newSpace(t)
				s.veth(t, parent, "wire")
				half := func() {
					l, err := s.h.makeVLAN(s.link(t, parent), 1000, name)
					must(t, err)
					must(t, take(s.h, l.Index, alt))
					if l := s.link(t, name); !l.OwnVLAN() || l.Up {
						t.Errorf("half-made: %+v", l)
					}
				}
				half()
				l, err := s.h.EnsureVLAN(s.link(t, parent), 1000)
				must(t, err)
				wantVLAN(t, s, parent, 1000, l)
				must(t, s.h.DeleteVLAN(parent, 1000))
				half()
				must(t, s.h.DeleteVLAN(parent, 1000))
				if _, err := s.h.ByName(name); !errors.Is(err, ErrNotFound) {
					t.Errorf("after delete: %v", err)
				}
			})
		}
	}
}

const takenVLAN = `sub-interface "eth1.100": an interface of that name exists, and it is not VLAN 100 of "eth1"`

// What somebody else has made stays as it was.
func TestEnsureVLANInTheWay(t *testing.T) {
	t.Parallel()
	for _, prepare := range []string{
		"link add eth1.100 type bridge",
		"link add eth1.100 link eth1 type macvlan",
		"link add eth1.100 group 1970168946 link eth1 type macvlan",
	} {
		t.Run(prepare, func(t *testing.T) {
			t.Parallel()
			wantInTheWay(t, prepare, takenVLAN)
		})
	}
}

func TestEnsureVLANForeign(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "vlan")
	tests := []struct{ name, prepare, want string }{
		{"another id", "link add eth1.100 link eth1 type vlan id 101", takenVLAN},
		{"another parent", "link add eth1.100 link wire type vlan id 100", takenVLAN},
		{"another name", "link add red link eth1 type vlan id 100", `sub-interface "eth1.100": VLAN 100 of "eth1" is there under the name "red"; use that as master, without vlan`},
		{"the user's own", "link add eth1.100 up link eth1 type vlan id 100", ""},
		{"in a group", "link add eth1.100 up group 7 link eth1 type vlan id 100", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			wantInTheWay(t, tt.prepare, tt.want)
		})
	}
}

func wantInTheWay(t *testing.T, prepare, want string) {
	t.Helper()
	s := newHost(t)
	s.ip(t, prepare)
	before := s.showAll(t, "")
	for _, l := range before {
		if s.link(t, l.Name).OwnVLAN() {
			t.Errorf("%q passes for ours", l.Name)
		}
	}
	_, err := s.h.EnsureVLAN(s.link(t, "eth1"), 100)
	wantError(t, err, want)
	if errors.Is(err, ErrExists) != (want == takenVLAN) {
		t.Errorf("%v is %v", err, ErrExists)
	}
	must(t, s.h.DeleteVLAN("eth1", 100))
	if diff := cmp.Diff(before, s.showAll(t, "")); diff != "" {
		t.Errorf("links (-before +after):\n%s", diff)
	}
}

// Two parents with names that are too long have the same VLAN.
func TestVLANOfTwoParents(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "vlan")
	tests := []struct {
		name, one, other string
		want             string // for the other
	}{
		{"apart", "enp5s0f1np1", "a-very-long-one", ""},
		{"one hash", "enp736s0f1np7", "enp816s0f1np7", `sub-interface "ul40e033.1000": an interface of that name exists, and it is not VLAN 1000 of "enp816s0f1np7"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.veth(t, tt.one, tt.other)
			one, err := s.h.EnsureVLAN(s.link(t, tt.one), 1000)
			must(t, err)
			other, err := s.h.EnsureVLAN(s.link(t, tt.other), 1000)
			wantError(t, err, tt.want)
			if tt.want == "" {
				wantVLAN(t, s, tt.other, 1000, other)
			}
			must(t, s.h.DeleteVLAN(tt.other, 1000))
			wantVLAN(t, s, tt.one, 1000, one)
			must(t, s.h.DeleteVLAN(tt.one, 1000))
			if list, err := s.nl.LinkList(); err != nil || len(list) != 3 {
				t.Errorf("links are left: %v, %v", list, err)
			}
		})
	}
}

// A sub-interface that cannot be finished is not left behind.
func TestEnsureVLANUndo(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "vlan")
	tests := []struct {
		name, prepare string
		is            error
	}{
		{"the full name is taken", "link property add dev wire altname enp5s0f1np1.1000", unix.EEXIST},
		{"the parent is down", "link set enp5s0f1np1 down", unix.ENETDOWN},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.veth(t, "enp5s0f1np1", "wire")
			s.ip(t, tt.prepare)
			before := s.showAll(t, "")
			_, err := s.h.EnsureVLAN(s.link(t, "enp5s0f1np1"), 1000)
			if !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %v", err, tt.is)
			}
			if diff := cmp.Diff(before, s.showAll(t, "")); diff != "" {
				t.Errorf("links (-before +after):\n%s", diff)
			}
		})
	}
}

func TestAddAltName(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	index := s.link(t, "eth1").Index
	for _, name := range []string{"enp5s0f1np1.1000", "short"} {
		must(t, s.h.addAltName(index, name))
		if got := s.link(t, name); got.Index != index || got.Name != "eth1" {
			t.Errorf("%q is %+v", name, got)
		}
	}
	if diff := cmp.Diff([]string{"enp5s0f1np1.1000", "short"}, s.show(t, "eth1").AltNames); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := s.h.addAltName(s.link(t, "wire").Index, "enp5s0f1np1.1000"); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a name that another has: %v", err)
	}
}
