package link

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// has8021q finds out by making a sub-interface with the library. No test skips
// where it cannot: each says what then happens.
func has8021q(t testing.TB) bool {
	t.Helper()
	s := newHost(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = "probe", s.link(t, "eth1").Index
	err := s.nl.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: 7})
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal(err)
	}
	return err == nil
}

func TestEnsureVLAN(t *testing.T) {
	t.Parallel()
	supported := has8021q(t)
	for _, parent := range []string{"eth1", "enp5s0f1np1"} { // one name is too long for the kernel
		t.Run(parent, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.veth(t, parent, "wire")
			name, alt := VLANName(parent, 1000)
			l, err := s.h.EnsureVLAN(s.link(t, parent), 1000)
			if !supported {
				wantError(t, err, `sub-interface "`+name+`": the kernel has no 802.1q support; try: modprobe 8021q`)
				if list, err := s.nl.LinkList(); err != nil || len(list) != 3 {
					t.Errorf("links are left: %v, %v", list, err)
				}
				must(t, s.h.DeleteVLAN(parent, 1000))
				return
			}
			must(t, err)
			found, err := s.nl.LinkByName(name)
			must(t, err)
			made, ok := found.(*netlink.Vlan)
			if !ok || made.VlanId != 1000 || made.ParentIndex != s.link(t, parent).Index {
				t.Errorf("made %+v", found)
			}
			got := s.show(t, name)
			if !got.up() || got.Alias != "underlay" || alt != "" && !slices.Contains(got.AltNames, alt) {
				t.Errorf("made %+v", got)
			}
			if diff := cmp.Diff(s.link(t, name), l, equate); diff != "" {
				t.Errorf("what is returned (-kernel +got):\n%s", diff)
			}
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

// What somebody else has made stays as it was.
func TestEnsureVLANInTheWay(t *testing.T) {
	t.Parallel()
	supported := has8021q(t)
	const taken = `sub-interface "eth1.100": an interface of that name exists, and it is not VLAN 100 of "eth1"`
	tests := []struct {
		name    string
		prepare string
		with    bool // made with 802.1q
		want    string
	}{
		{name: "another kind", prepare: "link add eth1.100 type bridge", want: taken},
		{name: "macvlan of the parent", prepare: "link add eth1.100 link eth1 type macvlan", want: taken},
		{name: "another id", prepare: "link add eth1.100 link eth1 type vlan id 101", with: true, want: taken},
		{name: "another parent", prepare: "link add eth1.100 link wire type vlan id 100", with: true, want: taken},
		{
			name: "another name", prepare: "link add red link eth1 type vlan id 100", with: true,
			want: `sub-interface "eth1.100": VLAN 100 of "eth1" is there under the name "red"; use that as master, without vlan`,
		},
		{name: "the user's own", prepare: "link add eth1.100 up link eth1 type vlan id 100", with: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.with && !supported {
				t.Skip("this kernel has no 802.1q; TestEnsureVLAN checks what is said then")
			}
			s := newHost(t)
			s.ip(t, tt.prepare)
			before := s.showAll(t, "")
			_, err := s.h.EnsureVLAN(s.link(t, "eth1"), 100)
			wantError(t, err, tt.want)
			if errors.Is(err, ErrExists) != (tt.want == taken) {
				t.Errorf("%v is %v", err, ErrExists)
			}
			must(t, s.h.DeleteVLAN("eth1", 100))
			if diff := cmp.Diff(before, s.showAll(t, "")); diff != "" {
				t.Errorf("links (-before +after):\n%s", diff)
			}
		})
	}
}

// A sub-interface that cannot be finished is not left behind: without an alias,
// nothing would ever remove it.
func TestEnsureVLANUndo(t *testing.T) {
	t.Parallel()
	if !has8021q(t) {
		t.Skip("this kernel has no 802.1q; TestEnsureVLAN checks what is said then")
	}
	s := newSpace(t)
	s.veth(t, "enp5s0f1np1", "wire")
	s.ip(t, "link property add dev wire altname enp5s0f1np1.1000")
	before := s.showAll(t, "")
	_, err := s.h.EnsureVLAN(s.link(t, "enp5s0f1np1"), 1000)
	if !errors.Is(err, unix.EEXIST) {
		t.Errorf("the full name is taken: %v", err)
	}
	if diff := cmp.Diff(before, s.showAll(t, "")); diff != "" {
		t.Errorf("links (-before +after):\n%s", diff)
	}
}

func TestAddAltName(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	index := s.link(t, "eth1").Index
	must(t, s.h.addAltName(index, "enp5s0f1np1.1000"))
	if diff := cmp.Diff([]string{"enp5s0f1np1.1000"}, s.show(t, "eth1").AltNames); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := s.h.addAltName(s.link(t, "wire").Index, "enp5s0f1np1.1000"); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a name that another has: %v", err)
	}
}
