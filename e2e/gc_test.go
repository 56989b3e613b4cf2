package e2e_test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// absent stands for a key that is not there.
const absent = ""

// GC as a runtime sends it that has no cache: libcni's own sends a DEL for all
// that it remembers first.
func TestGC(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		valid string // cni.dev/valid-attachments; ID1 and ID2 stand for c1 and c2
		code  uint   // 0 means that GC succeeds
		texts []string
		stay  []string
	}{
		{name: "absent", valid: absent, code: codeConfig, texts: []string{"cni.dev/valid-attachments", "missing"}, stay: []string{"c1", "c2"}},
		{name: "null", valid: `null`},
		{name: "empty", valid: `[]`},
		{name: "partial", valid: `[{"containerID": "ID1", "ifname": "eth0"}]`, stay: []string{"c1"}},
		{name: "another interface", valid: `[{"containerID": "ID1", "ifname": "eth1"}, {"containerID": "ID2", "ifname": "eth0"}]`, stay: []string{"c2"}},
		{name: "all", valid: `[{"containerID": "ID1", "ifname": "eth0"}, {"containerID": "ID2", "ifname": "eth0"}, {"containerID": "other", "ifname": "eth0"}]`,
			stay: []string{"c1", "c2"}},
		{name: "no list", valid: `"none"`, code: codeDecode, texts: []string{"cni.dev/valid-attachments"}, stay: []string{"c1", "c2"}},
		{name: "half an attachment", valid: `[{"containerID": "ID1"}]`, code: codeConfig,
			texts: []string{"cni.dev/valid-attachments[0]", "ifname"}, stay: []string{"c1", "c2"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			mine := map[string]*attachment{
				"c1": attach(t, h, "c1", lan(t, h, nil)),
				"c2": attach(t, h, "c2", lan(t, h, nil)),
			}
			// Neither another network's attachments nor another runtime's are ours to collect.
			foreign, stranger := attach(t, h, "c3", otherNetwork(t, h)), attachThroughShell(t, h, "c4")
			before := stateOf(t, h, mine["c1"].Namespace, mine["c2"].Namespace, foreign.Namespace, stranger)

			conf := keys{}
			if test.valid != absent {
				conf["cni.dev/valid-attachments"] = named(test.valid, mine["c1"].ID, mine["c2"].ID)
			}
			_, err := call{verb: "GC"}.run(t, h, placed(t, h, conf))
			if test.code != 0 {
				wantError(t, err, test.code, test.texts...)
				wantState(t, before, stateOf(t, h, mine["c1"].Namespace, mine["c2"].Namespace, foreign.Namespace, stranger))
				return
			}
			wantOK(t, "GC", err)
			held := readBooks(t, h).held()
			for name, a := range mine {
				stays := slices.Contains(test.stay, name)
				if stays {
					mustLink(t, a.Namespace, "eth0")
				} else {
					wantNoLink(t, a.Namespace)
				}
				if (len(held[a.ID]) == 2) != stays {
					t.Errorf("%s holds %v; it is valid: %v", name, held[a.ID], stays)
				}
			}
			for _, spared := range []*lab.Namespace{foreign.Namespace, stranger} {
				mustLink(t, spared, "eth0")
				if len(held[spared.ID]) == 0 {
					t.Errorf("%s lost its addresses", spared.ID)
				}
			}
		})
	}
}

// named puts container IDs into a list of attachments.
func named(list, id1, id2 string) json.RawMessage {
	return json.RawMessage(strings.NewReplacer("ID1", id1, "ID2", id2).Replace(list))
}

// otherNetwork shares the subnet and the ledger with lan, and no address.
func otherNetwork(t *testing.T, h *lab.Host) string {
	return lan(t, h, keys{"name": "other", "ipam": json.RawMessage(`{"type": "underlay", "ranges": [
		[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.200", "rangeEnd": "192.0.2.209"}],
		[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::200", "rangeEnd": "2001:db8::209"}]]}`)})
}

// attachThroughShell is attach by another runtime: a shell.
func attachThroughShell(t *testing.T, h *lab.Host, name string) *lab.Namespace {
	t.Helper()
	n, rt := container(t, h, name)
	// The shell has more to do after the plugin, so it does not become it.
	shell := []string{"sh", "-c", `"$@"; exit $?`, "sh"}
	if _, err := (call{verb: "ADD", rt: rt, through: shell}).run(t, h, placed(t, h, nil)); err != nil {
		t.Fatal(err)
	}
	return n
}

// What the runtime forgot is collected from a container that is dead, too.
func TestGCOfTheDead(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	for _, name := range []string{"c1", "c2"} {
		a := attach(t, h, name, lan(t, h, nil))
		mustDo(t, h.Namespace, "ip", "netns", "delete", a.ID)
	}
	_, err := call{verb: "GC"}.run(t, h, placed(t, h, keys{"cni.dev/valid-attachments": nil}))
	wantOK(t, "GC", err)
	wantNothingHeld(t, h)
}

// Who made the attachments that a rebuild found is not known. Those that live
// may be another runtime's.
func TestGCAfterRebuild(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	lives, _ := container(t, h, "c1")
	var st unix.Stat_t
	if err := unix.Stat(lives.Path, &st); err != nil {
		t.Fatal(err)
	}
	found := func(id, addr string, netns ipam.Netns) ledger.Found {
		return ledger.Found{
			Attachment: ipam.Attachment{Network: "lan", ContainerID: id, IfName: "eth0"}, Netns: netns, Pool: "lan",
			Addresses: []ipam.Address{{Prefix: netip.MustParsePrefix(addr)}},
		}
	}
	err := ledger.Rebuild(t.Context(), ledger.Options{DataDir: h.DataDir, RunDir: h.RunDir}, []ledger.Found{
		found("lives", "192.0.2.10/24", ipam.Netns{Path: lives.Path, Dev: st.Dev, Inode: st.Ino}),
		found("dead", "192.0.2.11/24", ipam.Netns{Path: "/run/netns/dead", Dev: st.Dev, Inode: 1}),
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = call{verb: "GC"}.run(t, h, placed(t, h, keys{"cni.dev/valid-attachments": nil}))
	wantOK(t, "GC", err)
	if held := readBooks(t, h).held(); len(held) != 1 || len(held["lives"]) != 1 {
		t.Errorf("held: %v, want that of the living", held)
	}
}

// Through libcni, as CRI-O does.
func TestGCThroughLibcni(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	c1, c2 := attach(t, h, "c1", lan(t, h, nil)), attach(t, h, "c2", lan(t, h, nil))
	wantOK(t, "GC", c1.cni.GC(t.Context(), c1.conf, types.GCAttachment{ContainerID: c1.ID, IfName: "eth0"}))
	wantOK(t, "CHECK", c1.cni.Check(t.Context(), c1.conf, c1.rt))
	wantNoLink(t, c2.Namespace)
	wantOK(t, "GC", c1.cni.GC(t.Context(), c1.conf))
	wantNoLink(t, c1.Namespace)
	wantNothingHeld(t, h)
}
