package linktest_test

import (
	"os/exec"
	"testing"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// One of the two kernels has them all, whatever the probe says.
func TestNeed(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "dummy", "ipvlan", "iptables", "vlan", "vrf")
	const all = `ip link add dummy1 type dummy && ip link add link dummy1 name child type ipvlan mode l3s &&
		ip link add link dummy1 name dummy1.5 type vlan id 5 && ip link add red type vrf table 5 &&
		iptables-legacy -t nat -A POSTROUTING -j MASQUERADE && iptables-legacy -A FORWARD -j ACCEPT`
	if out, err := exec.CommandContext(t.Context(), "unshare", "--net", "sh", "-c", all).CombinedOutput(); err != nil {
		t.Errorf("%v, %s", err, out)
	}
}
