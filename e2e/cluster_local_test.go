package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// Cluster pools on a node whose agent has done its part and is down: the ledger
// knows the pool and the blocks that the node leases of it.

const redUUID = "6a4f2f0e-3f0f-4c49-9a3e-1f1d5f6a7b01"

// red is a pool of eight addresses of each family, in blocks of four.
const red = `{"version": 1, "name": "red", "kind": "shared", "blockPrefix": {"ipv4": 30, "ipv6": 126}, "sticky": true, "ranges": [
	[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.8", "rangeEnd": "192.0.2.15"}],
	[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::8", "rangeEnd": "2001:db8::f"}]],
	"routes": [{"dst": "198.51.100.0/24"}, {"dst": "2001:db8:1::/48"}]}`

// The blocks of red, for two nodes.
var (
	halfRed  = []string{"192.0.2.8/30", "2001:db8::8/126"}
	otherRed = []string{"192.0.2.12/30", "2001:db8::c/126"}
)

// onRed has addresses come from red.
func onRed(more string) keys { return pool(`"pool": "red"` + more) }

// inLedger does what an agent would, with the host's ledger; boot is that of the
// running kernel if it is "".
func inLedger(t *testing.T, h *lab.Host, boot string, do func(*ledger.Ledger) error) {
	t.Helper()
	l, err := ledger.Open(t.Context(), ledger.Options{DataDir: h.DataDir, RunDir: h.RunDir, BootID: boot})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(do(l), l.Close()); err != nil {
		t.Fatal(err)
	}
}

// lend has the host know a pool and lease blocks of it, confirmed in this boot.
func lend(t *testing.T, h *lab.Host, object string, blocks ...string) {
	t.Helper()
	inLedger(t, h, "", func(l *ledger.Ledger) error { return errors.Join(lendIn(l, object, blocks), l.Confirm()) })
}

func lendIn(l *ledger.Ledger, object string, blocks []string) error {
	p, err := record.LoadPool([]byte(object))
	if err != nil {
		return err
	}
	p.UUID = redUUID
	if err := l.SetPools([]ipam.Pool{p.IPAM()}); err != nil {
		return err
	}
	me, err := l.Node()
	for _, b := range blocks {
		_, lerr := l.Learn(p.UUID, lease.Seen{Block: lease.Block{CIDR: netip.MustParsePrefix(b), Owner: me}, Rev: 1}, true)
		err = errors.Join(err, lerr)
	}
	return err
}

// pod names the pod that a container belongs to, which owns its addresses.
func pod(name string) [][2]string {
	return [][2]string{{"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", name}, {"IgnoreUnknown", "1"}}
}

