package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// oneAddress is the ipam object of a pool that two attachments do not fit in.
func oneAddress(more string) json.RawMessage {
	return json.RawMessage(`{"type": "underlay", "subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "rangeEnd": "192.0.2.10"` + more + `}`)
}

// STATUS says with code 50 why an ADD would fail. A pool that is full makes it
// fail only where the user asks for that: containerd takes a node whose STATUS
// fails for not ready.
func TestStatus(t *testing.T) {
	t.Parallel()
	exhaust := func(t *testing.T, h *lab.Host) {
		n, rt := container(t, h, "c1")
		if _, err := h.CNI(ours).Add(t.Context(), lan(t, h, keys{"ipam": oneAddress("")}), rt); err != nil {
			t.Fatalf("ADD %s: %v", n.ID, err)
		}
	}
	ledgerIs := func(change func(*testing.T, *lab.Host)) func(*testing.T, *lab.Host) {
		return func(t *testing.T, h *lab.Host) {
			attach(t, h, "c1", lan(t, h, nil))
			change(t, h)
		}
	}
	tests := []struct {
		name  string
		conf  keys
		make  func(t *testing.T, h *lab.Host)
		code  uint // 0 means that STATUS succeeds
		texts []string
	}{
		{name: "before any ADD"},
		{name: "in use", make: ledgerIs(func(*testing.T, *lab.Host) {})},
		{name: "parent missing", conf: keys{"master": "nosuch0"}, code: codeStatus, texts: []string{"master", "nosuch0"}},
		// A plugin before in the chain may tell it, as vxlan does with a segment.
		{name: "no default route", conf: keys{"master": ""}},
		{name: "parent down", code: codeStatus, texts: []string{"master", lab.Parent, "down"}, make: func(t *testing.T, h *lab.Host) {
			mustDo(t, h.Namespace, "ip", "link", "set", lab.Parent, "down")
		}},
		{name: "ledger damaged", code: codeStatus, texts: []string{"ledger.db", "damaged", "underlayctl ledger"}, make: ledgerIs(damage)},
		{name: "ledger lost", code: codeStatus, texts: []string{"ledger.db", "missing", "underlayctl ledger rebuild"},
			make: ledgerIs(func(t *testing.T, h *lab.Host) {
				if err := os.Remove(filepath.Join(h.DataDir, "ledger.db")); err != nil {
					t.Fatal(err)
				}
			})},
		{name: "ledger has no place", conf: keys{"dataDir": "/proc/none"}, code: codeStatus, texts: []string{"/proc/none"}},
		{name: "exhausted", conf: keys{"ipam": oneAddress("")}, make: exhaust},
		{name: "exhausted, statusOnExhausted", conf: keys{"ipam": oneAddress(`, "statusOnExhausted": true`)}, make: exhaust,
			code: codeStatus, texts: []string{`"lan"`, "192.0.2.10", "1 usable, 1 held"}},
		{name: "not exhausted, statusOnExhausted", conf: keys{"ipam": oneAddress(`, "statusOnExhausted": true`)}},
		{name: "invalid", conf: keys{"ipam": oneAddress(`, "gateway": "198.51.100.1"`)}, code: codeConfig, texts: []string{"ipam.gateway"}},
		{name: "foreign ipam, ledger damaged", conf: keys{"hostAccess": true, "ipam": keys{"type": "host-local", "subnet": "192.0.2.0/24"}},
			make: ledgerIs(damage), code: codeStatus, texts: []string{"ledger.db", "damaged"}},
		{name: "foreign ipam missing", conf: keys{"ipam": keys{"type": "nosuch"}}, code: codeStatus, texts: []string{"nosuch"}},
		{name: "without ipam", conf: keys{"ipam": nil}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			if test.make != nil {
				test.make(t, h)
			}
			_, err := call{verb: "STATUS"}.run(t, h, placed(t, h, test.conf))
			if test.code == 0 {
				wantOK(t, "STATUS", err)
			} else {
				wantError(t, err, test.code, test.texts...)
			}
		})
	}
}

// The IPAM plugin on its own, for other main plugins, knows no parent.
func TestStatusOfIPAM(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	conf := placed(t, h, keys{"type": "bridge", "master": nil})
	_, err := call{verb: "STATUS", plugin: "underlay"}.run(t, h, conf)
	wantOK(t, "STATUS", err)
	attach(t, h, "c1", lan(t, h, nil))
	damage(t, h)
	_, err = call{verb: "STATUS", plugin: "underlay"}.run(t, h, conf)
	wantError(t, err, codeStatus, "ledger.db", "damaged")
}
