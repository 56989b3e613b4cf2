package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// Addresses behind the containers' gateway, which only a route leads to.
var farAddrs = []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:9::9")}

// scene is what a chain is tried on: hosts on a switch, of which the first has
// the container.
type scene struct {
	*bed
	// near is on the container's network, its gateway or behind that, and has the
	// far addresses.
	near station
	// plugins are the chain up to whoever makes the container's interface.
	plugins []keys
	// env is for the plugins, those of others too.
	env []string
	// patience is how long to wait for an answer that may not come.
	patience time.Duration
}

// leader is the beginning of a chain: one of our plugins, or several.
type leader struct {
	name string
	lay  func(t *testing.T, s *scene)
}

// onLAN is a plugin whose containers are on the hosts' own segment.
func onLAN(plugin keys) func(*testing.T, *scene) {
	return func(t *testing.T, s *scene) {
		t.Helper()
		s.near = hostStation(t, s.h2)
		s.plugins = []keys{merged(keys{"master": lab.Parent, "ipam": gatewayed(
			"192.0.2.0/24", "192.0.2.10", "192.0.2.2", "2001:db8::/64", "2001:db8::10", "2001:db8::2")}, plugin)}
	}
}

// gatewayed is IPAM with a subnet of each family, what is given out first, and a
// gateway to the far addresses.
func gatewayed(subnet4, first4, gateway4, subnet6, first6, gateway6 string) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"type": "underlay",
		"ranges": [[{"subnet": %q, "rangeStart": %q, "gateway": %q}], [{"subnet": %q, "rangeStart": %q, "gateway": %q}]],
		"routes": [{"dst": "203.0.113.0/24"}, {"dst": "2001:db8:9::/64"}]}`, subnet4, first4, gateway4, subnet6, first6, gateway6))
}

// onRoutes is a plugin to whose containers the hosts route.
func onRoutes(plugin keys) func(*testing.T, *scene) {
	return func(t *testing.T, s *scene) {
		t.Helper()
		s.near = hostStation(t, s.h2)
		s.plugins = []keys{merged(keys{"type": "hostgw", "master": lab.Parent,
			"ipam": json.RawMessage(`{"type": "underlay", "ranges": [[{"subnet": "10.5.1.0/24"}], [{"subnet": "fd05:0:0:1::/64"}]]}`)}, plugin)}
		for _, route := range []string{"203.0.113.0/24 via 192.0.2.2", "2001:db8:9::/64 via 2001:db8::2"} {
			mustDo(t, s.h1.Namespace, strings.Fields("ip route add "+route)...)
		}
		for _, route := range []string{"10.5.1.0/24 via 192.0.2.1", "fd05:0:0:1::/64 via 2001:db8::1"} {
			mustDo(t, s.h2.Namespace, strings.Fields("ip route add "+route)...)
		}
	}
}

// onSegment is a plugin whose containers are on a tenant's segment; the near one
// is another container there.
func onSegment(plugin keys) func(*testing.T, *scene) {
	return func(t *testing.T, s *scene) {
		t.Helper()
		s.plugins = []keys{segment(5001, nil), merged(keys{"ipam": gatewayed(
			"10.7.0.0/24", "10.7.0.10", "10.7.0.1", "fd07::/64", "fd07::10", "fd07::1")}, plugin)}
		s.near = attach(t, s.h1, "near", chain(t, "chained", s.plugins...)).station
		for _, addr := range []string{"10.7.0.1/24", "fd07::1/64"} {
			mustDo(t, s.near.Namespace, "ip", "addr", "add", addr, "dev", "eth0", "nodad")
		}
	}
}

// newScene lays out what a chain begins with.
func newScene(t *testing.T, l leader) *scene {
	t.Helper()
	s := &scene{bed: newBed(t)}
	l.lay(t, s)
	for _, addr := range farAddrs {
		mustDo(t, s.near.Namespace, "ip", "addr", "add", addr.String(), "dev", "lo")
	}
	return s
}

// conf is the chain with a plugin at its end, or with none.
func (s *scene) conf(t *testing.T, last ...keys) string {
	t.Helper()
	return chain(t, "chained", append(s.plugins[:len(s.plugins):len(s.plugins)], last...)...)
}

// attachment is a container of the scene that is not attached yet.
func (s *scene) attachment(t *testing.T, name, conf string, capabilities map[string]any) *attachment {
	t.Helper()
	a := &attachment{t: t, cni: s.h1.CNI(ours, reference), conf: conf}
	a.cni.Env, a.cni.Stderr = s.env, t.Output()
	a.Namespace, a.rt = container(t, s.h1, name)
	a.rt.CapabilityArgs = maps.Clone(capabilities)
	return a
}

// host is an address of the host with the container, by family of another.
func (s *scene) host(family netip.Addr) netip.Addr {
	if family.Is4() {
		return netip.MustParseAddr("192.0.2.1")
	}
	return netip.MustParseAddr("2001:db8::1")
}

// serve has a container answer at a TCP port until stop: it reads what it is
// sent, and says done at the end of it.
func serve(t *testing.T, n *lab.Namespace, port uint16) (stop func()) {
	t.Helper()
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(netip.IPv6Unspecified(), port).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(io.Discard, c)
				_, _ = io.WriteString(c, done)
			}()
		}
	}()
	return func() { l.Close() }
}

const done = "done"

// send sends bytes to a port from a namespace, and waits until the other end has
// them all. It returns how long that took.
func send(n *lab.Namespace, to netip.AddrPort, bytes int, wait time.Duration) (time.Duration, error) {
	began := time.Now()
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", to.String(), wait)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(began.Add(wait)); err != nil {
		return 0, err
	}
	_, err = c.Write(make([]byte, bytes))
	if err := errors.Join(err, c.(*net.TCPConn).CloseWrite()); err != nil {
		return 0, err
	}
	answer, err := io.ReadAll(c)
	if err == nil && string(answer) != done {
		err = fmt.Errorf("%s answered %q", to, answer)
	}
	return time.Since(began), err
}

// asks pings an address once or twice, from one of the namespace's addresses or
// devices.
func asks(n *lab.Namespace, t *testing.T, from string, to netip.Addr) error {
	t.Helper()
	_, err := n.Exec(t.Context(), "ping", "-n", "-q", "-c", "1", "-i", "0.2", "-w", "5", "-I", from, to.String())
	return err
}

// filters is all that packet filters of the host say, of either kind.
func filters(t *testing.T, h *lab.Host) (text string) {
	t.Helper()
	for _, command := range []string{"nft list ruleset", "iptables-legacy-save", "ip6tables-legacy-save"} {
		argv := strings.Fields(command)
		// A guest's kernel has only one kind, and the other's tool says so.
		if out, err := h.Exec(t.Context(), argv...); err == nil {
			text += out
		} else if errors.Is(err, exec.ErrNotFound) {
			t.Fatal(err)
		}
	}
	return text
}

// legacy is a PATH on which iptables is the one of the kernel's old tables, for
// a kernel whose nftables has none for IP.
func legacy(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, family := range []string{"iptables", "ip6tables"} {
		real, err := exec.LookPath(family + "-legacy")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(real, filepath.Join(dir, family)); err != nil {
			t.Fatal(err)
		}
	}
	return "PATH=" + dir + ":" + os.Getenv("PATH")
}
