package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// TestSegmentFiltered: where the host's rules see what is bridged (br_netfilter,
// as with Docker and Kubernetes), a policy that drops what is forwarded cuts a
// segment at the host, and the commands of the README mend it.
func TestSegmentFiltered(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a1 := attach(t, b.h1, "c1", tenant(t, "red", 5001, nil))
	a2 := attach(t, b.h2, "c2", tenant(t, "red", 5001, keys{"ipam": otherTenantRanges}))
	for from, to := range map[*lab.Host]string{b.h1: "192.0.2.2", b.h2: "192.0.2.1"} { // as an agent does
		mustDo(t, from.Namespace, "bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "vx5001", "dst", to)
	}
	meet(t, a1.station, a2.station)
	mustDo(t, b.h1.Namespace, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1")
	meet(t, a1.station, a2.station)
	readme, err := os.ReadFile(filepath.Join("..", "plugins", "vxlan", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"iptables", "ip6tables"} {
		mustDo(t, b.h1.Namespace, program, "-P", "FORWARD", "DROP")
	}
	apart(t, a1.station, a2.station)
	for _, program := range []string{"iptables", "ip6tables"} {
		remedy := program + " -I FORWARD -i br5001 -o br5001 -j ACCEPT"
		if !strings.Contains(string(readme), "`"+remedy+"`") {
			t.Errorf("the README does not say %q", remedy)
		}
		mustDo(t, b.h1.Namespace, strings.Fields(remedy)...)
	}
	meet(t, a1.station, a2.station)
}
