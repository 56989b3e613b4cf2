package e2e_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// What nerdctl 2.1 writes for `nerdctl network create -d macvlan -o
// parent=eth1` and more options, but for the type of the ipam: it knows no
// other than host-local and dhcp, so a user edits the file.
const (
	// --subnet 192.0.2.0/24 --ip-range 192.0.2.128/25 --gateway 192.0.2.1
	nerdctlRange = `{
  "cniVersion": "1.0.0",
  "name": "lan",
  "nerdctlID": "094a367b026246fb64649c4f868a45d8187821d16a973141436fd9cd2acfdb4a",
  "nerdctlLabels": {},
  "plugins": [
    {
      "type": "macvlan",
      "master": "eth1",
      "ipam": {
        "ranges": [[{"gateway": "192.0.2.1", "ipRange": "192.0.2.128/25", "rangeEnd": "192.0.2.255", "rangeStart": "192.0.2.129", "subnet": "192.0.2.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "type": "%s"
      }
    }
  ]
}`
	// --ipv6 --subnet 192.0.2.0/24 --subnet 2001:db8::/64 -o mode=bridge --label by=hand
	nerdctlDual = `{
  "cniVersion": "1.0.0",
  "name": "lan",
  "nerdctlID": "094a367b026246fb64649c4f868a45d8187821d16a973141436fd9cd2acfdb4a",
  "nerdctlLabels": {"by": "hand"},
  "plugins": [
    {
      "type": "macvlan",
      "master": "eth1",
      "mode": "bridge",
      "ipam": {
        "ranges": [[{"gateway": "192.0.2.1", "subnet": "192.0.2.0/24"}], [{"gateway": "2001:db8::1", "subnet": "2001:db8::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "type": "%s"
      },
      "capabilities": {"ips": true}
    }
  ]
}`
)

// underlayctlNerdctl is what underlayctl writes for nerdctl, with the ID by
// which nerdctl finds the network.
func underlayctlNerdctl(t *testing.T, h *lab.Host) string {
	t.Helper()
	conf := mustDo(t, h.Namespace, filepath.Join(ours, "underlayctl"), "conf", "nerdctl", "lan", "--master", lab.Parent,
		"--subnet", "192.0.2.0/24", "--range-start", "192.0.2.100", "--range-end", "192.0.2.199", "--ip6-subnet", "2001:db8::/64")
	var list struct {
		ID string `json:"nerdctlID"`
	}
	if err := json.Unmarshal([]byte(conf), &list); err != nil || list.ID != fmt.Sprintf("%x", sha256.Sum256([]byte("lan"))) {
		t.Fatalf("nerdctlID is %q, error %v", list.ID, err)
	}
	return conf
}

