package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
	"github.com/underlay-cni/underlay/ipam/ledger/rest"
)

// breakFile has every later write to the ledger's file fail, as on a disk
// that goes away: it puts a descriptor for reading in the place of the
// ledger's own.
func breakFile(t *testing.T, l *Ledger) {
	t.Helper()
	f, err := os.Open(l.o.dbPath())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for fd := range 1024 {
		if path, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); path == l.o.dbPath() && fd != int(f.Fd()) {
			if err := unix.Dup3(int(f.Fd()), fd, unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("the ledger's file is not open")
}

// sample returns the used part of a ledger's file and what it says. It is
// large enough for branch pages.
func sample(t testing.TB) (file []byte, records []string) {
	t.Helper()
	o := testOptions(t, newClock())
	p := pool("lan", set(t, "10.0.0.0/24"))
	fill(t, o, p, 40)
	l := open(t, o)
	del(t, l, fmt.Sprintf("filler-%032d", 3))
	uses := request(p, "user")
	uses.Uses = ipam.Uses{Parent: "eth1", VLAN: 5}
	add(t, l, uses)
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	records = states(t, l)
	shut(t, l)
	file, err = os.ReadFile(o.dbPath())
	if err != nil {
		t.Fatal(err)
	}
	return file[:info.Size-info.FreeBytes+8<<10], records
}

func TestNotALedger(t *testing.T) {
	tests := []struct {
		name string
		make func(path string) error
	}{
		{"empty", func(p string) error { return os.WriteFile(p, nil, 0o600) }},
		{"short", func(p string) error { return os.WriteFile(p, []byte("hello"), 0o600) }},
		{"text", func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("hello\n"), 1<<16), 0o600) }},
		{"zeros", func(p string) error { return os.WriteFile(p, make([]byte, 1<<20), 0o600) }},
		{"folder", func(p string) error { return os.Mkdir(p, 0o700) }},
		{"pipe", func(p string) error { return unix.Mkfifo(p, 0o600) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := testOptions(t, newClock())
			if err := boltfile.MakeDir(o.DataDir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := tt.make(o.dbPath()); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(o.dbPath())
			if err != nil {
				t.Fatal(err)
			}
			for _, o.ReadOnly = range []bool{false, true} {
				_, err := Open(t.Context(), o)
				var explained *ipam.LedgerError
				if !errors.Is(err, ErrCorrupt) || !errors.As(err, &explained) || !strings.Contains(err.Error(), "underlayctl ledger rebuild") {
					t.Errorf("open: %v", err)
				}
			}
			after, err := os.Lstat(o.dbPath())
			if err != nil || after.Size() != before.Size() || after.Mode() != before.Mode() || !after.ModTime().Equal(before.ModTime()) {
				t.Errorf("it was changed: %v, %v", after, err)
			}
			o.ReadOnly = false
			if err := Rebuild(t.Context(), o, nil); err != nil {
				t.Fatal(err)
			}
			shut(t, open(t, o))
			kept, err := filepath.Glob(o.dbPath() + ".*.bad")
			if err != nil || len(kept) != 1 {
				t.Errorf("kept beside it: %v, %v", kept, err)
			}
		})
	}
}

