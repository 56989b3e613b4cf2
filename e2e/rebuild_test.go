package e2e_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// A ledger that was lost knows again how the parents of ipvlan links are set,
// and who uses which sub-interface: from the links alone.
func TestRebuildOfIpvlan(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	h := oneHost(t)
	// No other test on this machine has a network of that name.
	conf := func(mode string, vlan int) string {
		return lan(t, h, keys{"name": "lost", "type": "ipvlan", "mode": mode, "flag": "private", "vlan": vlan})
	}
	plain := attach(t, h, "plain", conf("l2", 0))
	tagged := attach(t, h, "tagged", conf("l3s", 5))
	before := readBooks(t, h)
	if err := os.Remove(filepath.Join(h.DataDir, "ledger.db")); err != nil {
		t.Fatal(err)
	}
	box, rt := container(t, h, "late")
	calls := h.CNI(ours)
	_, err := calls.Add(t.Context(), conf("l2", 0), rt)
	wantError(t, err, codeLedger, "underlayctl ledger rebuild")

	rebuild(t, h, "lost")
	opts := cmp.Options{
		// What links do not tell; in l3s there is no gateway on one. And a namespace
		// may have more than one path.
		cmpopts.IgnoreFields(ipam.Netns{}, "Path"),
		cmpopts.IgnoreFields(ipam.AttachmentRecord{}, "Since", "Runtime", "Version", "Token"),
		cmpopts.IgnoreFields(ipam.Record{}, "Since", "Runtime", "Gateway"),
		cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
	}
	if diff := cmp.Diff(before, readBooks(t, h), opts); diff != "" {
		t.Errorf("the ledger (-before +after):\n%s", diff)
	}
	for _, a := range []*attachment{plain, tagged} {
		wantOK(t, "CHECK of "+a.ID, a.cni.Check(t.Context(), a.conf, a.rt))
	}

	// Others are held to it.
	_, err = calls.Add(t.Context(), conf("l3", 0), rt)
	wantError(t, err, codeParent, "ipvlan mode l2, flag private", "ipvlan mode l3, flag private", "plain")
	_, err = calls.Add(t.Context(), conf("l2", 5), rt)
	wantError(t, err, codeParent, "ipvlan mode l3s, flag private", "ipvlan mode l2, flag private", "tagged")
	wantNoLink(t, box)
	late := attach(t, h, "later", conf("l3s", 5))
	if a := late.addrs[0]; a == plain.addrs[0] || a == tagged.addrs[0] {
		t.Errorf("%s was given out twice", a)
	}

	// The last user of the sub-interface takes it along.
	tagged.del()
	mustLink(t, h.Namespace, "eth1.5")
	late.del()
	if _, there, err := h.Link(t.Context(), "eth1.5"); there || err != nil {
		t.Errorf("eth1.5 is left: %v, %v", there, err)
	}
	plain.del()
	wantNothingHeld(t, h)
}

// rebuild makes a host's ledger anew for a network.
func rebuild(t *testing.T, h *lab.Host, network string) {
	t.Helper()
	mustDo(t, h.Namespace, filepath.Join(ours, "underlayctl"), "ledger", "rebuild",
		"--network", network, "--data-dir", h.DataDir, "--run-dir", h.RunDir)
}
