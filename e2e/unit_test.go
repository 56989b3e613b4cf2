package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// TestUnit: with the capabilities of the systemd unit alone an agent does all its
// work, and it has no directive that would blind it or give it a view of its own.
func TestUnit(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "conf", "systemd", "underlayd.service"))
	if err != nil {
		t.Fatal(err)
	}
	unit := string(text)
	// Each of these makes a mount namespace, but the last, which locks sysctls.
	if bad := regexp.MustCompile(`(?m)^(Private(Mounts|Tmp|Devices|IPC)|Protect(System|Home|Proc|KernelModules|KernelLogs|ControlGroups|KernelTunables)|ProcSubset|Root\w+|\w+Paths)=.*`).FindString(unit); bad != "" {
		t.Errorf("the unit has %s", bad)
	}
	for _, want := range []string{"NoNewPrivileges=yes", "MemoryDenyWriteExecute=yes", "SystemCallArchitectures=native", "DevicePolicy=closed"} {
		if !strings.Contains(unit, "\n"+want+"\n") {
			t.Errorf("the unit has no %s", want)
		}
	}
	set := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.+)$`).FindStringSubmatch(unit)
	if set == nil {
		t.Fatal("the unit bounds no capabilities")
	}
	bounds := "-all"
	for _, name := range strings.Fields(set[1]) {
		bounds += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}

	c := newPeers(t, 2)
	c.pool(redPool)
	h1, h2 := c.hosts[0], c.hosts[1]
	h1.configure(keys{"api": keys{"group": "daemon"}})
	h1.end(syscall.SIGTERM)
	h1.mu.Lock()
	h1.cmd = exec.Command("setpriv", "--bounding-set="+bounds, "--no-new-privs", filepath.Join(ours, "underlayd"), "--config", h1.conf)
	h1.cmd.Stderr = h1.log
	err = h1.Do(h1.cmd.Start)
	h1.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	h1.ready()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(h1.cmd.Process.Pid), "status"))
	if err != nil || !regexp.MustCompile(`(?m)^CapEff:\t0{8}00`).Match(status) {
		t.Errorf("the agent has more than the set: %v\n%s", err, status)
	}
	meet(t, h1.pod("p1", nil).station, h2.pod("p2", nil).station)
	r1, r2 := h1.inSegment("red", 5001, "r1"), h2.inSegment("red", 5001, "r2")
	meet(t, r1.station, r2.station)
	mustDo(t, h1.Namespace, "ip", "link", "set", lab.Parent, "down")
	mustDo(t, h1.Namespace, "ip", "link", "set", lab.Parent, "up")
	eventually(t, "repaired", func() bool { return len(answered(t, r2.station, r1.station, soon)) == len(r1.addrs) })
}

// TestRouterAdvertisements: neither a container whose addresses come from IPAM nor the
// host's end of a pair takes any.
func TestRouterAdvertisements(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	mustDo(t, b.h1.Namespace, "sysctl", "-qw", "net.ipv6.conf.default.accept_ra=1")
	c1 := attach(t, b.h1, "c1", lan(t, b.h1, nil))
	attach(t, b.h1, "c2", pods(t, b.h1, nil))
	for _, n := range []*lab.Namespace{c1.Namespace, b.h1.Namespace} {
		said := mustDo(t, n, "sh", "-c", "cat /proc/sys/net/ipv6/conf/eth0/accept_ra /proc/sys/net/ipv6/conf/ul*/accept_ra 2>/dev/null || true")
		if strings.Join(strings.Fields(said), " ") != "0" {
			t.Errorf("accept_ra in %s: %q", n.ID, said)
		}
	}
}