// The life of a container under nerdctl beside a sibling that stays.
func TestNerdctl(t *testing.T) {
	t.Parallel()
	text := func(format, ipam string) func(*testing.T, *lab.Host) string {
		return func(*testing.T, *lab.Host) string { return fmt.Sprintf(format, ipam) }
	}
	const via4, via6 = "default via 192.0.2.1 dev eth0", "default via 2001:db8::1 dev eth0"
	tests := []struct {
		name   string
		conf   func(*testing.T, *lab.Host) string
		flags  flags
		want   []string
		mac    string
		routes []string
	}{
		{name: "ip range", conf: text(nerdctlRange, "underlay"),
			want: []string{"192.0.2.129/24"}, routes: []string{via4}},
		{name: "ip range and flags", conf: text(nerdctlRange, "underlay"),
			flags: flags{ip: "192.0.2.200", mac: "02:00:00:00:00:77"},
			want:  []string{"192.0.2.200/24"}, mac: "02:00:00:00:00:77", routes: []string{via4}},
		{name: "ip range of host-local", conf: text(nerdctlRange, "host-local"),
			want: []string{"192.0.2.129/24"}, routes: []string{via4}},
		{name: "ip range of host-local and flags", conf: text(nerdctlRange, "host-local"),
			flags: flags{ip: "192.0.2.200", mac: "02:00:00:00:00:77"},
			want:  []string{"192.0.2.200/24"}, mac: "02:00:00:00:00:77", routes: []string{via4}},
		{name: "dual", conf: text(nerdctlDual, "underlay"),
			want: []string{"192.0.2.2/24", "2001:db8::2/64"}, routes: []string{via4}},
		{name: "dual and flags", conf: text(nerdctlDual, "underlay"),
			flags: flags{ip: "192.0.2.200", ip6: "2001:db8::77", mac: "02:00:00:00:00:77"},
			want:  []string{"192.0.2.200/24", "2001:db8::77/64"}, mac: "02:00:00:00:00:77", routes: []string{via4}},
		{name: "dual of host-local and flags", conf: text(nerdctlDual, "host-local"),
			flags: flags{ip: "192.0.2.200", ip6: "2001:db8::77"},
			want:  []string{"192.0.2.200/24", "2001:db8::77/64"}, routes: []string{via4}},
		{name: "underlayctl conf", conf: underlayctlNerdctl,
			want: []string{"192.0.2.100/24", "2001:db8::2/64"}, routes: []string{via4, via6}},
		{name: "underlayctl conf and flags", conf: underlayctlNerdctl,
			flags: flags{ip: "192.0.2.150", ip6: "2001:db8::77", mac: "02:00:00:00:00:77"},
			want:  []string{"192.0.2.150/24", "2001:db8::77/64"}, mac: "02:00:00:00:00:77", routes: []string{via4, via6}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			conf := test.conf(t, h)
			c1 := newNerdctl(t, h, "c1", conf, test.flags)
			c1.start()
			c1.wantAttached(test.want, test.mac, test.routes)
			sibling := newNerdctl(t, h, "c2", conf, flags{})
			sibling.start()
			wantHeld(t, h, c1, sibling)
			if diff := cmp.Diff(c1.addrs(), sibling.addrs()); diff == "" {
				t.Fatalf("both have %v", c1.addrs())
			}
			before := mustLink(t, sibling.box.Namespace, "eth0")

			// host-local has no memory of who had what.
			want, mac := test.want, mustLink(t, c1.box.Namespace, "eth0").MAC
			if c1.foreign() && test.flags.ip == "" {
				want, mac = nil, ""
			}
			c1.stop()
			wantHeld(t, h, sibling)
			c1.start()
			c1.wantAttached(want, mac, test.routes)
			wantHeld(t, h, c1, sibling)

			// containerd goes down with the container, and starts it again.
			c1.dies()
			wantHeld(t, h, c1, sibling)
			c1.start()
			c1.wantAttached(want, mac, test.routes)
			wantHeld(t, h, c1, sibling)

			c1.remove()
			wantHeld(t, h, sibling)
			wantOK(t, "CHECK of the sibling", sibling.cni.Check(t.Context(), conf, sibling.call(sibling.box.Path, hostname)))
			if diff := cmp.Diff(before, mustLink(t, sibling.box.Namespace, "eth0"), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("link of the sibling (-before +after):\n%s", diff)
			}
			sibling.remove()
			wantHeld(t, h)
		})
	}
}

// flags of nerdctl run; empty ones are not given.
type flags struct {
	ip, ip6, mac string
}

// hostname is an argument that is given at the start and not at the end.
var hostname = [2]string{"NERDCTL_CNI_DHCP_HOSTNAME", "c"}

// nerdctl is a container of nerdctl 2.1, which calls plugins in pkg/ocihook
// (applyNetworkSettings, onPostStop) and pkg/cmd/container (cleanupNetwork).
type nerdctl struct {
	t      *testing.T
	host   *lab.Host
	cni    *lab.CNI
	conf   string
	name   string
	id     string // as plugins are told
	flags  flags
	box    *lab.Container // of the present start
	starts int
	result *current.Result
}

func newNerdctl(t *testing.T, h *lab.Host, name, conf string, f flags) *nerdctl {
	return &nerdctl{t: t, host: h, cni: h.CNI(ours, reference), conf: conf, name: name, flags: f,
		// The namespace of containerd and the ID of the container.
		id: fmt.Sprintf("default-%x", sha256.Sum256([]byte(name)))}
}

// foreign: the addresses are host-local's.
func (n *nerdctl) foreign() bool { return strings.Contains(n.conf, `"host-local"`) }

// call is what nerdctl tells plugins from its hooks.
func (n *nerdctl) call(netns string, args ...[2]string) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: n.id, NetNS: netns, IfName: "eth0", Args: args}
	if n.flags.ip != "" {
		rt.Args = append(rt.Args, [2]string{"IP", n.flags.ip})
	}
	if n.flags.mac != "" {
		rt.Args = append(rt.Args, [2]string{"MAC", n.flags.mac})
	}
	// Not IP: an argument can hold only one.
	if n.flags.ip6 != "" {
		rt.CapabilityArgs = map[string]any{"ips": []string{n.flags.ip6}}
	}
	if len(rt.Args) > 0 || rt.CapabilityArgs != nil {
		rt.Args = append(rt.Args, [2]string{"IgnoreUnknown", "1"})
	}
	return rt
}

