package repo

import (
	"slices"
	"strings"
	"testing"
)

// rooms are the folders that hold packages and the folders of this module that
// each may import. A package belongs to the longest entry it lies under. A room
// that is missing here is an error: decide first what it may call.
var rooms = []struct {
	room string
	may  []string
	why  string
}{
	{"plugins", []string{"pkg/cni", "pkg/attach", "pkg/link", "ipam", "ipam/client"},
		"a plugin has only what is its own: its config and its link"},
	{"plugins/hostgw", []string{"pkg/cni", "pkg/attach", "pkg/link", "pkg/forward", "pkg/static", "ipam", "ipam/client"},
		"as any plugin, and what it keeps on the host where no agent does"},
	{"plugins/vxlan", []string{"pkg/cni", "pkg/attach", "pkg/link", "pkg/netns", "pkg/vxlan", "ipam", "ipam/client"},
		"as any plugin, and the devices of a segment, which it makes without an agent"},
	{"pkg/attach", []string{"pkg/cni", "pkg/link", "pkg/netns", "pkg/arp", "pkg/flock", "ipam", "ipam/client"},
		"the way of an attachment calls the kernel doors and IPAM, and no plugin"},
	{"pkg/cni", nil, "the contract knows nothing of what stands behind it"},
	{"pkg/link", []string{"pkg/nlsock", "pkg/netns"}, "a kernel door"},
	{"pkg/nlsock", []string{"pkg/netns"}, "what the kernel doors speak through knows none of them"},
	{"pkg/reconcile", nil, "how things are kept as they are wanted, whatever they are: no kernel, no libraries"},
	{"pkg/route", []string{"pkg/reconcile", "pkg/nlsock", "pkg/netns"}, "a kernel door, which only says what a route is"},
	{"pkg/neigh", []string{"pkg/reconcile", "pkg/nlsock", "pkg/netns"}, "a kernel door, which only says what a neighbour and an FDB entry are"},
	{"pkg/nft", []string{"pkg/reconcile", "pkg/nlsock", "pkg/netns", "pkg/nft/drop"}, "a kernel door, whose table is one object"},
	{"pkg/nft/drop", []string{"pkg/netns"}, "what a plugin has room for"},
	{"pkg/forward", []string{"pkg/netns"}, "a kernel door"},
	{"pkg/static", []string{"pkg/link", "pkg/forward", "pkg/nft/drop", "pkg/flock"},
		"routes and rules of plugins, made by what they link already: the reconcilers are more than a plugin has room for"},
	{"pkg/vxlan", []string{"pkg/link", "pkg/neigh", "pkg/route", "pkg/netns"}, "devices, and what leads to peers through them"},
	{"pkg/hostnet", []string{"pkg/nlsock", "pkg/netns", "pkg/forward"}, "a kernel door, for reading what of the host's network is not ours"},
	{"pkg/arp", []string{"pkg/netns"}, "a kernel door"},
	{"pkg/netns", []string{"pkg/flock"}, "the lowest kernel door"},
	{"pkg/flock", nil, "one system call, which the kernel's side and the disk's wait with"},
	{"pkg/fault", nil, "a crash point may stand anywhere, so it stands on nothing"},
	{"pkg/digest", nil, "names are made everywhere"},
	{"pkg/cli", []string{"ipam", "ipam/ledger", "ipam/client", "ipam/registry/record", "pkg/hostnet", "pkg/link", "pkg/netns", "pkg/vxlan", "pkg/agent/api"},
		"commands show and repair what the ledger holds, through the agent when that has it open; the registry is the agent's alone, and trace asks the kernel for ways and neighbours"},
	{"pkg/agent", []string{"ipam", "ipam/ledger", "ipam/client", "ipam/lease", "ipam/registry", "ipam/registry/record", "pkg/agent/api", "pkg/arp", "pkg/flock", "pkg/hostnet", "pkg/link", "pkg/neigh", "pkg/netns", "pkg/nft", "pkg/reconcile", "pkg/route", "pkg/vxlan"},
		"the agent serves the domain; attachments are the plugins'"},
	{"pkg/agent/api", []string{"ipam", "ipam/ledger", "ipam/client", "ipam/lease", "ipam/registry/record"},
		"documents and a client, for other programs too: nothing of the agent behind them"},
	{"ipam", nil, "the domain has no I/O and no storage"},
	{"ipam/ledger", []string{"ipam", "ipam/lease", "pkg/flock"}, "storage serves the domain"},
	{"ipam/lease", []string{"ipam"}, "the protocol of block leases is decided without I/O"},
	{"ipam/registry", []string{"ipam", "ipam/lease", "ipam/registry/record"}, "stores serve the protocol"},
	{"ipam/registry/record", []string{"ipam", "ipam/lease"}, "the form of the values is that of the Admin API's documents too: no store comes with it"},
	{"ipam/client", []string{"ipam", "ipam/ledger"}, "a plugin's way to the ledger"},
	{"ipam/plugin", []string{"pkg/cni", "ipam", "ipam/client"}, "IPAM behind the CNI contract"},
	{"e2e", []string{"e2e", "e2e/bench/peers", "e2e/crowd", "ipam", "ipam/ledger", "ipam/client", "pkg/agent/api"},
		"black box: the programs are run, and agents asked as any program may; only the ledger is filled and checked from inside, and the benchmark is many plugins at once"},
	{"e2e/bench/peers", []string{"pkg/netns", "pkg/reconcile", "pkg/route", "pkg/neigh", "pkg/vxlan"},
		"how fast the kernel's tables fill is measured at their doors, without an agent"},
	{"e2e/crowd", []string{"ipam", "ipam/ledger", "ipam/lease", "ipam/registry", "ipam/registry/record", "pkg/agent"},
		"a thousand agents fit into one machine only as tasks of one process"},
}

