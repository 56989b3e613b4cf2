package e2e_test

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/e2e/lab"
)

// An ADD does two things at a time. Here the race detector watches the ways
// that it can go; what it finds ends the plugin before that has said anything.
func TestRaces(t *testing.T) {
	t.Parallel()
	watched := t.TempDir()
	if err := binaries.Ours(t.Context(), watched, "RACE=1"); err != nil {
		t.Fatal(err)
	}
	cni := func(h *lab.Host) *lab.CNI {
		c := h.CNI(watched, reference)
		c.Env = []string{"GORACE=halt_on_error=1"}
		return c
	}
	detached := func(t *testing.T, h *lab.Host, name string, more keys) *attachment {
		a := &attachment{t: t, cni: cni(h), conf: lan(t, h, more)}
		a.Namespace, a.rt = container(t, h, name)
		return a
	}
	good := map[string]keys{
		"plain": nil, "hostAccess": {"hostAccess": true}, "passthru": {"mode": "passthru"}, "fixed MAC": {"mac": "02:00:00:00:00:07"},
	}
	for name, conf := range good {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := detached(t, oneHost(t), "c1", conf)
			a.add()
			a.add()
			wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
			a.del()
		})
	}
	t.Run("conflicts", func(t *testing.T) {
		t.Parallel()
		b := newBed(t)
		holds("192.0.2.10/24", "2001:db8::11/64")(t, b)
		a := detached(t, b.h1, "c1", nil)
		a.add()
		a.del()
	})
	t.Run("fails late", func(t *testing.T) {
		t.Parallel()
		h := oneHost(t)
		a := detached(t, h, "c1", keys{"ipam": json.RawMessage(`{"type": "underlay", "subnet": "192.0.2.0/24", "routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]}`)})
		_, err := a.cni.Add(t.Context(), a.conf, a.rt)
		wantError(t, err, codeConfig, "203.0.113.1")
		wantNoLink(t, a.Namespace)
		wantNothingHeld(t, h)
	})
	t.Run("fails early", func(t *testing.T) {
		t.Parallel()
		h := oneHost(t)
		a := detached(t, h, "c1", nil)
		mustDo(t, a.Namespace, "ip", "link", "add", "eth0", "type", "bridge")
		_, err := a.cni.Add(t.Context(), a.conf, a.rt)
		wantError(t, err, codeLink, "eth0")
		wantNothingHeld(t, h)
	})
	t.Run("many interfaces at once", func(t *testing.T) {
		t.Parallel()
		h := oneHost(t)
		a := detached(t, h, "c1", nil)
		var all sync.WaitGroup
		for i := range 8 {
			rt := *a.rt
			rt.IfName = fmt.Sprintf("net%d", i)
			all.Go(func() {
				if _, err := a.cni.Add(t.Context(), a.conf, &rt); err != nil {
					t.Errorf("ADD %s: %v", rt.IfName, err)
				}
			})
		}
		all.Wait()
		if n := len(readBooks(t, h).held()[a.ID]); n != 16 {
			t.Errorf("%d addresses are held, want 16", n)
		}
	})
}
