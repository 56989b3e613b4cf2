package link

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
)

// space is a network namespace: a host, or a container. It has no name, so that
// it is gone with the test even if that is killed, and since the mount of a
// name is busy while any parallel test starts a process. What is made through h is read back through ip or the library,
// and the other way round, so that no error can hide on both sides.
type space struct {
	ns ns.NetNS
	h  *Handle
	nl *netlink.Handle
}

func newSpace(t testing.TB) *space {
	t.Helper()
	here, err := ns.GetCurrentNS()
	must(t, err)
	defer here.Close()
	var n ns.NetNS
	must(t, netns.DoAt(int(here.Fd()), func() error { // on a thread that ends with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n, err = ns.GetNS("/proc/thread-self/ns/net")
		}
		return err
	}))
	t.Cleanup(func() { must(t, n.Close()) })
	h, err := OpenAt(int(n.Fd()))
	must(t, err)
	t.Cleanup(h.Close)
	nl, err := netlink.NewHandleAt(vnetns.NsHandle(n.Fd()), unix.NETLINK_ROUTE)
	must(t, err)
	t.Cleanup(nl.Close)
	return &space{ns: n, h: h, nl: nl}
}

// newHost is a space with eth1, whose cable ends in wire, and nothing that the
// kernel adds on its own: no link-local addresses, and no routes for them.
func newHost(t testing.TB) *space {
	t.Helper()
	s := newSpace(t)
	s.veth(t, "eth1", "wire")
	return s
}

// veth makes a pair that is up.
func (s *space) veth(t testing.TB, name, peer string) {
	t.Helper()
	s.ip(t, "link add "+name+" type veth peer name "+peer)
	for _, end := range []string{name, peer} {
		s.ip(t, "link set "+end+" addrgenmode none")
		s.ip(t, "link set "+end+" up")
	}
}

func (s *space) fd() int { return int(s.ns.Fd()) }

// ip runs ip with the words of a command in the space.
func (s *space) ip(t testing.TB, command string) string {
	t.Helper()
	out, err := s.run("", strings.Fields(command)...)
	if err != nil {
		t.Fatalf("ip %s: %v", command, err)
	}
	return out
}

// batch runs many commands of ip at once.
func (s *space) batch(t testing.TB, commands []string) {
	t.Helper()
	if _, err := s.run(strings.Join(commands, "\n"), "-batch", "-"); err != nil {
		t.Fatalf("ip -batch: %v", err)
	}
}

func (s *space) run(stdin string, args ...string) (string, error) {
	var out, stderr bytes.Buffer
	cmd := exec.Command("ip", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &stderr
	err := s.ns.Do(func(ns.NetNS) error { return cmd.Run() })
	if err != nil {
		err = errors.Join(err, errors.New(stderr.String()))
	}
	return out.String(), err
}

// lines is what ip prints, with one space between any words.
func (s *space) lines(t testing.TB, command string) []string {
	t.Helper()
	return split(s.ip(t, command))
}

func split(printed string) []string {
	out := []string{}
	for line := range strings.Lines(printed) {
		out = append(out, strings.Join(strings.Fields(line), " "))
	}
	return out
}

// ipLink is what `ip -d -json link` says of a link.
type ipLink struct {
	Name     string   `json:"ifname"`
	Index    int      `json:"ifindex"`
	MTU      int      `json:"mtu"`
	MAC      string   `json:"address"`
	Alias    string   `json:"ifalias"`
	Group    string   `json:"group"`
	Flags    []string `json:"flags"`
	Promisc  int      `json:"promiscuity"`
	AddrGen  string   `json:"inet6_addr_gen_mode"`
	AltNames []string `json:"altnames"`
	Info     struct {
		Kind string `json:"info_kind"`
	} `json:"linkinfo"`
}

func (l ipLink) up() bool { return slices.Contains(l.Flags, "UP") }

// show reads a link through ip.
func (s *space) show(t testing.TB, name string) ipLink {
	t.Helper()
	found := s.showAll(t, "dev "+name)
	if len(found) != 1 {
		t.Fatalf("ip shows %d links %q", len(found), name)
	}
	return found[0]
}

func (s *space) showAll(t testing.TB, which string) (found []ipLink) {
	t.Helper()
	s.read(t, &found, "-d -json link show "+which)
	for i := range found { // without what changes some time after a link is up
		found[i].Flags = slices.DeleteFunc(found[i].Flags, func(f string) bool { return f == "NO-CARRIER" || f == "LOWER_UP" })
	}
	return found
}

// read decodes what ip prints with -json.
func (s *space) read(t testing.TB, into any, command string) {
	t.Helper()
	if out := s.ip(t, command); strings.TrimSpace(out) != "" { // nothing, for an empty list of neighbours
		if err := json.Unmarshal([]byte(out), into); err != nil {
			t.Fatalf("ip %s: %v\n%s", command, err, out)
		}
	}
}

// link reads a link through what is tested, where that is not the question.
func (s *space) link(t testing.TB, name string) Link {
	t.Helper()
	l, err := s.h.ByName(name)
	must(t, err)
	return l
}

// macvlan makes a child of parent in the space.
func (s *space) macvlan(t testing.TB, parent, name string, m Macvlan) Link {
	t.Helper()
	_, err := m.Create(s.h, Target{Name: name, NetnsFd: -1, Parent: s.link(t, parent).Index})
	must(t, err)
	return s.link(t, name)
}

// live starts a process in the space, by which others find it, and returns the
// path.
func (s *space) live(t testing.TB) string {
	t.Helper()
	cmd := exec.Command("sleep", "infinity")
	must(t, s.ns.Do(func(ns.NetNS) error { return cmd.Start() }))
	t.Cleanup(func() {
		if err := errors.Join(cmd.Process.Kill(), cmd.Wait()); err == nil {
			t.Error("the process has ended by itself")
		}
	})
	return fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
}

// equate compares what this package reads.
var equate = cmp.Options{cmp.AllowUnexported(Link{}, Route{}), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantError compares what a person reads; "" means success.
func wantError(t testing.TB, err error, want string) {
	t.Helper()
	got := ""
	if err != nil {
		got = err.Error()
	}
	if got != want {
		t.Errorf("got error\n%q, want\n%q", got, want)
	}
}

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, last} }

func macStrings(macs []net.HardwareAddr) []string {
	out := []string{}
	for _, m := range macs {
		out = append(out, m.String())
	}
	slices.Sort(out)
	return out
}

// sysctl sets a key under /proc/sys as the space has it.
func (s *space) sysctl(t testing.TB, key, value string) {
	t.Helper()
	must(t, s.ns.Do(func(ns.NetNS) error { return netns.Sysctl(key, value) }))
}
