// Package linktest lets a test say what it needs of the kernel. Not every
// kernel has every kind of link: a test that needs one calls Need, is skipped
// where the kernel lacks it, and is run again in a guest whose kernel has it
// (e2e/vm/suite). There, nothing may be missing. So a skip never hides that a
// feature goes untested, and this package is the only place that skips for
// want of one.
//
// What a kernel has is found out by making the thing, in a network namespace
// that is gone right after: neither names of modules nor the kernel's version
// tell what it can do. It needs root. It leaves out loading modules, which is
// the kernel's own business, and how the guest is made.
package linktest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
)

// Guest is the environment variable that is set, to anything, for tests that
// run in the guest: the last kernel there is to try.
const Guest = "UNDERLAY_GUEST"

// Need skips the test if the kernel lacks one of the kinds: "dummy", "ipvlan",
// "vlan", "vrf", or "iptables", which is the legacy one's nat and filter. In
// the guest it fails the test instead.
func Need(t testing.TB, kinds ...string) {
	t.Helper()
	for _, kind := range kinds {
		judge(t, kind, probe(kind), true)
	}
}

// Lack is for a test of what is said on a kernel that lacks the kind. It skips
// the test on any other: nothing is wanting there, so nothing goes untested.
// What needs the kind is a test of its own, since the guest runs only tests
// that never skip.
func Lack(t testing.TB, kind string) {
	t.Helper()
	judge(t, kind, probe(kind), false)
}

// judge ends the test unless the kernel has the kind as wanted.
func judge(t testing.TB, kind string, probed error, wanted bool) {
	t.Helper()
	lacks := errors.Is(probed, errors.ErrUnsupported)
	switch {
	case probed != nil && !lacks:
		t.Fatalf("find out whether the kernel has %s: %v", kind, probed)
	case lacks != wanted:
	case !wanted:
		t.Skipf("this kernel has %s: there is no refusal to see", kind)
	case os.Getenv(Guest) != "":
		t.Fatalf("neither kernel has %s; the guest's says: %v", kind, probed)
	default:
		t.Skipf("this kernel has no %s (%v); make test-guest runs the test on one that does", kind, probed)
	}
}

// probe makes one of the kind and returns an error that is ErrUnsupported if
// the kernel has no such thing.
func probe(kind string) error {
	attempts := map[string]func(parent int) error{
		"dummy": func(int) error { return netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs(0)}) },
		"ipvlan": func(parent int) error {
			// The mode that a kernel may have been built without.
			return netlink.LinkAdd(&netlink.IPVlan{LinkAttrs: attrs(parent), Mode: netlink.IPVLAN_MODE_L3S})
		},
		"iptables": func(int) error { return iptables() },
		"vlan": func(parent int) error {
			return netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs(parent), VlanId: 7})
		},
		"vrf": func(int) error { return netlink.LinkAdd(&netlink.Vrf{LinkAttrs: attrs(0), Table: 7}) },
	}
	attempt, ok := attempts[kind]
	if !ok {
		return fmt.Errorf("there is no probe for %q", kind)
	}

	here, err := netns.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer here.Close()
	// A thread of its own, which takes the namespace with it when it ends.
	return here.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		bridge := netlink.NewLinkAttrs()
		bridge.Name = "parent"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: bridge}); err != nil {
			// Hidden from those who ask for unsupported: it is not what is probed.
			return fmt.Errorf("make a bridge as parent: %v", err)
		}
		parent, err := netlink.LinkByName("parent")
		if err != nil {
			return err
		}
		return attempt(parent.Attrs().Index)
	})
}

func attrs(parent int) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.ParentIndex = "probe", parent
	return a
}

// iptables lists the tables, which makes the kernel load them.
func iptables() error {
	for _, table := range []string{"nat", "filter"} {
		var complaint bytes.Buffer
		list := exec.Command("iptables-legacy", "--table", table, "--list-rules")
		list.Stderr = &complaint
		err := list.Run()
		var exit *exec.ExitError
		switch {
		case errors.As(err, &exit):
			return fmt.Errorf("%w: %q", errors.ErrUnsupported, complaint.String())
		case errors.Is(err, exec.ErrNotFound):
			return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
		case err != nil:
			return err
		}
	}
	return nil
}