// The life of a pool on two nodes: each gives out what it leases, to the last
// address, with the pool's routes, and takes it back.
func TestCluster(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	lend(t, b.h1, red, halfRed...)
	lend(t, b.h2, red, otherRed...)
	conf := lan(t, b.h1, onRed(""))
	var as []*attachment
	for i := range 4 {
		as = append(as, attach(t, b.h1, fmt.Sprint("c", i), conf))
	}
	other := attach(t, b.h2, "c", conf)
	meet(t, as[0].station, other.station)
	if got := []string{as[3].addrs[0].String(), other.addrs[0].String()}; !slices.Equal(got, []string{"192.0.2.11", "192.0.2.12"}) {
		t.Errorf("the last of the first node and the first of the second are %v", got)
	}
	for _, a := range append(as, other) {
		wantOK(t, "CHECK of "+a.ID, a.cni.Check(t.Context(), conf, a.rt))
		if routes := mustDo(t, a.Namespace, "ip", "route"); !strings.Contains(routes, "198.51.100.0/24 via 192.0.2.1 ") {
			t.Errorf("routes of %s:\n%s", a.ID, routes)
		}
	}
	result, err := as[0].cni.Add(t.Context(), conf, as[0].rt)
	if err != nil {
		t.Fatal(err)
	}
	wantRoutes(t, result, "198.51.100.0/24", "2001:db8:1::/48")

	full := []string{`"red"`, "192.0.2.8-192.0.2.15", "of 8 usable it leases 4: 4 held", "no agent runs on this node"}
	n, rt := container(t, b.h1, "late")
	calls := b.h1.CNI(ours)
	before := stateOf(t, b.h1, n)
	_, err = calls.Add(t.Context(), conf, rt)
	wantError(t, err, codeTryAgain, full...)
	wantState(t, before, stateOf(t, b.h1, n))
	wantOK(t, "STATUS", calls.Status(t.Context(), conf))
	wantError(t, calls.Status(t.Context(), lan(t, b.h1, onRed(`, "statusOnExhausted": true`))), codeStatus, full[:3]...)

	as[1].del()
	if held := readBooks(t, b.h1).held(); len(held) != 3 {
		t.Errorf("held after a DEL: %v", held)
	}
	if _, err := calls.Add(t.Context(), conf, rt); err != nil {
		t.Fatalf("ADD after a DEL: %v", err)
	}
	mustDo(t, as[0].Namespace, "ip", "addr", "flush", "dev", "eth0")
	wantError(t, as[0].cni.Check(t.Context(), conf, as[0].rt), codeCheck, "192.0.2.8/24")
	// A runtime's own list of what is valid; libcni would send DELs itself.
	collect := placed(t, b.h1, keys{"ipam": onRed("")["ipam"], "cni.dev/valid-attachments": []types.GCAttachment{{ContainerID: rt.ContainerID, IfName: rt.IfName}}})
	_, err = call{verb: "GC"}.run(t, b.h1, collect)
	wantOK(t, "GC", err)
	if held := readBooks(t, b.h1).held(); len(held) != 1 || len(held[rt.ContainerID]) != 2 {
		t.Errorf("held after GC: %v", held)
	}
	wantNoLink(t, as[0].Namespace)
	wantError(t, as[2].cni.Check(t.Context(), conf, as[2].rt), codeCheck, "eth0")
	wantOK(t, "DEL", calls.Del(t.Context(), conf, rt))
	wantNothingHeld(t, b.h1)
	for range 2 {
		wantOK(t, "DEL", as[0].cni.Del(t.Context(), conf, as[0].rt))
	}
}

func wantRoutes(t *testing.T, result *current.Result, want ...string) {
	t.Helper()
	var got []string
	for _, r := range result.Routes {
		got = append(got, r.Dst.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("routes %v, want %v", got, want)
	}
}

// STATUS and ADD agree on why a node can give nothing out.
func TestClusterRefused(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		ipam  keys
		make  func(t *testing.T, h *lab.Host)
		code  uint // of ADD
		texts []string
		well  bool // STATUS succeeds
	}{
		{name: "no ledger yet", ipam: onRed(""), code: codeTryAgain, texts: []string{`no pool "red"`, "may be new", "underlayd"}},
		{name: "unknown pool", ipam: pool(`"pool": "blue"`), code: codeTryAgain, texts: []string{`no pool "blue"`, "may be new", "underlayd"},
			make: func(t *testing.T, h *lab.Host) { lend(t, h, red, halfRed...) }},
		{name: "not confirmed", ipam: onRed(""), code: codeTryAgain, texts: []string{"has not confirmed this node's leases", "start underlayd"},
			make: func(t *testing.T, h *lab.Host) {
				inLedger(t, h, "", func(l *ledger.Ledger) error { return lendIn(l, red, halfRed) })
			}},
		{name: "ledger damaged", ipam: onRed(""), code: codeLedger, texts: []string{"ledger.db", "damaged"},
			make: func(t *testing.T, h *lab.Host) { lend(t, h, red, halfRed...); damage(t, h) }},
		{name: "nothing leased", ipam: onRed(""), code: codeTryAgain, texts: []string{`"red"`, "of 8 usable it leases 0"}, well: true,
			make: func(t *testing.T, h *lab.Host) { lend(t, h, red) }},
		{name: "nothing leased, statusOnExhausted", ipam: onRed(`, "statusOnExhausted": true`), code: codeTryAgain, texts: []string{`"red"`, "of 8 usable it leases 0"},
			make: func(t *testing.T, h *lab.Host) { lend(t, h, red) }},
		// Only the ledger knows the pool's routes, and STATUS asks for no address.
		{name: "other routes", ipam: onRed(`, "routes": [{"dst": "203.0.113.0/24"}]`), code: codeConfig, well: true,
			texts: []string{"ipam.routes", "203.0.113.0/24", "198.51.100.0/24", "underlayctl pool update"},
			make:  func(t *testing.T, h *lab.Host) { lend(t, h, red, halfRed...) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			if test.make != nil {
				test.make(t, h)
			}
			conf := placed(t, h, test.ipam)
			_, err := call{verb: "STATUS"}.run(t, h, conf)
			if test.well {
				wantOK(t, "STATUS", err)
			} else {
				wantError(t, err, codeStatus, test.texts...)
			}
			n, rt := container(t, h, "c1")
			_, err = call{verb: "ADD", rt: rt}.run(t, h, conf)
			wantError(t, err, test.code, test.texts...)
			wantNoLink(t, n)
			if test.code != codeLedger {
				wantNothingHeld(t, h)
			}
			_, err = call{verb: "DEL", rt: rt}.run(t, h, conf)
			wantOK(t, "DEL", err)
		})
	}
}

