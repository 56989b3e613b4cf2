package e2e_test

import (
	"encoding/binary"
	"encoding/json"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
)

const overlayNetwork = `{"version": 1, "name": "pods", "pool": "pods", "backend": "vxlan", "vni": 7, "directRouting": true}`

// newOverlay is a cluster whose last hosts, as many as far says, are on a segment
// of their own behind a router.
func newOverlay(t *testing.T, hosts, far int, network string) *cluster {
	t.Helper()
	routed := false
	c := newCluster(t, hosts, func(m *member) {
		if !routed {
			if err := m.lab.AddRouter(t.Context()); err != nil {
				t.Fatal(err)
			}
			routed = true
		}
		if n := m.number(); int(n) > hosts-far {
			m.move(true)
		} else {
			m.move(false)
		}
		m.configure(keys{"parents": keys{"lan": keys{"name": lab.Parent}}})
	})
	c.pool(podPool)
	c.network(network)
	return c
}

// number of the host, by which it is named and addressed.
func (m *member) number() byte { return m.Name[1] - '0' }

// move plugs the host into the far switch, or into the near one.
func (m *member) move(far bool) {
	m.t.Helper()
	to := lab.Near
	if far {
		to = lab.Far
	}
	if err := m.Move(m.t.Context(), to, m.number()); err != nil {
		m.t.Fatal(err)
	}
}

// overlaid attaches a container to the routed network, behind which is VXLAN.
func (m *member) overlaid(name string, more keys) *attachment {
	m.t.Helper()
	place := keys{"dataDir": m.DataDir, "runDir": m.RunDir}
	conf, err := json.Marshal(keys{"cniVersion": "1.1.0", "name": "pods", "plugins": []keys{
		merged(merged(keys{"type": "hostgw", "master": lab.Parent, "ipam": json.RawMessage(`{"type": "underlay", "pool": "pods"}`)}, place), more),
		merged(keys{"type": "vxlan", "mode": "routed"}, place),
	}})
	if err != nil {
		m.t.Fatal(err)
	}
	return attach(m.t, m.Host, name, string(conf))
}

// ways are how the host reaches its peers, by name: both families the same way.
func (m *member) ways() map[string]string {
	m.t.Helper()
	peers, err := m.api.Peers(m.t.Context(), "pods")
	if err != nil {
		m.t.Fatal(err)
	}
	out := map[string]string{}
	for _, p := range peers {
		way := string(p.State)
		if before, known := out[p.Name]; known && before != way {
			way = before + ", " + way
		}
		out[p.Name] = way
	}
	return out
}

// awaitWays waits until the host reaches its peers so.
func (m *member) awaitWays(want map[string]string) {
	m.t.Helper()
	text, _ := json.Marshal(want)
	began := time.Now()
	eventually(m.t, m.Name+" reaches "+string(text), func() bool {
		got, _ := json.Marshal(m.ways())
		return string(got) == string(text)
	})
	m.t.Logf("%s reaches %s: after %s", m.Name, text, time.Since(began).Round(time.Millisecond))
}

// isVXLAN reports whether a frame is UDP to the port.
func isVXLAN(f lab.Frame) bool {
	b := f.Payload()
	switch {
	case f.Type() == 0x0800 && len(b) > 23 && b[9] == 17:
		return binary.BigEndian.Uint16(b[22:]) == 8472
	case f.Type() == 0x86dd && len(b) > 43 && b[6] == 17:
		return binary.BigEndian.Uint16(b[42:]) == 8472
	}
	return false
}

// carried has two containers meet, and counts the frames with VXLAN at a host's
// port meanwhile.
func (m *member) carried(a, b station) (frames int) {
	m.t.Helper()
	capture, err := m.lab.Switch.Capture(m.t.Context(), m.Name)
	if err != nil {
		m.t.Fatal(err)
	}
	meet(m.t, a, b)
	for _, f := range capture.Close() {
		if isVXLAN(f) {
			frames++
		}
	}
	return frames
}