// Whatever page goes bad in whatever way, the ledger either says so or does
// not need that page.
func TestBadPages(t *testing.T) {
	good, records := sample(t)
	const page = 4096
	n := len(good) / page
	garbage := bytes.Repeat([]byte{0xa5, 0x01, 0xff, 0x7f}, page/4)
	ways := map[string]func(b []byte, i int){
		"zeros":        func(b []byte, i int) { clear(b[i*page : (i+1)*page]) },
		"garbage":      func(b []byte, i int) { copy(b[i*page:], garbage) },
		"garbage body": func(b []byte, i int) { copy(b[i*page+16:(i+1)*page], garbage) },
		"other page":   func(b []byte, i int) { copy(b[i*page:(i+1)*page], b[(i+1)%n*page:]) },
		"loops": func(b []byte, i int) { // all it refers to is itself
			for at := i*page + 24; at < (i+1)*page; at += 16 {
				binary.NativeEndian.PutUint64(b[at:], uint64(i))
			}
		},
		// bbolt would make room for as many free pages as this one counts.
		"endless": func(b []byte, i int) { copy(b[i*page+10:], bytes.Repeat([]byte{0xff}, 22)); b[i*page+23] = 0 },
		"cut off": nil,
	}
	refused := 0
	for name, spoil := range ways {
		for i := 2; i < n; i++ {
			b := bytes.Clone(good)
			if spoil == nil {
				b = b[:i*page]
			} else {
				spoil(b, i)
			}
			o := testOptions(t, newClock())
			if err := boltfile.MakeDir(o.DataDir, 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, o.dbPath(), b)
			l, err := Open(t.Context(), o)
			if err != nil {
				refused++
				if !errors.Is(err, ErrCorrupt) {
					t.Errorf("%s in page %d: %v", name, i, err)
				}
				continue
			}
			if diff := cmp.Diff(records, states(t, l)); diff != "" {
				t.Errorf("%s in page %d went unnoticed (-want +got):\n%s", name, i, diff)
			}
			sound(t, l)
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if refused < 3*len(ways) {
		t.Errorf("only %d of %d bad files were refused", refused, len(ways)*(n-2))
	}
}

// A page that goes bad after the boot's first open is met by bbolt.
func TestFileGoesBadInUse(t *testing.T) {
	p := pool("lan", set(t, "10.0.0.0/24"))
	ways := map[string]func(path string) error{
		"cut off": func(path string) error { return os.Truncate(path, 16384) },
		"zeros": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt(make([]byte, 1<<20), 8192)
			return errors.Join(err, f.Close())
		},
	}
	for name, spoil := range ways {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t, newClock())
			fill(t, o, p, 100)
			l, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if err := spoil(o.dbPath()); err != nil {
				t.Fatal(err)
			}
			calls := map[string]func() error{
				"allocate":   func() error { _, err := l.Allocate(request(p, "new"), nil); return err },
				"release":    func() error { _, err := l.Release(ipam.ReleaseRequest{Attachment: att("new")}); return err },
				"records":    func() error { return l.Records(func(ipam.Record) error { return nil }) },
				"attachment": func() error { _, _, _, err := l.Attachment(att("new")); return err },
			}
			for what, call := range calls {
				if err := call(); !errors.Is(err, ErrCorrupt) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if findings, _ := l.Check(); len(findings) == 0 {
				t.Error("check finds nothing")
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			// Nothing of it is left to stand in the way of a rebuild.
			if err := Rebuild(t.Context(), o, nil); err != nil {
				t.Error(err)
			}
			shut(t, open(t, o))
		})
	}
}

// Our own mistakes are not taken for damage.
func TestForeignPanicPasses(t *testing.T) {
	l := open(t, testOptions(t, newClock()))
	add(t, l, request(pool("lan", set(t, "10.0.0.0/24")), "a"))
	defer func() {
		if p := recover(); p != "mine" {
			t.Errorf("recovered %v", p)
		}
	}()
	_ = l.Records(func(ipam.Record) error { panic("mine") })
}