// anywhere may be imported by every room.
var anywhere = []string{"pkg/fault", "pkg/digest"}

// roomOf is the index of the room that a folder lies in, or -1.
func roomOf(folder string) int {
	best := -1
	for i, r := range rooms {
		if under(folder, r.room) && (best < 0 || len(r.room) > len(rooms[best].room)) {
			best = i
		}
	}
	return best
}

func TestRooms(t *testing.T) {
	lived := make(map[string]bool)
	for _, p := range allPackages(t) {
		i := roomOf(p.room())
		if i < 0 {
			t.Errorf("%s is in no room: add it to the table, with what it may import", p.room())
			continue
		}
		room := rooms[i]
		lived[room.room] = true
		for _, path := range p.Imports {
			to, ours := strings.CutPrefix(path, module+"/")
			if !ours || slices.Contains(anywhere, to) {
				continue
			}
			target := roomOf(to)
			if target == i || target >= 0 && slices.Contains(room.may, rooms[target].room) {
				continue
			}
			t.Errorf("%s imports %s; %s may import %q: %s", p.room(), to, room.room, room.may, room.why)
		}
	}
	for _, room := range rooms {
		if !lived[room.room] {
			t.Errorf("room %s is empty: remove it from the table", room.room)
		}
	}
}

// Tests may import more than the room does, but these never.
func TestNobodyImports(t *testing.T) {
	for _, p := range allPackages(t) {
		for _, path := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			to, ours := strings.CutPrefix(path, module+"/")
			switch {
			case !ours, to == p.room():
			case under(to, "e2e") && !under(p.room(), "e2e"):
				t.Errorf("%s imports %s: only e2e looks at the whole", p.room(), to)
			case under(to, "plugins"):
				t.Errorf("%s imports %s: a plugin is a program, and what two share goes to pkg", p.room(), to)
			}
		}
	}
}

// TestDoors: a heavy library has one door, so that it can be replaced, faked
// and kept out of the programs that do not need it.
func TestDoors(t *testing.T) {
	doors := []struct {
		name  string
		rooms []string
		why   string
	}{
		{"github.com/vishvananda/netlink", []string{"pkg/link", "pkg/nlsock", "pkg/route", "pkg/neigh", "pkg/vxlan", "pkg/hostnet"},
			"kernel objects are made, read and undone in one place each"},
		{"sigs.k8s.io/knftables", []string{"pkg/nft"}, "one table, written in one place; a plugin that masquerades pays for it with a start of nft"},
		{"go.etcd.io/bbolt", []string{"ipam/ledger"}, "what is durable is decided in one place"},
		{"go.etcd.io/etcd", []string{"ipam/registry/etcd"}, "12 MB and 16 ms a start, for the agent alone"},
		{"github.com/containerd", []string{"pkg/agent/containerd"}, "which containers there are is asked in one place; its gRPC is that of etcd's client"},
		{"google.golang.org/grpc", []string{"pkg/agent/containerd", "ipam/registry/etcd"}, "it comes with etcd's client, whose connections it makes"},
		{"github.com/prometheus", []string{"pkg/agent"}, "a process of 10 ms is not scraped"},
		{"net/http", []string{"pkg/agent"}, "people and programs ask the agent; plugins have the wire of ipam/client"},
		{"github.com/spf13/cobra", []string{"pkg/cli"}, "10 ms of init in a plugin would be paid on each ADD"},
	}
	for _, door := range doors {
		users := 0
		for _, p := range allPackages(t) {
			for _, path := range p.Imports {
				if !under(path, door.name) {
					continue
				}
				users++
				allowed := slices.ContainsFunc(door.rooms, func(room string) bool { return under(p.room(), room) })
				if !allowed && !under(p.room(), "e2e") {
					t.Errorf("%s imports %s; its door is %q: %s", p.room(), path, door.rooms, door.why)
				}
			}
		}
		atLeast(t, "users of "+door.name, users, 1)
	}
}

// TestPluginDependencies: what is linked into a plugin is paid for at every ADD,
// in bytes to read and init functions to run.
func TestPluginDependencies(t *testing.T) {
	bans := []struct{ name, why string }{
		{"net/http", "the socket protocol is one JSON request and one response"},
		{"crypto/tls", "comes with HTTP; plugins talk to the node they are on"},
		{"google.golang.org/protobuf", "heavy init; comes with gRPC and etcd"},
		{"github.com/containerd", "comes with gRPC; the agent asks it"},
		{"google.golang.org/grpc", "1,000 packages for one request"},
		{"github.com/prometheus", "a process of 10 ms is not scraped"},
		{"go.opentelemetry.io", "cni v1.3.1's pkg/invoke brings it: 1.7 MB and 5 ms a start"},
		{"go.etcd.io/etcd", "16 ms a start; the registry is the agent's"},
		{"github.com/spf13/cobra", "the command line is underlayctl's"},
		{"github.com/coreos/go-iptables", "comes with the reference's pkg/ip; we have no iptables"},
		{"github.com/onsi", "a test framework, which registers flags"},
		{"testing", "registers flags"},
		{"text/template", "keeps the linker from dropping unused methods"},
		{"html/template", "as text/template"},
	}
	programs := 0
	for _, p := range allPackages(t) {
		if p.Name != "main" || !under(p.room(), "plugins") && !under(p.room(), "ipam/plugin") {
			continue
		}
		programs++
		for _, ban := range bans {
			i := slices.IndexFunc(p.Deps, func(dep string) bool { return under(dep, ban.name) })
			if i >= 0 {
				t.Errorf("%s links %s: %s", p.room(), p.Deps[i], ban.why)
			}
		}
	}
	atLeast(t, "plugin programs", programs, 3)
}
