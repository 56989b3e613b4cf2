package e2e_test

import (
	"crypto/sha256"
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// In a mount namespace of the plugin's own, whose end takes the mounts along:
// permission bits do not stop root.
const (
	readOnly = `mkdir -p "$0" && mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"`
	tooSmall = `mkdir -p "$0" && mount -t tmpfs -o size=1m none "$0" && exec "$@"`
)

// A ledger that cannot be used is left as it is, and ADD says what to do.
func TestInputLedger(t *testing.T) {
	t.Parallel()
	dataDir := func(h *lab.Host) string { return h.DataDir }
	runDir := func(h *lab.Host) string { return h.RunDir }
	tests := []struct {
		name string
		conf keys
		// used: another attachment has been made before.
		used bool
		// spoil is what happens to the ledger then.
		spoil func(t *testing.T, h *lab.Host)
		// script runs the plugin, "$@", with the folder as "$0".
		script string
		folder func(h *lab.Host) string
		texts  []string
	}{
		{name: "damaged", used: true, spoil: damage, texts: []string{"ledger.db", "damaged", "underlayctl ledger"}},
		{name: "cut short", used: true, spoil: func(t *testing.T, h *lab.Host) {
			if err := os.Truncate(filepath.Join(h.DataDir, "ledger.db"), 0); err != nil {
				t.Fatal(err)
			}
		}, texts: []string{"ledger.db", "damaged", "underlayctl ledger"}},
		{name: "lost", used: true, spoil: func(t *testing.T, h *lab.Host) {
			if err := os.Remove(filepath.Join(h.DataDir, "ledger.db")); err != nil {
				t.Fatal(err)
			}
		}, texts: []string{"ledger.db", "missing", "underlayctl ledger rebuild"}},
		{name: "of yesterday", used: true, spoil: restore, texts: []string{"ledger.db", "transaction", "underlayctl ledger rebuild"}},
		{name: "newer", used: true, spoil: newer, texts: []string{"ledger.db", "newer version", "schema 99", "install"}},
		{name: "read-only, used", used: true, script: readOnly, folder: dataDir, texts: []string{"ledger.db", "read-only"}},
		{name: "read-only, new", script: readOnly, folder: dataDir, texts: []string{"ledger.db", "read-only"}},
		{name: "read-only runDir, used", used: true, script: readOnly, folder: runDir, texts: []string{"ledger.seq", "read-only"}},
		{name: "read-only runDir, new", script: readOnly, folder: runDir, texts: []string{"ledger.seq", "read-only"}},
		{name: "disk full", script: tooSmall, folder: dataDir, texts: []string{"ledger.db", "no space"}},
		{name: "dataDir cannot be", conf: keys{"dataDir": "/proc/none"}, texts: []string{"/proc/none"}},
		{name: "dataDir is a file", conf: keys{"dataDir": "/etc/hostname"}, texts: []string{"/etc/hostname"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			c1, rt := container(t, h, "c1")
			if test.used {
				attach(t, h, "c0", lan(t, h, nil))
			}
			if test.spoil != nil {
				test.spoil(t, h)
			}
			add := call{verb: "ADD", rt: rt}
			if test.script != "" {
				add.through = []string{"unshare", "--mount", "sh", "-c", test.script, test.folder(h)}
			}
			before := filesOf(t, h.DataDir)
			_, err := add.run(t, h, placed(t, h, test.conf))
			wantError(t, err, codeLedger, test.texts...)
			wantNoLink(t, c1)
			// One that has never been used may have been made.
			if diff := cmp.Diff(before, filesOf(t, h.DataDir)); diff != "" && test.used {
				t.Errorf("files of the ledger changed (-before +after):\n%s", diff)
			}
		})
	}
}

// filesOf returns the digests of the files in a folder.
func filesOf(t *testing.T, folder string) map[string][sha256.Size]byte {
	t.Helper()
	files := map[string][sha256.Size]byte{}
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		files[path] = sha256.Sum256(content)
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return files
}

// restore puts a ledger back that does not know the last attachment.
func restore(t *testing.T, h *lab.Host) {
	t.Helper()
	db := filepath.Join(h.DataDir, "ledger.db")
	old, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	attach(t, h, "c9", lan(t, h, nil))
	if err := os.WriteFile(db, old, 0o600); err != nil {
		t.Fatal(err)
	}
}

// newer makes the ledger one of a version to come.
func newer(t *testing.T, h *lab.Host) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(h.DataDir, "ledger.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("schema"), binary.BigEndian.AppendUint32(nil, 99))
	})
	if err != nil {
		t.Fatal(err)
	}
}
