package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam"
)

// TestSegmentRefused: what would harm others, or cannot work, is refused, names
// what is to be changed, and leaves nothing.
func TestSegmentRefused(t *testing.T) {
	t.Parallel()
	alone := func(t *testing.T, h *lab.Host) {}
	others := func(t *testing.T, h *lab.Host) { attach(t, h, "other", tenant(t, "blue", 5001, nil)) }
	ip := func(lines ...string) func(*testing.T, *lab.Host) {
		return func(t *testing.T, h *lab.Host) {
			for _, l := range lines {
				mustDo(t, h.Namespace, append([]string{"ip"}, strings.Fields(l)...)...)
			}
		}
	}
	tests := []struct {
		name   string
		before func(*testing.T, *lab.Host)
		more   keys
		code   uint
		texts  []string
	}{
		{"no master", alone, keys{"master": "nosuch0"}, codeParent, []string{"master:", "nosuch0"}},
		{"no master told", alone, keys{"master": ""}, codeParent, []string{"master: is missing", "default route"}},
		{"master is down", ip("link set eth1 down"), nil, codeParent, []string{"master:", "ip link set eth1 up"}},
		{"master has no address", ip("addr flush dev eth1"), nil, codeParent, []string{"master:", "ip addr add"}},
		{"MTU of the master", alone, keys{"mtu": 1451}, codeConfig, []string{"mtu: 1451", "1450", "1500"}},
		{"MTU of others", others, keys{"mtu": 1400}, codeConfig, []string{"mtu: 1400", "1450"}},
		{"port of others", others, keys{"port": 4789}, codeParent, []string{"vni: 5001", "8472"}},
		{"port of others, whose device is gone", func(t *testing.T, h *lab.Host) {
			others(t, h)
			ip("link delete vx5001")(t, h)
		}, keys{"port": 4789}, codeParent, []string{"vni: 5001", `"eth1"`, "8472"}},
		{"master of others", func(t *testing.T, h *lab.Host) {
			others(t, h)
			ip("link add eth2 type veth peer name far2", "link set eth2 up", "link set far2 up", "addr add 198.51.100.1/24 dev eth2")(t, h)
		}, keys{"master": "eth2"}, codeParent, []string{"vni: 5001", `"eth1"`}},
		{"device of somebody else", ip("link add vx5001 type vxlan id 9 dstport 9 dev eth1"), nil, codeParent, []string{"vni:", "somebody else", "another vni"}},
		{"VNI of somebody else's device", ip("link add theirs type vxlan id 5001 dstport 8472 dev eth1"), nil, codeParent, []string{"vni:", `"theirs"`, "8472"}},
		{"bridge of somebody else", ip("link add br5001 type bridge"), nil, codeParent, []string{"vni:", "br5001", "another vni"}},
		{"leg of somebody else", ip("link add lg5001 type veth peer name theirs"), nil, codeParent, []string{"vni:", "lg5001"}},
		{"VNI of a network", func(t *testing.T, h *lab.Host) { uplink(t, h, "pods", 5001, 1450) }, nil, codeParent, []string{"vni: 5001", `"pods"`}},
		{"second in a chain", alone, keys{"prevResult": keys{"cniVersion": "1.1.0", "interfaces": []keys{{"name": "eth1"}}}}, codeConfig, []string{"prevResult:", "first"}},
		{"results without interfaces", alone, keys{"cniVersion": "0.2.0"}, codeConfig, []string{"cniVersion:", "0.3.0"}},
		{"a VLAN", alone, keys{"vlan": 100}, codeConfig, []string{"vlan: 100", "ip link add"}},
		{"no place for the ledger", alone, keys{"dataDir": "here"}, codeConfig, []string{"dataDir"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			test.before(t, h)
			_, rt := container(t, h, "c1")
			links, records := hostLinks(t, h), len(readBooks(t, h).Attachments)
			conf, err := json.Marshal(merged(segment(5001, keys{"cniVersion": "1.1.0", "name": "red", "dataDir": h.DataDir, "runDir": h.RunDir}), test.more))
			if err != nil {
				t.Fatal(err)
			}
			_, err = call{verb: "ADD", plugin: "vxlan", rt: rt}.run(t, h, string(conf))
			wantError(t, err, test.code, test.texts...)
			if diff := cmp.Diff(links, hostLinks(t, h), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("links (-before +after):\n%s", diff)
			}
			if got := len(readBooks(t, h).Attachments); got != records {
				t.Errorf("%d on record, %d before", got, records)
			}
			_, err = call{verb: "DEL", plugin: "vxlan", rt: rt}.run(t, h, string(conf))
			wantOK(t, "DEL", err)
			if _, err := os.Stat("here"); err == nil {
				t.Error("a ledger was made where the plugin happened to run")
				os.RemoveAll("here")
			}
			if diff := cmp.Diff(links, hostLinks(t, h), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("links (-before +after DEL):\n%s", diff)
			}
		})
	}
}

