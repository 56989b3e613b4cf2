package link

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// twin is a host whose eth1 has the index that another's has.
func (s *space) twin(t testing.TB) *space {
	t.Helper()
	other := newSpace(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index = "eth1", s.link(t, "eth1").Index
	must(t, other.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire"}))
	return other
}

// put makes a child of the space's eth1 in another space.
func (s *space) put(t testing.TB, in *space, name string, create func(*Handle, Target) (int, error)) {
	t.Helper()
	_, err := create(s.h, Target{Name: name, NetnsFd: in.fd(), Parent: s.link(t, "eth1").Index})
	must(t, err)
}

func TestChild(t *testing.T) {
	t.Parallel()
	bridge, vepa := Macvlan{Mode: ModeBridge}.Create, Macvlan{Mode: ModeVEPA}.Create
	tests := []struct {
		name    string
		prepare func(t *testing.T, host, container *space)
		want    string // name of the child; "" for none
		at      bool   // it is in the container
	}{
		{name: "none", prepare: func(*testing.T, *space, *space) {}},
		{
			name: "in the parent's namespace", want: "here",
			prepare: func(t *testing.T, host, container *space) {
				host.put(t, container, "there", bridge)
				host.put(t, host, "here", bridge)
			},
		},
		{
			name: "in the container", want: "there", at: true,
			prepare: func(t *testing.T, host, container *space) { host.put(t, container, "there", bridge) },
		},
		{
			name:    "no match",
			prepare: func(t *testing.T, host, container *space) { host.put(t, container, "there", vepa) },
		},
		{
			name: "only one matches", want: "second", at: true,
			prepare: func(t *testing.T, host, container *space) {
				host.put(t, container, "first", vepa)
				host.put(t, container, "second", bridge)
			},
		},
		{
			name:    "of another host",
			prepare: func(t *testing.T, host, container *space) { host.twin(t).put(t, container, "there", bridge) },
		},
		{
			name: "of both", want: "ours", at: true,
			prepare: func(t *testing.T, host, container *space) {
				host.twin(t).put(t, container, "before", bridge)
				host.put(t, container, "ours", bridge)
				host.twin(t).put(t, container, "after", bridge)
			},
		},
		{
			name: "the container's own",
			prepare: func(t *testing.T, host, container *space) {
				host.twin(t).put(t, container, "eth1", bridge)
				container.put(t, container, "there", bridge)
			},
		},
		{
			name: "of another parent",
			prepare: func(t *testing.T, host, container *space) {
				_, err := bridge(host.h, Target{Name: "there", NetnsFd: container.fd(), Parent: host.link(t, "wire").Index})
				must(t, err)
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host, container := newHost(t), newSpace(t)
			tt.prepare(t, host, container)
			path := container.live(t)
			got, found, err := host.h.child(host.link(t, "eth1"), func(l Link) bool { return l.Mode == ModeBridge })
			must(t, err)
			var want Child
			switch {
			case tt.at:
				want = Child{container.link(t, tt.want), path}
			case tt.want != "":
				want = Child{host.link(t, tt.want), ""}
			}
			if diff := cmp.Diff(want, got, equate); diff != "" || found != (tt.want != "") {
				t.Errorf("found %t (-want +got):\n%s", found, diff)
			}
		})
	}
}

// Many hosts have as many.
func BenchmarkChild(b *testing.B) {
	const containers = 300
	host := newHost(b)
	for range containers {
		c := newSpace(b)
		host.put(b, c, "eth0", Macvlan{Mode: ModeBridge}.Create)
		c.live(b)
	}
	parent := host.link(b, "eth1")
	for b.Loop() {
		if _, found, err := host.h.child(parent, Link.isIpvlan); found || err != nil {
			b.Fatal(found, err)
		}
	}
}