// A pod finds its addresses and its MAC again, whatever others did meanwhile; also
// after a reboot, when the agent has confirmed what the node leases. Until then
// nobody gets any.
func TestClusterSticky(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	lend(t, h, red, halfRed...)
	conf := lan(t, h, onRed(""))
	web := attach(t, h, "web1", conf, pod("web")...)
	addrs, mac := web.addrs, web.mac
	same := func(a *attachment) {
		t.Helper()
		if !slices.Equal(a.addrs, addrs) || a.mac != mac {
			t.Errorf("%s has %v and %s, and had %v and %s before", a.ID, a.addrs, a.mac, addrs, mac)
		}
	}
	web.del()
	db := attach(t, h, "db1", conf, pod("db")...)
	if slices.Equal(db.addrs, addrs) {
		t.Errorf("another pod has %v", addrs)
	}
	web = attach(t, h, "web2", conf, pod("web")...)
	same(web)

	// What was held in another boot is as it would be after a reboot: the
	// namespaces are gone, the leases not confirmed.
	h = oneHost(t)
	conf = lan(t, h, onRed(""))
	const earlier = "00000000-0000-4000-8000-000000000001"
	inLedger(t, h, earlier, func(l *ledger.Ledger) error {
		if err := errors.Join(lendIn(l, red, halfRed), l.Confirm()); err != nil {
			return err
		}
		req := ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "lan", ContainerID: "web0", IfName: "eth0"},
			Cluster: "red", Owner: "shop/web", MACPrefix: ipam.DefaultMACPrefix}
		got, err := l.Allocate(req, nil)
		addrs, mac = nil, got.MAC
		for _, a := range got.Addresses {
			addrs = append(addrs, a.Prefix.Addr())
		}
		return err
	})
	_, rt := container(t, h, "early")
	calls := h.CNI(ours)
	_, err := calls.Add(t.Context(), conf, rt)
	wantError(t, err, codeTryAgain, "start underlayd")
	wantError(t, calls.Status(t.Context(), conf), codeStatus, "start underlayd")
	inLedger(t, h, "", (*ledger.Ledger).Confirm)
	wantOK(t, "STATUS", calls.Status(t.Context(), conf))
	attach(t, h, "db2", conf, pod("db")...)
	same(attach(t, h, "web3", conf, pod("web")...))
}

