package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/ipam"
)

func TestOpenMakesALedgerOnce(t *testing.T) {
	o := testOptions(t, newClock())
	l := open(t, o)
	first, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	if len(first.ID) != 36 || first.Schema != schema || first.MachineID != "machine" || first.BootID != "boot-1" {
		t.Errorf("info of a new ledger: %+v", first)
	}
	shut(t, l)
	second, err := open(t, o).Info()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, second, cmpopts.IgnoreFields(Info{}, "FreeBytes")); diff != "" {
		t.Errorf("a plain open has changed something (-want +got):\n%s", diff)
	}
	for path, mode := range map[string]fs.FileMode{
		o.DataDir: fs.ModeDir | 0o700, o.RunDir: fs.ModeDir | 0o755, o.dbPath(): 0o600, o.markPath(): 0o600,
		filepath.Join(o.DataDir, lockName): 0o600,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != mode {
			t.Errorf("%s has mode %s, want %s", path, info.Mode(), mode)
		}
	}
	if first.Size != 8<<20 {
		t.Errorf("a new ledger has %d bytes", first.Size)
	}
}

// A plain open and close, a known ADD and a needless DEL leave every byte as
// it was.
func TestNothingToDoWritesNothing(t *testing.T) {
	o := testOptions(t, newClock())
	l := open(t, o)
	req := request(pool("lan", set(t, "10.0.0.0/24")), "a")
	add(t, l, req)
	shut(t, l)
	before := contents(t, o)

	l = open(t, o)
	again, err := l.Allocate(req, nil)
	if err != nil || !again.Known {
		t.Errorf("second ADD: %+v, %v", again, err)
	}
	if r := del(t, l, "unknown"); len(r.Records) > 0 {
		t.Errorf("release of an unknown attachment: %+v", r)
	}
	shut(t, l)
	if contents(t, o) != before {
		t.Error("the files have changed")
	}
}

func TestNewerSchema(t *testing.T) {
	o := testOptions(t, newClock())
	l := open(t, o)
	err := l.update(func(t *tx) error {
		return t.put(bucketMeta, keySchema, binary.BigEndian.AppendUint32(nil, schema+1))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.file = nil
	before := contents(t, o)
	for _, readOnly := range []bool{false, true} {
		o.ReadOnly = readOnly
		if _, err := Open(t.Context(), o); !errors.Is(err, ErrNewerSchema) {
			t.Errorf("read-only %v: %v", readOnly, err)
		}
	}
	if contents(t, o) != before {
		t.Error("the files have changed")
	}
}

func TestReadOnly(t *testing.T) {
	o := testOptions(t, newClock())
	reading := o
	reading.ReadOnly = true
	if _, err := Open(t.Context(), reading); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open for reading where nothing is: %v", err)
	}
	if _, err := os.Stat(o.DataDir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("opening for reading has made a folder")
	}
	p := pool("lan", set(t, "10.0.0.0/24"))
	l := open(t, o)
	add(t, l, request(p, "a"))
	shut(t, l)
	if err := Spool([]string{o.DataDir}, ipam.ReleaseRequest{Attachment: att("a"), Before: o.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	before := contents(t, o)
	reading.BootID = "boot-2"
	r1, r2 := open(t, reading), open(t, reading) // side by side
	wantStates(t, r1, "10.0.0.2 held a")
	wantStates(t, r2, "10.0.0.2 held a")
	if _, err := r1.Allocate(request(p, "b"), nil); !errors.Is(err, ErrReadOnly) {
		t.Errorf("allocate: %v", err)
	}
	if _, err := r1.Release(ipam.ReleaseRequest{Attachment: att("a")}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("release: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, o); !errors.Is(err, ErrLocked) {
		t.Errorf("open for writing beside readers: %v", err)
	}
	if contents(t, o) != before {
		t.Error("the files have changed")
	}
}

func TestReboot(t *testing.T) {
	c := newClock()
	o := testOptions(t, c)
	p := pool("lan", set(t, "10.0.0.0/24"))
	l := open(t, o)
	add(t, l, request(p, "a"))
	uses := request(ipam.Pool{}, "b")
	uses.Uses = ipam.Uses{Parent: "eth1", VLAN: 5}
	add(t, l, uses)
	shut(t, l)

	c.add(time.Minute)
	o.BootID = "boot-2"
	l = open(t, o)
	wantStates(t, l, "10.0.0.2 cooling a")
	if vlan, _, err := l.Users(uses.Uses, 0); err != nil || len(vlan) > 0 {
		t.Errorf("users after the reboot: %v, %v", vlan, err)
	}
	// The container that comes back finds its address.
	if got := add(t, l, request(p, "a")); got != "10.0.0.2" {
		t.Errorf("address after the reboot: %s", got)
	}
	seq := sequence(t, l)
	shut(t, l)
	if got := sequence(t, open(t, o)); got != seq {
		t.Errorf("the second open of a boot has written: %d, want %d", got, seq)
	}
}

// A commit that breaks leaves a ledger that gives out nothing, for this
// process and for those that come after it.
func TestBrokenCommit(t *testing.T) {
	o := testOptions(t, newClock())
	p := pool("lan", set(t, "10.0.0.0/24"))
	l := open(t, o)
	add(t, l, request(p, "a"))
	breakFile(t, l)
	if _, err := l.Allocate(request(p, "b"), nil); !errors.Is(err, errBroken) {
		t.Fatalf("allocate: %v", err)
	}
	if _, err := l.Allocate(request(p, "c"), nil); !errors.Is(err, errBroken) || !errors.Is(l.Refused(), errBroken) {
		t.Errorf("allocate after it: %v, %v", err, l.Refused())
	}
	if _, err := l.Release(ipam.ReleaseRequest{Attachment: att("a")}); !errors.Is(err, errBroken) {
		t.Errorf("release: %v", err)
	}
	if err := l.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	l.file = nil

	l = open(t, o)
	if _, err := l.Allocate(request(p, "b"), nil); !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "underlayctl ledger rebuild") {
		t.Errorf("allocate in the next process: %v", err)
	}
	if findings, err := l.Check(); err != nil || len(findings) != 1 {
		t.Errorf("check: %q, %v", findings, err)
	}
	wantStates(t, l, "10.0.0.2 held a")
	del(t, l, "a")
	shut(t, l)
	if _, err := open(t, o).Allocate(request(p, "b"), nil); !errors.Is(err, errBroken) {
		t.Errorf("allocate after a release: %v", err)
	}
}

func TestExport(t *testing.T) {
	l := open(t, testOptions(t, newClock()))
	p := pool("lan", set(t, "10.0.0.0/24"))
	add(t, l, request(p, "a"))
	add(t, l, request(p, "b"))
	del(t, l, "b")
	var out bytes.Buffer
	if err := l.Export(&out); err != nil {
		t.Fatal(err)
	}
	var d Dump
	if err := json.Unmarshal(out.Bytes(), &d); err != nil {
		t.Fatal(err)
	}
	a, recs, found, err := l.Attachment(att("a"))
	if err != nil || !found || len(recs) != 1 {
		t.Fatal(a, recs, found, err)
	}
	if diff := cmp.Diff(a, d.Attachments[0], cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if len(d.Pools) != 1 || len(d.Attachments) != 1 || len(d.Addresses) != 2 || d.Ledger.Held != 1 || d.Ledger.Cooling != 1 {
		t.Errorf("document: %s", out.String())
	}
}
