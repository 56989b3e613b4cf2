package e2e_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

var ipvlanLeaders = []leader{
	{"ipvlan l2", onLAN(keys{"type": "ipvlan"})},
	{"ipvlan l3s", onRoutes(keys{"type": "ipvlan", "mode": "l3s"})},
}

// inVRF is a plugin that no test can try on every kernel.
var inVRF = follower{name: "vrf", conf: keys{"type": "vrf", "vrfname": "red"}, promise: enslaved}

// enslaved: the interface is in the VRF, and what is bound to that reaches what
// lies behind the gateway.
func enslaved(t *testing.T, _ *scene, a *attachment) error {
	t.Helper()
	var links []struct{ Master string }
	if err := json.Unmarshal([]byte(mustDo(t, a.Namespace, "ip", "-j", "link", "show", "eth0")), &links); err != nil {
		return err
	}
	if links[0].Master != "red" {
		return fmt.Errorf("eth0 is in %q", links[0].Master)
	}
	for _, far := range farAddrs {
		if err := asks(a.Namespace, t, "red", far); err != nil {
			return err
		}
	}
	return nil
}

// TestChainsOfIpvlan and TestChainsOfIpvlanL3S are TestChains for links that not
// every kernel has.
func TestChainsOfIpvlan(t *testing.T) {
	linktest.Need(t, "ipvlan", "iptables")
	tryChainsOf(t, ipvlanLeaders[0])
}

func TestChainsOfIpvlanL3S(t *testing.T) {
	linktest.Need(t, "ipvlan", "iptables")
	tryChainsOf(t, ipvlanLeaders[1])
}

func tryChainsOf(t *testing.T, l leader) {
	t.Helper()
	for _, f := range followers {
		if strings.HasPrefix(f.name, "portmap") && f.conf["backend"] == "nftables" {
			continue // of which the guest's kernel has none for IP
		}
		t.Run(f.name, func(t *testing.T) { tryChainOf(t, l, f) })
	}
}

func TestChainsOfVRF(t *testing.T) {
	linktest.Need(t, "ipvlan", "vrf")
	for _, l := range slices.Concat(leaders, ipvlanLeaders) {
		t.Run(l.name, func(t *testing.T) { tryChainOf(t, l, inVRF) })
	}
}

// tryChainOf is for a guest, where a program takes long to start: of the two ends
// of a container, one.
func tryChainOf(t *testing.T, l leader, f follower) {
	t.Helper()
	s := newScene(t, l)
	s.env = []string{legacy(t)}
	tryChain(t, s, f, expected(l, f), true)
}