// CHECK finds what somebody has done to a segment, and the next ADD mends it.
func TestSegmentCheck(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	a := attach(t, h, "c1", tenant(t, "red", 5001, nil))
	for i, test := range []struct{ harm, want string }{
		{"link set lg5001 down", `"lg5001" is down`},
		{"link set lp5001 down", `"lp5001" is down`},
		{"link set br5001 down", `"br5001"`},
		{"link set vx5001 down", `"vx5001" is down`},
		{"link set vx5001 nomaster", `"vx5001" is no port of bridge "br5001"`},
		{"link set lp5001 nomaster", `"lp5001" is no port`},
		{"link set vx5001 mtu 1400", `"vx5001" has MTU 1400, not 1450`},
		{"link set lp5001 mtu 1400", `"lp5001" has MTU 1400, not 1450`},
		{"link delete vx5001", `no device "vx5001"`},
		{"link delete br5001", "bridge"},
	} {
		wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
		mustDo(t, h.Namespace, append([]string{"ip"}, strings.Fields(test.harm)...)...)
		wantError(t, a.cni.Check(t.Context(), a.conf, a.rt), codeCheck, "5001", test.want)
		other := attach(t, h, fmt.Sprint("other", i), tenant(t, "red", 5001, nil))
		meet(t, a.station, other.station)
		other.del()
	}
	a.del()
	wantSegments(t, h)
}

// GC takes what the runtime does not know, and a segment that nobody is in.
func TestSegmentGC(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	red := tenant(t, "red", 5001, nil)
	a, b := attach(t, h, "c1", red), attach(t, h, "c2", red)
	other := attach(t, h, "c3", tenant(t, "blue", 5002, nil))
	gc := func(valid ...*attachment) {
		t.Helper()
		list := []types.GCAttachment{}
		for _, a := range valid {
			list = append(list, types.GCAttachment{ContainerID: a.ID, IfName: "eth0"})
		}
		for _, plugin := range []keys{segment(5001, nil), {"type": "macvlan", "ipam": tenantRanges}} { // in the order of the chain
			conf, err := json.Marshal(merged(plugin, keys{"cniVersion": "1.1.0", "name": "red", "dataDir": h.DataDir, "runDir": h.RunDir, "cni.dev/valid-attachments": list}))
			if err != nil {
				t.Fatal(err)
			}
			_, err = call{verb: "GC", plugin: plugin["type"].(string)}.run(t, h, string(conf))
			wantOK(t, "GC", err)
		}
	}
	gc(a, b)
	meet(t, a.station, b.station)
	gc(b)
	wantSegments(t, h, 5001, 5002)
	wantNoLink(t, a.Namespace)
	gc()
	wantSegments(t, h, 5002)
	wantNoLink(t, b.Namespace)
	if held := readBooks(t, h).held(); len(held) != 1 || len(held[other.ID]) != 2 {
		t.Errorf("held: %v", held)
	}
	// Of a segment that an agent's sweep, or a spooled release, has left without
	// users the ledger knows nothing.
	c := attach(t, h, "c4", red)
	db := filepath.Join(h.DataDir, "ledger.db")
	kept, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	damage(t, h)
	wantOK(t, "DEL", c.cni.Del(t.Context(), c.conf, c.rt))
	wantOK(t, "restore the ledger", os.WriteFile(db, kept, 0o600))
	wantSegments(t, h, 5001, 5002)
	gc()
	wantSegments(t, h, 5002)
}

// STATUS says with code 50 why an ADD would fail.
func TestSegmentStatus(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	conf := tenant(t, "red", 5001, nil)
	status := func() error { return h.CNI(ours).Status(t.Context(), conf) }
	wantOK(t, "STATUS", status())
	mustDo(t, h.Namespace, "ip", "link", "set", lab.Parent, "down")
	wantError(t, status(), codeStatus, "master", lab.Parent, "down")
	mustDo(t, h.Namespace, "ip", "link", "set", lab.Parent, "up")
	mustDo(t, h.Namespace, "ip", "addr", "flush", "dev", lab.Parent)
	wantError(t, status(), codeStatus, "master", lab.Parent, "ip addr add")
	conf = strings.Replace(conf, `"eth1"`, `"nosuch0"`, 1)
	wantError(t, status(), codeStatus, "master", "nosuch0")
}

// TestSegmentRebuild: a ledger that was lost knows again who is in which segment,
// from the links alone, so that a DEL does not take it from the others.
func TestSegmentRebuild(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	red := tenant(t, "lostred", 5001, nil)
	a, b := attach(t, h, "c1", red), attach(t, h, "c2", red)
	before := readBooks(t, h)
	wantOK(t, "lose the ledger", os.Remove(filepath.Join(h.DataDir, "ledger.db")))
	rebuild(t, h, "lostred")
	opts := cmp.Options{
		cmpopts.IgnoreFields(ipam.Netns{}, "Path"), // a namespace may have more than one
		cmpopts.IgnoreFields(ipam.AttachmentRecord{}, "Since", "Runtime", "Version", "Token"),
		cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
	}
	after := readBooks(t, h) // addresses of other namespaces of the machine are in it, too
	if diff := cmp.Diff(before.Attachments, after.Attachments, opts); diff != "" {
		t.Errorf("attachments (-before +after):\n%s", diff)
	}
	for _, x := range []*attachment{a, b} {
		wantOK(t, "CHECK of "+x.ID, x.cni.Check(t.Context(), x.conf, x.rt))
	}
	a.del()
	wantSegments(t, h, 5001)
	b.del()
	wantSegments(t, h)
	if left := readBooks(t, h).Attachments; len(left) > 0 {
		t.Errorf("left on record: %+v", left)
	}
}
