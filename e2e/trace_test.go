package e2e_test

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestTrace: underlayctl says by which way packets go, and where that is not as
// the networks want it.
func TestTrace(t *testing.T) {
	t.Parallel()
	c := newPeers(t, 2)
	h1, h2 := c.hosts[0], c.hosts[1]
	a, b := h1.pod("a", nil), h2.pod("b", nil)
	m := attach(t, h1.Host, "m", lan(t, h1.Host, nil))
	// A route is in the kernel a little before the agent can tell of it.
	routed := func() {
		t.Helper()
		h1.routesTo("192.0.2.2", "2001:db8::2")
		eventually(t, "h1 tells how it reaches its peer", func() bool {
			return strings.Contains(h1.fetch("/v1/peers"), `"direct"`)
		})
	}
	routed()
	trace := func(from, to string, want ...string) {
		t.Helper()
		out, err := h1.Exec(t.Context(), filepath.Join(ours, "underlayctl"), "--data-dir", h1.DataDir, "--run-dir", h1.RunDir, "trace", from, to)
		said := out
		if err != nil {
			said += err.Error()
		}
		if wantErr := strings.HasPrefix(want[0], "!"); (err != nil) != wantErr {
			t.Errorf("trace %s %s: %v\n%s", from, to, err, out)
		}
		for _, w := range want {
			if w = strings.TrimPrefix(w, "!"); !strings.Contains(said, w) {
				t.Errorf("trace %s %s has no %q:\n%s", from, to, w, said)
			}
		}
	}
	trace(a.addrs[0].String(), b.addrs[0].String(), "h1: this host's routes", "peer h2, via 192.0.2.2 dev eth1, network pods")
	trace(a.addrs[1].String(), b.addrs[1].String(), "peer h2, via 2001:db8::2 dev eth1, network pods")
	trace(a.addrs[0].String(), "192.0.2.1", "this host has 192.0.2.1")
	trace("192.0.2.1", a.addrs[0].String(), "container "+a.rt.ContainerID)
	trace(a.addrs[0].String(), a.addrs[0].Next().Next().Next().String(), "!no container has it")
	trace(m.addrs[0].String(), "192.0.2.1", "!hostAccess")
	trace(b.addrs[0].String(), a.addrs[0].String(), "!is an address of node h2: run this there")
	trace("10.5.0", "192.0.2.1", "!FROM: \"10.5.0\" is not an IP address")

	// Nobody answers for the other host any more: the kernel loses patience.
	h2.cut(true)
	mustDo(t, h1.Namespace, "ip", "neigh", "flush", "dev", "eth1")
	eventually(t, "the neighbour is given up", func() bool {
		_, _ = h1.Exec(t.Context(), "ping", "-c1", "-W1", "-I", "192.0.2.1", "192.0.2.2")
		out, _ := h1.Exec(t.Context(), "ip", "neigh", "show", "192.0.2.2", "dev", "eth1")
		return strings.Contains(out, "FAILED")
	})
	trace(a.addrs[0].String(), "192.0.2.2", "!nobody answers at 192.0.2.2 on eth1: the neighbour's entry there is FAILED")
	h2.cut(false)
	eventually(t, "the neighbour is back", func() bool {
		_, err := h1.Exec(t.Context(), "ping", "-c1", "-W1", "-I", "192.0.2.1", "192.0.2.2")
		return err == nil
	})
	routed()

	// The agent holds still while somebody deletes a route.
	h1.cmd.Process.Signal(syscall.SIGSTOP)
	for _, r := range h1.peerRoutes(4) {
		mustDo(t, h1.Namespace, "ip", "route", "del", strings.Fields(r)[0], "proto", "141")
	}
	h1.end(syscall.SIGKILL)
	trace(a.addrs[0].String(), b.addrs[0].String(), "!no route to "+b.addrs[0].String(), "unknown: ")
	c.start()
	routed()
	trace(a.addrs[0].String(), b.addrs[0].String(), "peer h2")
}
