package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// routed is lan with a default route and one to a network behind a router.
func routed(t *testing.T, h *lab.Host) string {
	return lan(t, h, keys{"mtu": 1500, "ipam": json.RawMessage(`{"type": "underlay",
		"ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "rangeEnd": "192.0.2.19"}],
			[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::10", "rangeEnd": "2001:db8::19"}]],
		"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "198.51.100.0/24", "gw": "192.0.2.254"}]}`)})
}

// CHECK notices what has changed since ADD, and says what.
func TestCheckNotices(t *testing.T) {
	t.Parallel()
	inside := func(command string) func(*testing.T, *lab.Host, *attachment) {
		return func(t *testing.T, h *lab.Host, a *attachment) {
			mustDo(t, a.Namespace, strings.Fields(command)...)
		}
	}
	outside := func(command string) func(*testing.T, *lab.Host, *attachment) {
		return func(t *testing.T, h *lab.Host, a *attachment) {
			mustDo(t, h.Namespace, strings.Fields(command)...)
		}
	}
	tests := []struct {
		name   string
		change func(t *testing.T, h *lab.Host, a *attachment)
		code   uint
		texts  []string
	}{
		{"MTU", inside("ip link set eth0 mtu 1400"), codeCheck, []string{"eth0", "MTU 1400", "1500"}},
		{"IPv4 address deleted", inside("ip addr del 192.0.2.10/24 dev eth0"), codeCheck, []string{"eth0", "192.0.2.10/24"}},
		{"IPv6 address deleted", inside("ip addr del 2001:db8::10/64 dev eth0"), codeCheck, []string{"eth0", "2001:db8::10/64"}},
		{"down", inside("ip link set eth0 down"), codeCheck, []string{"eth0", "down"}},
		{"MAC", inside("ip link set eth0 address 02:00:00:00:00:99"), codeCheck, []string{"eth0", "02:00:00:00:00:99"}},
		{"mode", inside("ip link set eth0 type macvlan mode private"), codeCheck, []string{"eth0", "private", "bridge"}},
		{"own route deleted", inside("ip route del 198.51.100.0/24"), codeCheck, []string{"eth0", "198.51.100.0/24"}},
		{"gone", inside("ip link delete eth0"), codeCheck, []string{"eth0"}},
		{"of another kind", func(t *testing.T, h *lab.Host, a *attachment) {
			inside("ip link delete eth0")(t, h, a)
			inside("ip link add eth0 type bridge")(t, h, a)
		}, codeCheck, []string{"eth0", "bridge", "macvlan"}},
		{"parent down", outside("ip link set eth1 down"), codeParent, []string{"master", "eth1", "down"}},
		{"parent gone", outside("ip link delete eth1"), codeParent, []string{"master", "eth1"}},
		{"another parent by now", func(t *testing.T, h *lab.Host, a *attachment) {
			outside("ip link add br1 up type bridge")(t, h, a)
			a.conf = strings.Replace(a.conf, lab.Parent, "br1", 1)
		}, codeCheck, []string{"eth0", "br1"}},
		{"netns gone", func(t *testing.T, h *lab.Host, a *attachment) {
			outside("ip netns delete "+a.ID)(t, h, a)
		}, codeEnvironment, []string{"CNI_NETNS"}},
		{"ledger record missing", func(t *testing.T, h *lab.Host, a *attachment) {
			steal(t, h, a, "")
		}, codeCheck, []string{"ledger", "c1/eth0"}},
		{"ledger record stolen", func(t *testing.T, h *lab.Host, a *attachment) {
			steal(t, h, a, "thief")
		}, codeCheck, []string{"ledger", "192.0.2.10"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			a := attach(t, h, "c1", routed(t, h))
			wantOK(t, "CHECK before", a.cni.Check(t.Context(), a.conf, a.rt))
			test.change(t, h, a)
			wantError(t, a.cni.Check(t.Context(), a.conf, a.rt), test.code, test.texts...)
		})
	}
}

// steal takes the attachment's addresses away in the ledger, and gives them to
// the thief, unless that is empty.
func steal(t *testing.T, h *lab.Host, a *attachment, thief string) {
	t.Helper()
	l, err := ledger.Open(t.Context(), ledger.Options{DataDir: h.DataDir, RunDir: h.RunDir})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pools, err := l.Pools()
	if err != nil || len(pools) != 1 {
		t.Fatalf("pools %v, error %v", pools, err)
	}
	victim := ipam.Attachment{Network: "lan", ContainerID: a.ID, IfName: "eth0"}
	if _, err := l.Release(ipam.ReleaseRequest{Attachment: victim, Undo: true}); err != nil {
		t.Fatal(err)
	}
	if thief == "" {
		return
	}
	by := ipam.Attachment{Network: "lan", ContainerID: thief, IfName: "eth0"}
	if _, err := l.Allocate(ipam.AllocateRequest{Attachment: by, Pool: pools[0], Addresses: a.addrs}, nil); err != nil {
		t.Fatal(err)
	}
	// The victim keeps a record, of other addresses.
	if _, err := l.Allocate(ipam.AllocateRequest{Attachment: victim, Pool: pools[0]}, nil); err != nil {
		t.Fatal(err)
	}
}

// CHECK tolerates what later plugins in the chain, Multus and people change.
func TestCheckIgnores(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	a := attach(t, h, "c1", routed(t, h))
	for _, command := range []string{
		"ip route replace default via 192.0.2.253 dev eth0",
		"ip route del default",
		"ip -6 route del default",
		"ip link add net1 up type bridge",
		"ip route add default dev net1",
		"ip addr add 203.0.113.1/24 dev eth0",
		"ip route add 203.0.113.128/25 via 192.0.2.254",
		"ip link set eth0 promisc on",
	} {
		mustDo(t, a.Namespace, strings.Fields(command)...)
		wantOK(t, "CHECK after "+command, a.cni.Check(t.Context(), a.conf, a.rt))
	}
}

// An address that somebody else on the wire has is not the container's.
func TestCheckNoticesDuplicate(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a := attach(t, b.h1, "c1", lan(t, b.h1, nil))
	mustDo(t, b.h2.Namespace, "ip", "addr", "add", a.addrs[1].String()+"/64", "dev", lab.Parent, "nodad")
	mustDo(t, a.Namespace, "ip", "addr", "del", a.addrs[1].String()+"/64", "dev", "eth0")
	mustDo(t, a.Namespace, "ip", "addr", "add", a.addrs[1].String()+"/64", "dev", "eth0")
	eventually(t, "the kernel sees the duplicate", func() bool {
		return strings.Contains(mustDo(t, a.Namespace, "ip", "addr", "show", "dev", "eth0"), "dadfailed")
	})
	wantError(t, a.cni.Check(t.Context(), a.conf, a.rt), codeCheck, a.addrs[1].String(), "DAD")
}

// CHECK without the result of the ADD is told what is missing.
func TestCheckNeedsPrevResult(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	a := attach(t, h, "c1", lan(t, h, nil))
	_, err := call{verb: "CHECK", rt: a.rt}.run(t, h, placed(t, h, nil))
	wantError(t, err, codeConfig, "prevResult")
	_, err = call{verb: "CHECK", rt: a.rt}.run(t, h, placed(t, h, keys{"prevResult": keys{"cniVersion": "1.1.0"}}))
	wantError(t, err, codeCheck, "prevResult", "eth0")
}

// eventually waits for what the kernel or a program does in its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	const patience = time.Minute
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v: %s", patience, what)
		}
	}
}
