package e2e_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// portOf is the mode and flag that an ipvlan link has now.
func portOf(t *testing.T, n *lab.Namespace) string {
	t.Helper()
	fields := strings.Fields(mustDo(t, n, "ip", "-d", "-o", "link", "show", "dev", "eth0"))
	for i, f := range fields {
		if f == "mode" && i > 0 && fields[i-1] == "ipvlan" {
			return fields[i+1] + " " + fields[i+2]
		}
	}
	t.Fatalf("%s has no ipvlan: %q", n.ID, fields)
	return ""
}

func wantPort(t *testing.T, n *lab.Namespace, want string) {
	t.Helper()
	if got := portOf(t, n); got != want {
		t.Errorf("%s has become %q, was %q", n.ID, got, want)
	}
}

// Many that are refused do not vouch for each other.
func TestIpvlanCrowdOfRivals(t *testing.T) {
	linktest.Need(t, "ipvlan")
	h := oneHost(t)
	c1 := attach(t, h, "c1", ipvlan(t, h, "l3", "bridge", nil))
	conf := ipvlan(t, h, "l2", "bridge", keys{"name": "other", "ipam": keys{}})
	var all sync.WaitGroup
	for i := range 12 {
		n, rt := container(t, h, fmt.Sprintf("rival%d", i))
		all.Go(func() {
			if _, err := h.CNI(ours).Add(t.Context(), conf, rt); err == nil {
				t.Errorf("%s got its way", n.ID)
			}
		})
	}
	all.Wait()
	wantPort(t, c1.Namespace, "l3 bridge")
}

// A record that has outlived its container does not vouch either, be it for
// links of ours or for somebody else's.
func TestIpvlanStalePeer(t *testing.T) {
	linktest.Need(t, "ipvlan")
	h := oneHost(t)
	l2, l3 := ipvlan(t, h, "l2", "bridge", nil), ipvlan(t, h, "l3", "bridge", nil)
	dead := attach(t, h, "dead", l2)
	mustDo(t, h.Namespace, "ip", "netns", "delete", dead.ID)
	c1 := attach(t, h, "c1", l3)
	denied(t, h, "c2", l2, codeParent, "ipvlan mode l3", c1.ID)
	wantPort(t, c1.Namespace, "l3 bridge")
}

// Access from the host is made after the look at who else is there.
func TestIpvlanHostAccessComesSecond(t *testing.T) {
	linktest.Need(t, "ipvlan")
	h := oneHost(t)
	c1 := attach(t, h, "c1", ipvlan(t, h, "l2", "bridge", nil))
	denied(t, h, "c2", ipvlan(t, h, "l3", "bridge", keys{"hostAccess": true}), codeParent, "ipvlan mode l2", c1.ID)
	wantPort(t, c1.Namespace, "l2 bridge")
}

// An attachment is not in its own way: an ADD that is repeated with another mode
// takes the place of the first one, or, where others object, leaves nothing.
func TestIpvlanChangesItsMode(t *testing.T) {
	linktest.Need(t, "ipvlan")
	h := oneHost(t)
	l2, l3 := ipvlan(t, h, "l2", "bridge", nil), ipvlan(t, h, "l3", "bridge", nil)
	c1 := attach(t, h, "c1", l2)
	c1.conf = l3
	c1.add()
	wantPort(t, c1.Namespace, "l3 bridge")
	attach(t, h, "c2", l3)
	if _, err := c1.cni.Add(t.Context(), l2, c1.rt); err == nil {
		t.Error("c1 changes the mode of c2")
	}
	wantNoLink(t, c1.Namespace)
	wantOK(t, "DEL", c1.cni.Del(t.Context(), l2, c1.rt))
}

// STATUS knows no prevResult, so a network whose addresses come from there is
// ready.
func TestIpvlanChainedStatus(t *testing.T) {
	linktest.Need(t, "ipvlan")
	h := oneHost(t)
	conf := ipvlan(t, h, "l3", "bridge", keys{"ipam": keys{}})
	wantOK(t, "STATUS", h.CNI(ours).Status(t.Context(), conf))
}