// Check finds every way in which records and indexes can differ.
func TestCheckFinds(t *testing.T) {
	a := netip.MustParseAddr("10.0.0.2")
	tests := []struct {
		name   string
		tamper func(t *tx) error
		want   string
	}{
		{"record of nonsense", func(t *tx) error { return t.put(bucketAddress, addrKey(a), []byte("{}")) }, "record of address 10.0.0.2"},
		{"record lost", func(t *tx) error { return t.del(bucketAddress, addrKey(a)) }, "run 10.0.0.2-10.0.0.5 is not that of the records"},
		{"record of nobody", func(t *tx) error {
			rec, err := t.record(a)
			rec.Attachment = att("nobody")
			return errors.Join(err, t.put(bucketAddress, addrKey(a), record.Encode(rec)))
		}, "10.0.0.2/24 is held by lan/nobody/eth0, whose record does not say so"},
		{"no address", func(t *tx) error { return t.put(bucketAddress, []byte("x"), []byte("{}")) }, "78 is no address"},
		{"run lost", func(t *tx) error { return t.del(bucketRun, addrKey(netip.MustParseAddr("10.0.0.5"))) }, "the run of addresses 10.0.0.2-10.0.0.5 is missing"},
		{"run of nonsense", func(t *tx) error { return t.put(bucketRun, []byte("x"), []byte("y")) }, "79-78"},
		{"rest lost", func(t *tx) error { return t.del(bucketRest, t.firstKey(bucketRest)) }, `10.0.0.3/24 should have`},
		{"rest too many", func(t *tx) error {
			return t.put(bucketRest, append(rest.Micros(t.now), addrKey(a)...), append(rest.Micros(t.now), 'a'))
		}, `address 10.0.0.2 rests until`},
		{"parked lost", func(t *tx) error { return t.del(bucketParked, t.firstKey(bucketParked)) }, `10.0.0.3/24 should have`},
		{"parked too many", func(t *tx) error {
			return t.put(bucketParked, append([]byte("lan\x00x\x00"), addrKey(a)...), []byte{1})
		}, "is not that of a record"},
		{"attachment lost", func(t *tx) error { return t.del(bucketAttachment, attachmentKey(att("a"))) }, "10.0.0.2/24 is held by lan/a/eth0, whose record does not say so"},
		{"attachment of nonsense", func(t *tx) error { return t.put(bucketAttachment, attachmentKey(att("a")), []byte("[]")) }, "record of attachment"},
		{"attachment of more", func(t *tx) error {
			rec, _, err := t.attachment(att("a"))
			rec.Addresses = append(rec.Addresses, netip.MustParseAddr("10.0.0.9"))
			return errors.Join(err, t.put(bucketAttachment, attachmentKey(att("a")), record.EncodeAttachment(rec)))
		}, "attachment lan/a/eth0 holds 10.0.0.9, whose record says"},
		{"attachment of nothing", func(t *tx) error {
			return t.put(bucketAttachment, attachmentKey(att("x")), record.EncodeAttachment(ipam.AttachmentRecord{Version: 1, Attachment: att("x")}))
		}, "attachment lan/x/eth0 holds nothing"},
		{"user lost", func(t *tx) error { return t.del(bucketUser, t.firstKey(bucketUser)) }, "lan/u/eth0 should have"},
		{"user too many", func(t *tx) error { return t.put(bucketUser, []byte("eth1\x005\x00x"), []byte{1}) }, `is not that of an attachment`},
		{"pool of nonsense", func(t *tx) error { return t.put(bucketPool, []byte("lan"), []byte("[]")) }, `pool "lan"`},
		{"cursor of nonsense", func(t *tx) error { return t.put(bucketCursor, []byte("lan\x000"), []byte("x")) }, "cursor"},
		{"bucket lost", func(t *tx) error { return t.b.DeleteBucket(bucketRun) }, `it has no "run"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t, newClock())
			l, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			p := pool("lan", set(t, "10.0.0.0/24"))
			for _, id := range []string{"a", "b", "c"} {
				add(t, l, request(p, id))
			}
			u := request(p, "u")
			u.Uses = ipam.Uses{Parent: "eth1", VLAN: 5}
			add(t, l, u)
			del(t, l, "b")
			if err := l.update(func(x *tx) error { x.dirty = true; return tt.tamper(x) }); err != nil {
				t.Fatal(err)
			}
			findings, err := l.Check()
			if err != nil || !strings.Contains(strings.Join(findings, "\n"), tt.want) {
				t.Errorf("findings %q, %v; want one with %q", findings, err, tt.want)
			}
		})
	}
}

func (t *tx) firstKey(bucket []byte) []byte {
	k, _ := t.bucket(bucket).Cursor().First()
	return bytes.Clone(k)
}

// What cannot be read is not given out.
func TestDamagedRecordIsNotFree(t *testing.T) {
	o := testOptions(t, newClock())
	l, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := pool("lan", set(t, "10.0.0.0/30"))
	add(t, l, request(p, "a"))
	err = l.update(func(x *tx) error {
		return x.put(bucketAddress, addrKey(netip.MustParseAddr("10.0.0.2")), []byte{99})
	})
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		"another":   func() error { _, err := l.Allocate(request(p, "b"), nil); return err },
		"asked for": func() error { r := request(p, "b"); ips("10.0.0.2")(&r); _, err := l.Allocate(r, nil); return err },
		"the same":  func() error { _, err := l.Allocate(request(p, "a"), nil); return err },
		"release":   func() error { _, err := l.Release(ipam.ReleaseRequest{Attachment: att("a")}); return err },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "record of address 10.0.0.2: version 99") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