// start is the hook of a new process: it says DEL first, without a namespace,
// in case containerd died and took the container with it.
func (n *nerdctl) start() {
	n.t.Helper()
	n.starts++
	var err error
	if n.box, err = n.host.AddContainer(n.t.Context(), fmt.Sprintf("%sn%d", n.name, n.starts)); err != nil {
		n.t.Fatal(err)
	}
	wantOK(n.t, "DEL before ADD of "+n.name, n.cni.Del(n.t.Context(), n.conf, n.call("", hostname)))
	if n.result, err = n.cni.Add(n.t.Context(), n.conf, n.call(n.box.Path, hostname)); err != nil {
		n.t.Fatalf("ADD of %s: %v", n.name, err)
	}
}

// stop is nerdctl stop, which says DEL to a running container, and then is
// told by the hook of its end.
func (n *nerdctl) stop() {
	n.t.Helper()
	rt := &libcni.RuntimeConf{ContainerID: n.id, IfName: "eth0", CapabilityArgs: map[string]any{"portMappings": []any{}}}
	wantOK(n.t, "DEL at stop of "+n.name, n.cni.Del(n.t.Context(), n.conf, rt))
	wantNoLink(n.t, n.box.Namespace)
	n.remove()
}

// remove is nerdctl rm --force: the hook comes when the namespace is gone.
func (n *nerdctl) remove() {
	n.t.Helper()
	n.dies()
	wantOK(n.t, "DEL after the end of "+n.name, n.cni.Del(n.t.Context(), n.conf, n.call("")))
}

// dies is the end of the container's processes, and so of its namespace.
func (n *nerdctl) dies() {
	n.t.Helper()
	if err := n.box.Remove(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// addrs are the container's by its last result, without lengths.
func (n *nerdctl) addrs() []string {
	var addrs []string
	for _, ip := range n.result.IPs {
		addrs = append(addrs, ip.Address.IP.String())
	}
	return addrs
}

// wantAttached: the container's last result and its link say the same, which
// is what is wanted. No addresses or an empty MAC stand for any.
func (n *nerdctl) wantAttached(want []string, mac string, defaults []string) {
	n.t.Helper()
	link := mustLink(n.t, n.box.Namespace, "eth0")
	if link.Kind != "macvlan" || !link.Up || mac != "" && link.MAC != mac {
		n.t.Errorf("%s: link is %+v, want a macvlan, up, with MAC %q", n.name, link, mac)
	}
	var told, shown []string
	for _, ip := range n.result.IPs {
		told = append(told, ip.Address.String())
	}
	for _, p := range link.Addrs {
		if !p.Addr().IsLinkLocalUnicast() {
			shown = append(shown, p.String())
		}
	}
	if want == nil {
		want = told
	}
	if diff := cmp.Diff([][]string{want, want}, [][]string{told, shown}); diff != "" {
		n.t.Errorf("%s: addresses of the result and of the link (-want +got):\n%s", n.name, diff)
	}
	face := []*current.Interface{{Name: "eth0", Mac: link.MAC, Mtu: link.MTU, Sandbox: n.box.Path}}
	if diff := cmp.Diff(face, n.result.Interfaces); diff != "" {
		n.t.Errorf("%s: interfaces of the result (-want +got):\n%s", n.name, diff)
	}
	var routes []string
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(mustDo(n.t, n.box.Namespace, "ip", family, "route", "show", "default")) {
			routes = append(routes, strings.Join(strings.Fields(line)[:5], " "))
		}
	}
	if diff := cmp.Diff(defaults, routes); diff != "" {
		n.t.Errorf("%s: default routes (-want +got):\n%s", n.name, diff)
	}
}

// wantHeld: those containers and no others hold addresses, as their results
// say, be it in the ledger or in host-local's folder.
func wantHeld(t *testing.T, h *lab.Host, containers ...*nerdctl) {
	t.Helper()
	want, wantPaths := map[string][]string{}, map[string]string{}
	for _, n := range containers {
		want[n.id] = n.addrs()
		if !n.foreign() {
			wantPaths[n.id] = n.box.Path
		}
	}
	books := readBooks(t, h)
	held, paths := books.held(), map[string]string{}
	for _, a := range books.Attachments {
		paths[a.Attachment.ContainerID] = a.Netns.Path
	}
	files, err := filepath.Glob(filepath.Join(h.DataDir, "lan", "*[.:]*[.:]*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		id, _, _ := strings.Cut(string(text), "\r\n")
		held[id] = append(held[id], filepath.Base(file))
	}
	if diff := cmp.Diff(want, held, cmpopts.SortSlices(strings.Compare)); diff != "" {
		t.Errorf("held addresses (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantPaths, paths); diff != "" {
		t.Errorf("namespaces of the attachments in the ledger (-want +got):\n%s", diff)
	}
}
