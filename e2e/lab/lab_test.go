package lab

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	soon   = 10 * time.Second // for what is to happen, on a busy machine
	enough = time.Second      // for what is not
)

func TestHosts(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := Test(t)
	h1 := host(t, l, "h1", "192.0.2.1/24", "2001:db8::1/64")
	h2 := host(t, l, "h2", "192.0.2.2/24", "2001:db8::2/64")

	for _, h := range []*Host{h1, h2} {
		link, ok, err := h.Link(ctx, Parent)
		if err != nil || !ok {
			t.Fatalf("%s on %s: found %v, error %v", Parent, h.ID, ok, err)
		}
		if link.Kind != "veth" || !link.Up || link.MAC == "" {
			t.Errorf("%s on %s: %+v", Parent, h.ID, link)
		}
	}
	tests := []struct {
		name, addr string
		wait       time.Duration
		want       bool
	}{
		{"the other host", "192.0.2.2", soon, true},
		{"the other host, IPv6", "2001:db8::2", soon, true},
		{"itself", "192.0.2.1", soon, true},
		{"nobody", "192.0.2.3", enough, false},
		{"nobody, IPv6", "2001:db8::3", enough, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := h1.Ping(ctx, netip.MustParseAddr(tt.addr), tt.wait)
			if err != nil || got != tt.want {
				t.Errorf("ping %s: %v, error %v, want %v", tt.addr, got, err, tt.want)
			}
		})
	}
	t.Run("no route", func(t *testing.T) {
		if _, err := h1.Ping(ctx, netip.MustParseAddr("198.51.100.1"), enough); err == nil {
			t.Error("no error")
		}
	})
}

func TestContainer(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	h := host(t, Test(t), "h1")
	c, err := h.AddContainer(ctx, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if want := h.ID + "-c1"; c.ID != want {
		t.Errorf("container %q, want %q", c.ID, want)
	}
	links, err := c.Links(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []Link{{
		Name: "lo", MAC: "00:00:00:00:00:00", MTU: 65536, Up: true,
		Addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("::1/128")},
	}}
	if diff := cmp.Diff(want, links, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("links (-want +got):\n%s", diff)
	}
	if _, err := h.AddContainer(ctx, "c1"); err == nil {
		t.Error("a second c1: no error")
	}
	if err := c.Remove(ctx); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(c.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("namespace after Remove: %v", err)
	}
}

func TestExec(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	h := host(t, Test(t), "h1")
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	there, err := h.Exec(ctx, "readlink", "/proc/self/ns/net")
	if err != nil || strings.TrimSpace(there) == here {
		t.Errorf("a process of the host is in %s, error %v; this one is in %s", there, err, here)
	}
	if _, err := h.Exec(ctx, "ip", "link", "show", "nic0"); err == nil || !strings.Contains(err.Error(), `"nic0" does not exist`) {
		t.Errorf("error %v does not carry the complaint", err)
	}
}

// The switch sends a broadcast back to the port it came from only when that
// port is reflective.
func TestHairpin(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := Test(t)
	h1 := host(t, l, "h1", "192.0.2.1/24")
	host(t, l, "h2", "192.0.2.2/24")

	for _, on := range []bool{false, true, false} {
		if err := h1.Hairpin(ctx, on); err != nil {
			t.Fatal(err)
		}
		capture, err := h1.Capture(ctx, Parent)
		if err != nil {
			t.Fatal(err)
		}
		// The reply proves that the request was on the wire, and comes after
		// what the switch reflects.
		if _, err := h1.Exec(ctx, "ip", "neigh", "flush", "dev", Parent); err != nil {
			t.Fatal(err)
		}
		if ok, err := h1.Ping(ctx, netip.MustParseAddr("192.0.2.2"), soon); !ok {
			t.Fatalf("no answer: %v", err)
		}
		reflected := slices.ContainsFunc(capture.Close(), func(f Frame) bool {
			return !f.Outgoing && strings.HasSuffix(f.String(), "arp who-has 192.0.2.2 tell 192.0.2.1")
		})
		if reflected != on {
			t.Errorf("hairpin %v: reflected %v", on, reflected)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := Test(t)
	host(t, l, "h1")
	if _, err := New(ctx, l.Name); err == nil {
		t.Error("a second lab of the same name: no error")
	}
	if _, err := l.AddHost(ctx, "h1"); err == nil {
		t.Error("a second h1: no error")
	}
	host(t, l, "type") // a word of ip's own
	if _, err := l.AddHost(ctx, "switch"); err == nil {
		t.Error("a host named switch: no error")
	}
	for _, name := range []string{"", "a-b", "../x", "A", "a234567890123456", "*"} {
		if _, err := New(ctx, name); err == nil {
			t.Errorf("lab %q: no error", name)
		}
		if err := Remove(name); err == nil {
			t.Errorf("remove lab %q: no error", name)
		}
		if _, err := l.AddHost(ctx, name); err == nil {
			t.Errorf("host %q: no error", name)
		}
	}
}

// What is left after Close is nothing, whatever lives in the namespaces.
func TestClose(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := Test(t)
	h := host(t, l, "h1", "192.0.2.1/24")
	c, err := h.AddContainer(ctx, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(h.DataDir, "net"), 0o700); err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("sleep", "infinity")
	if err := c.Do(sleeper.Start); err != nil {
		t.Fatal(err)
	}
	if there, err := namespaces(l.Name); err != nil || len(there) != 3 {
		t.Fatalf("namespaces %v, error %v, want three", there, err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if there, err := namespaces(l.Name); err != nil || len(there) != 0 {
			t.Errorf("namespaces left: %v, error %v", there, err)
		}
		if _, err := os.Stat(folder(l.Name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("folder left: %v", err)
		}
	}
	err = sleeper.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the process in the container ended with %v, want killed", err)
	}
}

// host adds a host or ends the test.
func host(t *testing.T, l *Lab, name string, addrs ...string) *Host {
	t.Helper()
	var prefixes []netip.Prefix
	for _, addr := range addrs {
		prefixes = append(prefixes, netip.MustParsePrefix(addr))
	}
	h, err := l.AddHost(t.Context(), name, prefixes...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// A host that is started again is on the switch with its addresses, without its
// containers and what is only there while it runs.
func TestReboot(t *testing.T) {
	t.Parallel()
	l := Test(t)
	h1 := host(t, l, "h1", "192.0.2.1/24")
	h2 := host(t, l, "h2", "192.0.2.2/24")
	if _, err := h1.AddContainer(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{h1.DataDir, h1.RunDir} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := h1.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := namespaces(h1.ID); len(left) > 0 || err != nil {
		t.Errorf("containers: %v, %v", left, err)
	}
	if _, err := os.Stat(h1.RunDir); !os.IsNotExist(err) {
		t.Errorf("RunDir is left: %v", err)
	}
	if _, err := os.Stat(h1.DataDir); err != nil {
		t.Error(err)
	}
	if ok, err := h2.Ping(t.Context(), netip.MustParseAddr("192.0.2.1"), 10*time.Second); !ok || err != nil {
		t.Errorf("it does not answer: %v", err)
	}
}
