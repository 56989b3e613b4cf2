package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// TestOverlayChange: a network that gets another backend, VNI or port, and a host
// that gets another address, keep what is connected, on hosts that are strict
// about where packets come from, and leave nothing of what was.
func TestOverlayChange(t *testing.T) {
	t.Parallel()
	const plain = `{"version": 1, "name": "pods", "pool": "pods", "backend": "vxlan", "vni": 7}`
	c := newOverlay(t, 2, 0, plain)
	h1, h2 := c.hosts[0], c.hosts[1]
	for _, h := range c.hosts {
		mustDo(t, h.Namespace, "sysctl", "-w", "net.ipv4.conf."+lab.Parent+".rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
	}
	a, b := h1.overlaid("a", nil), h2.overlaid("b", nil)
	say := conversation(t, a.station, b.station)
	devices := func(m *member) (out []string) {
		for _, l := range hostLinks(t, m.Host) {
			if strings.HasPrefix(l.Name, "vx") {
				out = append(out, l.Name)
			}
		}
		return out
	}
	say("at first")
	for _, step := range []struct{ what, object, way, device string }{
		{"without VXLAN", strings.Replace(plain, `"vxlan", "vni": 7`, `"hostgw"`, 1), "direct", ""},
		{"with it again", plain, "vxlan", "vx7"},
		{"another VNI", strings.Replace(plain, "7", "9", 1), "vxlan", "vx9"},
		{"another port", strings.Replace(plain, `"vni": 7`, `"vni": 9, "port": 4789`, 1), "vxlan", "vx9"},
	} {
		file := filepath.Join(t.TempDir(), "network.json")
		if err := os.WriteFile(file, []byte(step.object), 0o600); err != nil {
			t.Fatal(err)
		}
		ctl(t, h1.Host, "network", "update", file)
		h1.awaitWays(map[string]string{"h2": step.way})
		h2.awaitWays(map[string]string{"h1": step.way})
		say(step.what)
		want := strings.Fields(step.device)
		for _, m := range c.hosts {
			eventually(t, step.what+": the devices of "+m.Name, func() bool { return slices.Equal(devices(m), want) })
		}
		meet(t, a.station, b.station)
	}
	mustDo(t, h2.Namespace, "sysctl", "-w", "net.ipv4.conf."+lab.Parent+".promote_secondaries=1")
	mustDo(t, h2.Namespace, "ip", "addr", "add", "192.0.2.22/24", "dev", lab.Parent)
	mustDo(t, h2.Namespace, "ip", "addr", "del", "192.0.2.2/24", "dev", lab.Parent)
	eventually(t, "h1 goes to the other address", func() bool {
		fdb, _ := h1.Exec(t.Context(), "bridge", "fdb", "show", "dev", "vx9") // it may be made anew at this moment
		return strings.Contains(fdb, "192.0.2.22 ") && !strings.Contains(fdb, "192.0.2.2 ")
	})
	say("another address")
	meet(t, a.station, b.station)
}
