package nft

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// space is a namespace that nothing but its handle keeps.
type space struct{ ns *netns.NS }

func newSpace(t testing.TB) space {
	t.Helper()
	n := netnstest.New(t)
	return space{n}
}

// sh runs a script in the namespace and returns what it prints.
func (h space) sh(t testing.TB, script string) string {
	t.Helper()
	return netnstest.Run(t, h.ns, "sh", "-ec", script)
}

func (h space) shows(t testing.TB) string {
	t.Helper()
	return h.sh(t, "nft list table inet underlay 2>/dev/null || true")
}

func (h space) reconciler(t testing.TB, cfg Config) *Reconciler {
	t.Helper()
	cfg.Netns = h.ns
	r, err := New(cfg)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

// run keeps the table until the test ends.
func run(t testing.TB, r *Reconciler) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
}

func prefixes(list string) (out []netip.Prefix) {
	for _, s := range strings.Fields(list) {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list string) (out []netip.Addr) {
	for _, s := range strings.Fields(list) {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// waitFor fails the test if it takes long.
func waitFor(t testing.TB, what string, there func() bool) {
	t.Helper()
	for start := time.Now(); !there(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("waited too long for %s", what)
		}
	}
}
