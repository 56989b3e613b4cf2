package e2e_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// An agent that is killed between the steps of lending a block has lent it once
// when it comes again, and says so in the file; no container gets an address of it.
func TestSubnetFileKilled(t *testing.T) {
	t.Parallel()
	c := newPeers(t, 2)
	m := c.hosts[1]
	m.end(syscall.SIGTERM)
	for _, point := range []string{"leases.lent", "leases.noted"} {
		path := filepath.Join(t.TempDir(), "subnet.env")
		m.configure(keys{"networks": []string{"pods"}, "subnetFile": path})
		m.start(faulty(t), "UNDERLAY_FAULT="+point)
		m.end(0) // it dies by itself
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: the file is there already", point)
		}
		m.start(ours)
		m.ready()
		env := map[string]string{}
		eventually(t, "a subnet file", func() bool {
			text, _ := os.ReadFile(path)
			for line := range strings.Lines(string(text)) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				env[key] = value
			}
			return env["FLANNEL_IPMASQ"] != ""
		})
		var all []api.Lease
		if err := json.Unmarshal([]byte(ctl(t, m.Host, "-o", "json", "lease", "list", "--node", m.Name)), &all); err != nil {
			t.Fatal(err)
		}
		lent := map[string]bool{}
		for _, l := range all {
			if l.Lent == path {
				lent[l.CIDR.String()] = true
			}
		}
		four, six := netip.MustParsePrefix(env["FLANNEL_SUBNET"]), netip.MustParsePrefix(env["FLANNEL_IPV6_SUBNET"])
		if len(lent) != 2 || !lent[four.Masked().String()] || !lent[six.Masked().String()] {
			t.Errorf("%s: lent are %v, and the file says %v", point, lent, env)
		}
		pod := m.pod("c"+point[7:], nil)
		if four.Contains(pod.addrs[0]) || six.Contains(pod.addrs[1]) {
			t.Errorf("%s: a container has %v", point, pod.addrs)
		}
		pod.del()
		m.end(syscall.SIGKILL)
		wantSoundLedger(t, m.Host)
	}
}
