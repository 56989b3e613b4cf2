package link

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// addresses is what ip shows of those of a link.
func (s *space) addresses(t testing.TB, name string) []string {
	t.Helper()
	out := []string{}
	for _, line := range s.lines(t, "-o addr show dev "+name) {
		_, line, _ = strings.Cut(line, name)
		line, _, _ = strings.Cut(line, `\`) // how long it lives
		out = append(out, strings.Join(strings.Fields(strings.ReplaceAll(line, " "+name, " ")), " "))
	}
	return out
}

func TestAddAddr(t *testing.T) {
	t.Parallel()
	tests := []struct {
		prefixes string
		want     []string // as ip has them
	}{
		{"192.0.2.10/24", []string{"inet 192.0.2.10/24 brd 192.0.2.255 scope global"}},
		{"192.0.2.9/30", []string{"inet 192.0.2.9/30 brd 192.0.2.11 scope global"}},
		{"192.0.2.10/31", []string{"inet 192.0.2.10/31 scope global"}},
		{"192.0.2.10/32", []string{"inet 192.0.2.10/32 scope global"}},
		{"10.1.2.3/8 10.1.2.4/8", []string{"inet 10.1.2.3/8 brd 10.255.255.255 scope global", "inet 10.1.2.4/8 brd 10.255.255.255 scope global secondary"}},
		// Not tentative: it can be used from the first moment on.
		{"2001:db8::10/64", []string{"inet6 2001:db8::10/64 scope global nodad"}},
		{"2001:db8::10/128", []string{"inet6 2001:db8::10/128 scope global nodad"}},
		{"192.0.2.10/24 2001:db8::10/64", []string{"inet 192.0.2.10/24 brd 192.0.2.255 scope global", "inet6 2001:db8::10/64 scope global nodad"}},
	}
	for _, tt := range tests {
		t.Run(tt.prefixes, func(t *testing.T) {
			t.Parallel()
			s := newHost(t)
			index := s.link(t, "eth1").Index
			var want []Addr
			for _, p := range strings.Fields(tt.prefixes) {
				want = append(want, Addr{Prefix: netip.MustParsePrefix(p)})
				must(t, s.h.AddAddr(index, want[len(want)-1].Prefix))
			}
			got := s.addresses(t, "eth1")
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			for _, a := range want {
				must(t, s.h.AddAddr(index, a.Prefix)) // one that it has is success
			}
			if diff := cmp.Diff(got, s.addresses(t, "eth1")); diff != "" {
				t.Errorf("second time (-before +after):\n%s", diff)
			}
			back, err := s.h.Addrs(index)
			must(t, err)
			if diff := cmp.Diff(want, back, equate); diff != "" {
				t.Errorf("read back (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAddAddrRefused(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	index := s.link(t, "eth1").Index
	s.ip(t, "link set eth1 mtu 1000") // too little for IPv6
	tests := []struct {
		index  int
		prefix string
		want   string // and what more a kernel may say
	}{
		{1 << 20, "192.0.2.10/24", "add address 192.0.2.10/24: no such device"},
		{1 << 20, "2001:db8::10/64", "add address 2001:db8::10/64: no such device"},
		{index, "2001:db8::10/64", "add address 2001:db8::10/64: invalid argument"},
	}
	for _, tt := range tests {
		err := s.h.AddAddr(tt.index, netip.MustParsePrefix(tt.prefix))
		if got := fmt.Sprint(err); !strings.HasPrefix(got, tt.want) {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	if got := s.addresses(t, "eth1"); len(got) > 0 {
		t.Errorf("it has %q", got)
	}
}

// What ip gave is read with ours: the own end of what leads to a peer, and
// nothing of other links.
func TestAddrs(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	s.veth(t, "eth2", "wire2")
	want := []string{}
	for _, a := range []struct{ args, want string }{
		{"192.0.2.1/24 dev eth1", "192.0.2.1/24"},
		{"192.0.2.2/24 dev eth1", "192.0.2.2/24"},
		{"198.51.100.1 peer 198.51.100.2/32 dev eth1", "198.51.100.1/32"},
		{"198.51.100.3 peer 203.0.113.0/24 dev eth1", "198.51.100.3/24"},
		{"169.254.1.1/16 scope link dev eth1", "169.254.1.1/16"},
		{"2001:db8::1/64 nodad dev eth1", "2001:db8::1/64"},
		{"2001:db8::2 peer 2001:db8::3/128 dev eth1", "2001:db8::2/128"},
		{"fe80::1/64 nodad dev eth1", "fe80::1/64"},
		{"192.0.2.3/24 dev eth2", ""},
		{"2001:db8::4/64 dev eth2", ""},
	} {
		s.ip(t, "addr add "+a.args)
		if a.want != "" {
			want = append(want, a.want)
		}
	}
	got := []string{}
	list, err := s.h.Addrs(s.link(t, "eth1").Index)
	must(t, err)
	for _, a := range list {
		got = append(got, a.String())
		if a.DADFailed {
			t.Errorf("%s failed", a)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	list, err = s.h.Addrs(s.link(t, "wire").Index)
	if err != nil || len(list) > 0 {
		t.Errorf("a link without: %v, %v", list, err)
	}
	_, err = s.h.Addrs(1 << 20)
	wantError(t, err, "list addresses of link 1048576: no such device")
}

// The kernel asks the wire for an address that both ends of a cable get.
func TestAddrsDADFailed(t *testing.T) {
	t.Parallel()
	here, there := newSpace(t), newSpace(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth1"
	must(t, here.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth1", PeerNamespace: netlink.NsFd(there.fd())}))
	for _, s := range []*space{there, here} {
		// At once, and with 10 ms to answer: the kernel's own seconds are long.
		s.sysctl(t, "net/ipv6/conf/eth1/router_solicitation_delay", "0")
		s.sysctl(t, "net/ipv6/neigh/eth1/retrans_time_ms", "10")
		s.ip(t, "link set eth1 addrgenmode none")
		s.ip(t, "link set eth1 up")
	}
	prefix := netip.MustParsePrefix("2001:db8::1/64")
	// There it goes well, which also means that it is listened for.
	there.await(t, "eth1", prefix, func(flags int) bool { return flags&unix.IFA_F_TENTATIVE == 0 })
	here.await(t, "eth1", prefix, func(flags int) bool { return flags&unix.IFA_F_DADFAILED != 0 })
	for s, failed := range map[*space]bool{here: true, there: false} {
		got, err := s.h.Addrs(s.link(t, "eth1").Index)
		must(t, err)
		if diff := cmp.Diff([]Addr{{Prefix: prefix, DADFailed: failed}}, got, equate); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// await adds an address with ip and returns when the kernel tells of one with
// such flags.
func (s *space) await(t testing.TB, name string, p netip.Prefix, ready func(flags int) bool) {
	t.Helper()
	updates, done := make(chan netlink.AddrUpdate), make(chan struct{})
	defer close(done)
	at := vnetns.NsHandle(s.fd())
	must(t, netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{Namespace: &at}))
	s.ip(t, fmt.Sprintf("addr add %s dev %s", p, name))
	for late := time.After(time.Minute); ; { // paid only by a failure
		select {
		case u := <-updates:
			if u.LinkAddress.IP.String() == p.Addr().String() && ready(u.Flags) {
				return
			}
		case <-late:
			t.Fatalf("%s: %q", p, s.addresses(t, name))
		}
	}
}

func TestNeighbours(t *testing.T) {
	t.Parallel()
	s := newHost(t)
	s.ip(t, "addr add 192.0.2.1/24 dev eth1")
	index := s.link(t, "eth1").Index
	neighbours := func() []string {
		out := s.lines(t, "neigh show dev eth1 nud permanent")
		slices.Sort(out)
		return out
	}
	v4, v6 := netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")
	s.ip(t, "neigh add 192.0.2.11 lladdr 02:00:00:00:00:99 nud stale dev eth1")
	for _, last := range []byte{1, 2, 2} { // replaced, and once more the same
		must(t, s.h.SetNeighbour(index, v4, mac(last)))
		must(t, s.h.SetNeighbour(index, v6, mac(last)))
	}
	must(t, s.h.SetNeighbour(index, netip.MustParseAddr("192.0.2.11"), mac(3)))
	want := []string{"192.0.2.10 lladdr 02:00:00:00:00:02 PERMANENT", "192.0.2.11 lladdr 02:00:00:00:00:03 PERMANENT", "2001:db8::10 lladdr 02:00:00:00:00:02 PERMANENT"}
	if diff := cmp.Diff(want, neighbours()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	s.ip(t, "neigh add 192.0.2.12 lladdr 02:00:00:00:00:99 nud stale dev eth1")
	s.ip(t, "neigh add 192.0.2.13 lladdr 02:00:00:00:00:99 nud permanent dev lo")
	list, err := s.h.Neighbours(index)
	must(t, err)
	var listed []string
	for _, n := range list {
		listed = append(listed, fmt.Sprintf("%s lladdr %s PERMANENT", n.Addr, n.MAC))
	}
	slices.Sort(listed)
	if diff := cmp.Diff(want, listed); diff != "" {
		t.Errorf("listed (-want +got):\n%s", diff)
	}
	for range 2 { // none is success
		must(t, s.h.DeleteNeighbour(index, v4))
		must(t, s.h.DeleteNeighbour(index, v6))
		if diff := cmp.Diff(want[1:2], neighbours()); diff != "" {
			t.Errorf("after delete (-want +got):\n%s", diff)
		}
	}
	must(t, s.h.DeleteNeighbour(1<<20, v4))
	wantError(t, s.h.SetNeighbour(1<<20, v4, mac(1)), "set neighbour 192.0.2.10 lladdr 02:00:00:00:00:01: no such device")
}
