package cli_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/underlay-cni/underlay/pkg/link"
)

// addAddress puts an address onto the eth0 of a container.
func addAddress(t *testing.T, at ns.NetNS, addr string) {
	t.Helper()
	err := at.Do(func(ns.NetNS) error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(addr)
		return errors.Join(err, netlink.AddrAdd(l, a))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A container that another plugin attached, with host-local, goes on: its address
// is held until its DEL, which our plugin gets then. What host-local leaked is
// kept out of use.
func TestMigrateEndToEnd(t *testing.T) {
	n := newNode(t)
	old := namespace(t)
	n.addLink(old, link.Macvlan{Mode: link.ModeBridge}, n.eth1, "")
	addAddress(t, old, "198.51.100.10/24")
	dir := filepath.Join(t.TempDir(), n.network)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	put := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("198.51.100.10", "old\r\neth0")
	put("198.51.100.11", "leaked\r\neth0")
	put("198.51.100.12", "")
	put("last_reserved_ip.0", "198.51.100.12")
	put("lock", "")
	if out := n.ctl(1, "ledger", "migrate", "host-local", dir); !strings.Contains(out, "198.51.100.12:1: the container's ID is missing") {
		t.Errorf("with a bad file:\n%s", out)
	}
	n.ctl(1, "address", "list") // there is no ledger yet
	if err := os.Remove(filepath.Join(dir, "198.51.100.12")); err != nil {
		t.Fatal(err)
	}
	if out := n.ctl(0, "ledger", "migrate", "host-local", dir, "--dry-run"); !strings.Contains(out, "would write 1 address of network "+n.network+" as held and 1 as reserved") {
		t.Errorf("dry run:\n%s", out)
	}
	n.ctl(1, "address", "list")
	if out := n.ctl(0, "ledger", "migrate", "host-local", dir); !strings.Contains(out, "wrote 1 address ") {
		t.Errorf("migrate:\n%s", out)
	}
	if diff := cmp.Diff([]string{"198.51.100.10/24 old"}, n.held()); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
	out := n.ctl(0, "address", "show", "198.51.100.11")
	if !strings.Contains(out, "198.51.100.11/24") || !strings.Contains(out, "host-local gave it to container leaked, which is not running here ("+filepath.Join(dir, "198.51.100.11")+":1)") {
		t.Errorf("leaked:\n%s", out)
	}
	n.ctl(0, "ledger", "check")
	if s := n.show("old"); s.NetnsState != "alive" || s.MAC == "" {
		t.Errorf("adopted: %+v", s)
	}
	if out := n.ctl(1, "ledger", "migrate", "host-local", dir); !strings.Contains(out, "198.51.100.10:1: address 198.51.100.10 is in the ledger already: it is held") {
		t.Errorf("again:\n%s", out)
	}

	c := namespace(t)
	if got := n.add("new", c, n.conf("")); got != "198.51.100.12/24" {
		t.Errorf("the next address is %s", got)
	}
	if _, err := n.cni("DEL", "old", old, n.conf("")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"198.51.100.12/24 new"}, n.held()); diff != "" {
		t.Errorf("held after DEL (-want +got):\n%s", diff)
	}
	n.ctl(0, "ledger", "check")
}
