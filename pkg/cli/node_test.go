package cli_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/vishvananda/netlink"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/cli"
	"github.com/underlay-cni/underlay/pkg/link"
)

// node is a host in a namespace of its own: eth1 with an address, a ledger,
// and a network whose name no other test on this machine has.
type node struct {
	t       *testing.T
	host    ns.NetNS
	eth1    int
	network string
	dirs    []string // flags that say where the ledger is
	dir     string
	plugin  string // the macvlan binary, once built
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{
		t: t, host: namespace(t), dir: dir, network: "net-" + filepath.Base(filepath.Dir(dir)),
		dirs: []string{"--data-dir=" + filepath.Join(dir, "data"), "--run-dir=" + filepath.Join(dir, "run")},
	}
	n.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth1"
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "wire"}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		wire, err := netlink.LinkByName("wire")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("198.51.100.200/24")
		if err != nil {
			return err
		}
		n.eth1 = veth.Index
		return errors.Join(netlink.LinkSetUp(veth), netlink.LinkSetUp(wire), netlink.AddrAdd(veth, addr))
	})
	return n
}

// namespace makes one that lives as long as the test.
func namespace(t *testing.T) ns.NetNS {
	t.Helper()
	n, err := testutils.NewNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, n) })
	return n
}

// remove removes a namespace, unless it is removed already.
func remove(t *testing.T, n ns.NetNS) {
	t.Helper()
	if err := n.Close(); err != nil {
		return
	}
	if err := testutils.UnmountNS(n); err != nil {
		t.Error(err)
	}
}

// do runs f on the host.
func (n *node) do(f func() error) {
	n.t.Helper()
	if err := n.host.Do(func(ns.NetNS) error { return f() }); err != nil {
		n.t.Fatal(err)
	}
}

// ctl runs underlayctl on the host, wants it to end with status, and returns
// what it printed to stdout and stderr.
func (n *node) ctl(want int, args ...string) string {
	n.t.Helper()
	var out bytes.Buffer
	status := -1
	n.do(func() error {
		status = cli.Run(n.t.Context(), append(args, n.dirs...), cli.Stdio{In: strings.NewReader(""), Out: &out, Err: &out})
		return nil
	})
	if status != want {
		n.t.Fatalf("%q ended with %d, want %d:\n%s", args, status, want, &out)
	}
	return out.String()
}

// read runs a command that reads, and decodes its JSON.
func (n *node) read(into any, args ...string) {
	n.t.Helper()
	if err := json.Unmarshal([]byte(n.ctl(0, append(args, "-o", "json")...)), into); err != nil {
		n.t.Fatalf("%q: %v", args, err)
	}
}

// held lists the addresses held, as "address container".
func (n *node) held() []string {
	n.t.Helper()
	var recs []ipam.Record
	n.read(&recs, "address", "list", "--state", "held")
	held := []string{}
	for _, r := range recs {
		held = append(held, fmt.Sprintf("%s %s", r.Address, r.Attachment.ContainerID))
	}
	return held
}

// spec is a kind of link.
type spec interface {
	Create(*link.Handle, link.Target) (int, error)
}

// addLink makes an eth0 in a container, on a parent of the host, as an ADD would.
func (n *node) addLink(at ns.NetNS, s spec, parent int, alias string) {
	n.t.Helper()
	n.do(func() error {
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		index, err := s.Create(h, link.Target{Name: "eth0", NetnsFd: int(at.Fd()), Parent: parent})
		if err != nil {
			return err
		}
		there, err := link.OpenAt(int(at.Fd()))
		if err != nil {
			return err
		}
		defer there.Close()
		return there.Up(index, alias, nil)
	})
}

// conf is a macvlan configuration of the node's network, with more keys.
func (n *node) conf(more string) string {
	return fmt.Sprintf(`{"cniVersion":"1.1.0","name":%q,"type":"macvlan","master":"eth1","dataDir":%q,"runDir":%q,%s
		"ipam":{"type":"underlay","routes":[{"dst":"0.0.0.0/0"}],
			"ranges":[[{"subnet":"198.51.100.0/24","rangeStart":"198.51.100.10","rangeEnd":"198.51.100.99","gateway":"198.51.100.1"}]]}}`,
		n.network, filepath.Join(n.dir, "data"), filepath.Join(n.dir, "run"), more)
}

// cni calls the real plugin as a runtime would. A failure of the plugin is
// the error that it printed.
func (n *node) cni(verb, container string, at ns.NetNS, conf string) (*current.Result, error) {
	n.t.Helper()
	if n.plugin == "" {
		n.plugin = filepath.Join(n.t.TempDir(), "macvlan")
		if out, err := exec.Command("go", "build", "-o", n.plugin, "../../plugins/macvlan").CombinedOutput(); err != nil {
			n.t.Fatalf("build macvlan: %v\n%s", err, out)
		}
	}
	cmd := exec.CommandContext(n.t.Context(), n.plugin)
	cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + container, "CNI_NETNS=" + at.Path(), "CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(n.plugin)}
	cmd.Stdin = strings.NewReader(conf)
	var out []byte
	err := n.host.Do(func(ns.NetNS) (err error) {
		out, err = cmd.Output()
		return err
	})
	if err != nil {
		var failed types.Error
		if json.Unmarshal(out, &failed) != nil || failed.Msg == "" {
			n.t.Fatalf("%s %s: %v\n%s", verb, container, err, out)
		}
		return nil, &failed
	}
	if verb != "ADD" {
		return nil, nil
	}
	var res current.Result
	if err := json.Unmarshal(out, &res); err != nil {
		n.t.Fatalf("%s %s: %v\n%s", verb, container, err, out)
	}
	return &res, nil
}

// add ADDs, and returns the address.
func (n *node) add(container string, at ns.NetNS, conf string) string {
	n.t.Helper()
	res, err := n.cni("ADD", container, at, conf)
	if err != nil {
		n.t.Fatal(err)
	}
	return res.IPs[0].Address.String()
}
