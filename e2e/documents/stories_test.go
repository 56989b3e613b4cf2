package documents

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// story is what a test adds to a document: what its reader has, and what he sees
// besides what commands print.
type story struct {
	elsewhere string // another test that runs its commands
	bare      bool   // nothing is installed on the first machine
	// prepare is before all blocks, before is before the one with that first
	// line, and after is after all. Each may be nil.
	prepare func(*bed)
	before  map[string]func(*bed)
	after   func(*bed)
}

// documents are those with commands.
var documents = map[string]story{
	"conf/TROUBLESHOOTING.md":   {elsewhere: "TestTroubleshooting"},
	"conf/operations/README.md": {elsewhere: "TestOperations of e2e"},
	"README.md":                 {bare: true, after: func(b *bed) { b.attaches("lan") }},
	"conf/README.md": {bare: true, after: func(b *bed) {
		b.attaches("lan")
		b.attaches("office")
	}},
	"conf/MIGRATION.md": {bare: true, prepare: settled, before: map[string]func(*bed){
		"underlayctl ledger migrate whereabouts /var/tmp/ippools.json --network lan --ippool 192.0.2.0-24 --dry-run": migrated,
		"cat > /var/tmp/net-conf.json <<END": func(b *bed) { b.cluster() },
	}},
	"ipam/README.md": {prepare: func(b *bed) {
		b.cluster()
		b.h1.do(`underlayctl conf containerd lan --master eth1 --subnet 192.0.2.0/24 --range-start 192.0.2.150 2>&1 >/etc/cni/net.d/10-lan.conflist`)
		b.attaches("lan") // 192.0.2.150 rests afterwards
	}, after: func(b *bed) { b.attaches("shop") }},
	"pkg/agent/README.md": {prepare: func(b *bed) { b.cluster() }, before: map[string]func(*bed){
		"underlayctl peer list        # which hosts are reached, at which address, and why others are not": func(b *bed) {
			b.h2.do("cat >/etc/cni/net.d/10-pods.conflist <<'END'\n" + b.h1.do("cat /etc/cni/net.d/10-pods.conflist") + "\nEND")
			b.podsMeet()
		},
		"underlayctl segment list         # the segments of this host, and what is not as it should be": func(b *bed) { b.segment("seg") },
	}, after: metricsTold},
}

// attaches: a container on the network of a document gets an address.
func (b *bed) attaches(network string) {
	b.t.Helper()
	out := b.h1.do("ip netns add new; cnitool add " + network + " /run/netns/new; cnitool del " + network + " /run/netns/new; ip netns del new")
	if !strings.Contains(out, `"address": "192.0.2.`) {
		b.t.Errorf("ADD on network %s printed\n%s", network, out)
	}
}

// settled is a host with a container of the reference plugins, and what pods of
// whereabouts are in Kubernetes.
func settled(b *bed) {
	b.t.Helper()
	b.h1.do(`mkdir -p /opt/cni/bin /etc/cni/net.d /etc/underlay
		cp ` + reference + `/* /opt/cni/bin
		echo '{"cniVersion": "1.0.0", "name": "lan", "plugins": [{"type": "macvlan", "master": "eth1", "ipam": {"type": "host-local",
			"ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "rangeEnd": "192.0.2.99"}]]}}]}' >/etc/cni/net.d/10-lan.conflist
		ip netns add c1
		cnitool add lan /run/netns/c1
		echo '{"kind": "List", "items": [{"kind": "IPPool", "metadata": {"name": "192.0.2.0-24", "namespace": "kube-system"},
			"spec": {"range": "192.0.2.0/24", "allocations": {"77": {"id": "4f1c2a7d", "podref": "shop/web", "ifname": "net1"}}}}]}' >/var/tmp/ippools.json`)
}

// migrated: what ran before the migration has kept its address, which is nobody
// else's, and comes back with the DEL.
func migrated(b *bed) {
	b.t.Helper()
	list := b.h1.do("underlayctl address list")
	if line := missing([]string{"192.0.2.10/24 lan held ... eth0 ..."}, list); line != "" {
		b.t.Errorf("no line %q in\n%s", line, list)
	}
	b.attaches("lan")
	b.h1.do("cnitool del lan /run/netns/c1")
	if line := missing([]string{"192.0.2.10/24 lan cooling ..."}, b.h1.do("underlayctl address list")); line != "" {
		b.t.Errorf("the DEL did not give the address back")
	}
}

// metricsTold: the document's table has the metrics of an agent that has done
// everything, and no others.
func metricsTold(b *bed) {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(root, "pkg", "agent", "README.md"))
	if err != nil {
		b.t.Fatal(err)
	}
	told, shown := make(map[string]bool), make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| `underlay_.*$").FindAllString(string(data), -1) {
		names, _, _ := strings.Cut(row[1:], "|")
		for _, name := range regexp.MustCompile("`(underlay_[a-z_]+)`").FindAllStringSubmatch(names, -1) {
			told[name[1]] = true
		}
	}
	out := b.h1.do("curl -sS --unix-socket /run/underlay/api.sock http://underlayd/metrics")
	for _, help := range regexp.MustCompile(`(?m)^# HELP (underlay_[a-z_]+) `).FindAllStringSubmatch(out, -1) {
		shown[help[1]] = true
	}
	if !maps.Equal(told, shown) {
		b.t.Errorf("the table has %q,\nthe agent %q", slices.Sorted(maps.Keys(told)), slices.Sorted(maps.Keys(shown)))
	}
}
