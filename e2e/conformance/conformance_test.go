// Package conformance runs the test suites that the plugins of
// containernetworking/plugins v1.9.1 have, macvlan's 168 specs and ipvlan's 10,
// against the binaries of the same name: every spec has to run and to pass. A
// suite lives in package main beside the reference plugin and calls its
// functions in process; in a copy of the module, testdata/shim.go takes the
// plugin's place and executes the binary.
//
// One thing in the copied tests is changed: the masters are dummy devices there,
// and they are down. Our plugins refuse a parent that is administratively down,
// where the reference does not look, so the masters are up from the start. Not
// every kernel has dummies, so macvlan's are bridges. The reference itself is
// held to the same copy, to prove that the copy is fair, and a binary that does
// nothing, to prove that it is strict.
//
// Not every kernel has ipvlan and 802.1q either: what needs them runs in a guest
// (e2e/vm), compiled on the machine.
//
// The suites send no packets and test neither undo nor GC nor concurrency: they
// are necessary and far from enough.
package conformance

import (
	"flag"
	"path/filepath"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/e2e/binaries"
)

// What the release has. A suite that shrinks must not look like one that passes.
const (
	macvlanSpecs = 168 // 8 specs x 7 CNI versions x 3 values of linkInContainer
	ipvlanSpecs  = 10  // 5 specs x 2 values of linkInContainer
)

var judged = flag.String("bin", "", "folder of the macvlan and ipvlan to judge; by default this tree's are built")

// up has the masters up, as an administrator would.
var up = change{"linkAttrs := netlink.NewLinkAttrs()", "linkAttrs := netlink.NewLinkAttrs(); linkAttrs.Flags |= net.FlagUp", 2}

func TestMacvlan(t *testing.T) {
	t.Parallel()
	s := newSuite(t, "macvlan", up, change{"&netlink.Dummy{", "&netlink.Bridge{", 2})
	s.judge(t, onMachine, macvlanSpecs)
}

func TestIpvlan(t *testing.T) {
	t.Parallel()
	s := newSuite(t, "ipvlan", up)
	s.judge(t, inGuest, ipvlanSpecs)
}

// TestVLAN gives the suites a master that is a VLAN sub-interface, "eth0.5", and
// that nobody has made. Only masters on the host can be; those in the container
// stay what they are. Left out are the specs without a master, which make it the
// default route's, and of macvlan's all versions but two.
func TestVLAN(t *testing.T) {
	t.Parallel()
	onVLAN := change{"masterInterface := MASTER_NAME\n", "masterInterface := MASTER_NAME + \".5\"\n", 1}
	tests := []struct {
		plugin string
		specs  int
		add    int // of them, to such a master
		flags  []string
	}{
		{"macvlan", 7 * 2 * 3, 6 * 2 * 2, []string{`-ginkgo.focus=\[(0\.4\.0|1\.1\.0)\]`}},
		{"ipvlan", 4 * 2, 3, nil},
	}
	for _, tt := range tests {
		t.Run(tt.plugin, func(t *testing.T) {
			s := newSuite(t, tt.plugin, up, onVLAN)
			s.flags = append(tt.flags, "-ginkgo.skip=without master config")
			s.passes(t, inGuest, tt.specs)
			t.Run("the reference finds no master", func(t *testing.T) {
				r := s.run(t, inGuest, filepath.Join(s.bin, s.plugin))
				if r.total != tt.specs || len(r.failures) != tt.add {
					t.Errorf("%d of %d specs failed, want %d of %d: the harness judges something else", len(r.failures), r.total, tt.add, tt.specs)
				}
			})
		})
	}
}

// judge has the suite judge our plugin, the reference and one that does nothing.
func (s *suite) judge(t *testing.T, at place, specs int) {
	s.passes(t, at, specs)
	t.Run("the reference passes", func(t *testing.T) {
		if r := s.run(t, at, filepath.Join(s.bin, s.plugin)); r.passed != specs || r.total != specs {
			t.Errorf("%d of %d specs passed: the harness is at fault\n%s", r.passed, r.total, strings.Join(r.failures, "\n"))
		}
	})
	t.Run("a plugin that does nothing fails", func(t *testing.T) {
		if r := s.run(t, at, "/bin/true"); r.total != specs || r.passed > specs/4 {
			t.Errorf("%d of %d specs passed: the harness judges nothing", r.passed, r.total)
		}
	})
}

// passes has the suite judge our plugin.
func (s *suite) passes(t *testing.T, at place, specs int) {
	t.Run("ours passes", func(t *testing.T) {
		dir := *judged
		if dir == "" {
			dir = t.TempDir()
			if err := binaries.Ours(t.Context(), dir); err != nil {
				t.Fatal(err)
			}
		}
		r := s.run(t, at, filepath.Join(dir, s.plugin))
		for _, failure := range r.failures {
			t.Error(failure)
		}
		if r.passed != specs || r.total != specs {
			t.Errorf("%d of %d specs passed, want %d of %d", r.passed, r.total, specs, specs)
		}
		t.Logf("%d of %d specs passed, on Linux %s", r.passed, r.total, r.kernel)
	})
}