// Somebody else on the wire has an address of the pool: the next one is tried.
func TestClusterConflict(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	lend(t, b.h1, red, halfRed...)
	for _, a := range []string{"192.0.2.8/24", "192.0.2.9/24"} {
		mustDo(t, b.h2.Namespace, "ip", "addr", "add", a, "dev", lab.Parent)
	}
	a := attach(t, b.h1, "c1", lan(t, b.h1, onRed("")))
	if a.addrs[0].String() != "192.0.2.10" {
		t.Errorf("got %v", a.addrs)
	}
	var quarantined []string
	for _, r := range readBooks(t, b.h1).Addresses {
		if r.State == ipam.Quarantined && r.PoolUUID == redUUID {
			quarantined = append(quarantined, r.Address.Addr().String())
		}
	}
	if !slices.Equal(quarantined, []string{"192.0.2.8", "192.0.2.9"}) {
		t.Errorf("in quarantine: %v", quarantined)
	}
	a.del()
}

// The IPAM plugin does the same for a main plugin that is not ours.
func TestClusterIPAM(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	lend(t, h, red, halfRed...)
	conf := keys{"type": "ptp", "ipam": onRed("")["ipam"]}
	_, rt := container(t, h, "c1")
	calls := h.CNI(reference, ours)
	result, err := calls.Add(t.Context(), lan(t, h, conf), rt)
	if err != nil {
		t.Fatal(err)
	}
	wantRoutes(t, result, "198.51.100.0/24", "2001:db8:1::/48")
	if held := readBooks(t, h).held()[rt.ContainerID]; !slices.Equal(held, []string{"192.0.2.8", "2001:db8::8"}) {
		t.Errorf("held: %v", held)
	}
	wantOK(t, "CHECK", calls.Check(t.Context(), lan(t, h, conf), rt))
	_, err = call{verb: "STATUS", plugin: "underlay"}.run(t, h, placed(t, h, conf))
	wantOK(t, "STATUS", err)
	wantOK(t, "DEL", calls.Del(t.Context(), lan(t, h, conf), rt))
	wantNothingHeld(t, h)
	_, err = call{verb: "STATUS", plugin: "underlay"}.run(t, h, placed(t, h, keys{"type": "ptp", "ipam": pool(`"pool": "blue"`)["ipam"]}))
	wantError(t, err, codeStatus, `no pool "blue"`)
}

// samplePools are the folders of the samples of pools that configurations draw on.
var samplePools = map[string]string{"tenant-a": "cluster", "pods": "vxlan"}

var namesPool = regexp.MustCompile(`"pool": *"([^"]*)"`)

// lendSample gives a host what a configuration of the documents draws on: the
// first block of each range set of the sample pool that it names, what the agent
// would have of its network, and somebody who is in its segment already.
func lendSample(t *testing.T, h *lab.Host, conf string) {
	t.Helper()
	if asks := regexp.MustCompile(`"mode": *"segment"`); asks.MatchString(conf) && !strings.Contains(conf, `"vni"`) {
		wantOK(t, "first of the segment", enterSample(t, h))
	}
	named := namesPool.FindStringSubmatch(conf)
	if named == nil {
		return
	}
	root, err := binaries.Root()
	if err != nil {
		t.Fatal(err)
	}
	folder, ok := samplePools[named[1]]
	if !ok {
		t.Fatalf("no sample is of pool %q", named[1])
	}
	if folder == "vxlan" {
		uplink(t, h, "pods", 1, 1450)
	}
	object, err := os.ReadFile(filepath.Join(root, "conf", folder, "pool.json"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := record.LoadPool(object)
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for i := range p.Sets {
		g, err := p.Grid(i)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, g.Block(0).String())
	}
	lend(t, h, string(object), blocks...)
}

// enterSample puts an attachment on record that is in the segment of network red.
func enterSample(t *testing.T, h *lab.Host) error {
	t.Helper()
	_, err := client.New(h.DataDir, h.RunDir).Allocate(t.Context(), ipam.AllocateRequest{
		Attachment: ipam.Attachment{Network: "red/vxlan", ContainerID: "first", IfName: "eth0"},
		Uses:       ipam.Uses{Parent: lab.Parent, Segment: ipam.Segment{VNI: 5000, Port: 8472}},
	}, nil)
	return err
}
