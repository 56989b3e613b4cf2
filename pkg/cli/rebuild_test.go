package cli_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/link"
)

// shown is an attachment as `attachment show` prints it.
type shown struct {
	ipam.AttachmentRecord
	Records    []ipam.Record `json:"records"`
	NetnsState string        `json:"netnsState"`
	Link       *shownLink    `json:"link"`
}

type shownLink struct {
	Kind, Mode string
	Up         bool
	Addresses  []string
}

func (n *node) show(container string) shown {
	n.t.Helper()
	var all []shown
	n.read(&all, "attachment", "show", container)
	if len(all) != 1 {
		n.t.Fatalf("%d attachments of %s", len(all), container)
	}
	return all[0]
}

// lose deletes the ledger behind everybody's back.
func (n *node) lose() {
	n.t.Helper()
	if err := os.Remove(filepath.Join(n.dir, "data", "ledger.db")); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) rebuild() string {
	n.t.Helper()
	return n.ctl(0, "ledger", "rebuild", "--network", n.network)
}

// What a rebuilt ledger cannot know: who ran the plugin, when, and its token.
var beforeTheRebuild = cmp.Options{
	cmpopts.IgnoreFields(ipam.AttachmentRecord{}, "Runtime", "Since", "Version"),
	cmpopts.IgnoreFields(ipam.Record{}, "Runtime", "Since"),
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
}

// The life of a container whose ledger is lost, with the real plugin.
func TestRebuildEndToEnd(t *testing.T) {
	n := newNode(t)
	first, second := namespace(t), namespace(t)
	conf := n.conf("")
	addr := n.add("first", first, conf)
	before := n.show("first")
	if before.NetnsState != "alive" || before.Link == nil || !before.Link.Up || before.Link.Mode != "bridge" || !slices.Contains(before.Link.Addresses, addr) {
		t.Fatalf("before: %+v", before)
	}

	n.lose()
	if _, err := n.cni("ADD", "second", second, conf); err == nil || !strings.Contains(err.Error(), "ledger rebuild") {
		t.Fatalf("ADD without the ledger: %v", err)
	}

	if out := n.ctl(0, "ledger", "rebuild", "--network", n.network, "--dry-run"); !strings.Contains(out, "would write 1 attachment with 1 address ") {
		t.Errorf("dry run:\n%s", out)
	}
	n.ctl(1, "address", "list") // it has written nothing
	if out := n.rebuild(); !strings.Contains(out, "wrote 1 attachment with 1 address ") {
		t.Errorf("rebuild:\n%s", out)
	}
	n.ctl(0, "ledger", "check")
	if diff := cmp.Diff(before, n.show("first"), beforeTheRebuild); diff != "" {
		t.Errorf("attachment after the rebuild (-before +after):\n%s", diff)
	}

	other := n.add("second", second, conf)
	if other == addr {
		t.Errorf("both containers have %s", addr)
	}
	if again := n.add("first", first, conf); again != addr {
		t.Errorf("first had %s, and has %s after another ADD", addr, again)
	}
	if _, err := n.cni("DEL", "first", first, conf); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{other + " second"}, n.held()); diff != "" {
		t.Errorf("held after DEL (-want +got):\n%s", diff)
	}
	n.ctl(0, "ledger", "check")
}

// Reference counts survive, so that the last one to use hostAccess is the one
// that ends it.
func TestRebuildKeepsUses(t *testing.T) {
	n := newNode(t)
	c, plain := namespace(t), namespace(t)
	conf := n.conf(`"hostAccess":true,`)
	n.add("reached", c, conf)
	n.add("plain", plain, n.conf(""))
	before := n.show("reached")
	if want := (ipam.Uses{Parent: "eth1", HostAccess: true}); before.Uses != want {
		t.Fatalf("before: %+v", before.Uses)
	}
	n.lose()
	n.rebuild()
	if diff := cmp.Diff(before, n.show("reached"), beforeTheRebuild); diff != "" {
		t.Errorf("attachment after the rebuild (-before +after):\n%s", diff)
	}
	if got := n.show("plain").Uses; got != (ipam.Uses{}) {
		t.Errorf("plain uses %+v", got)
	}
	if _, err := n.cni("DEL", "reached", c, conf); err != nil {
		t.Fatal(err)
	}
	n.do(func() error {
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		if l, err := h.ByName(link.SiblingName("eth1")); err == nil {
			t.Errorf("%s is left on the host", l.Name)
		}
		return nil
	})
}

// An address on a link that is not ours may be one that our IPAM gave to
// another plugin: it is not given out again.
func TestRebuildReservesAddressesOfOthers(t *testing.T) {
	n := newNode(t)
	other, c := namespace(t), namespace(t)
	n.add("c", c, n.conf("")) // makes the ledger
	if _, err := n.cni("DEL", "c", c, n.conf("")); err != nil {
		t.Fatal(err)
	}
	n.lose()
	n.addLink(other, link.Macvlan{Mode: link.ModeBridge}, n.eth1, "")
	err := other.Do(func(ns.NetNS) error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, s := range []string{"198.51.100.10/24", "169.254.77.77/16"} {
			addr, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, addr); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	n.rebuild()
	out := n.ctl(0, "address", "show", "198.51.100.10")
	if !strings.Contains(out, "reserved") || !strings.Contains(out, "found in use by eth0 in "+other.Path()) {
		t.Errorf("address of another plugin:\n%s", out)
	}
	// The host's own and link-local ones are no business of the ledger.
	n.ctl(1, "address", "show", "198.51.100.200")
	n.ctl(1, "address", "show", "169.254.77.77")
	if got := n.add("c", c, n.conf("")); got == "198.51.100.10/24" {
		t.Errorf("%s was given out a second time", got)
	}
	n.ctl(0, "address", "release", "198.51.100.10")
}

// Whether the holder lives is asked of the kernel.
func TestReleaseAsksTheKernel(t *testing.T) {
	n := newNode(t)
	c := namespace(t)
	addr, _, _ := strings.Cut(n.add("c", c, n.conf("")), "/")
	if out := n.ctl(1, "address", "release", addr); !strings.Contains(out, "is in use: held by eth0 of container c ") {
		t.Errorf("release:\n%s", out)
	}
	n.ctl(0, "ledger", "check")
	remove(t, c)
	if out := n.ctl(1, "ledger", "check"); !strings.Contains(out, "underlayctl: 1 address leaked\n") {
		t.Errorf("check:\n%s", out)
	}
	n.ctl(0, "address", "release", addr)
	n.ctl(0, "ledger", "check")
	if held := n.held(); len(held) > 0 {
		t.Errorf("held: %v", held)
	}
}
