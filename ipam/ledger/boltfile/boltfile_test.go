package boltfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

var bucket = []byte("b")

func newFile(t *testing.T, keys int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.db")
	err := Create(path, "", func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket(bucket)
		for i := 0; err == nil && i < keys; i++ {
			err = b.Put(fmt.Appendf(nil, "key %05d", i), bytes.Repeat([]byte("v"), 300))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func openFile(t *testing.T, path string) *File {
	t.Helper()
	f, err := Open(path, false, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func put(f *File, key string, n int) error {
	return f.Update(func(tx *bbolt.Tx) (bool, error) {
		return true, tx.Bucket(bucket).Put([]byte(key), bytes.Repeat([]byte("x"), n))
	})
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	acquire := func(ctx context.Context, shared bool) *Lock {
		t.Helper()
		l, err := Acquire(ctx, path, shared)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	unlock := func(locks ...*Lock) {
		t.Helper()
		for _, l := range locks {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := Acquire(t.Context(), path, true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("shared, without a file: %v", err)
	}
	exclusive := acquire(ended, false) // nobody has it: no wait, no matter
	for _, shared := range []bool{false, true} {
		if _, err := Acquire(ended, path, shared); !errors.Is(err, ErrLocked) || !errors.Is(err, context.Canceled) {
			t.Errorf("shared %v, beside an exclusive one: %v", shared, err)
		}
	}
	waiting := make(chan *Lock)
	go func() {
		l, err := Acquire(t.Context(), path, false)
		if err != nil {
			t.Error(err)
		}
		waiting <- l
	}()
	unlock(exclusive)
	unlock(<-waiting)
	// The two that gave up have let go, or will.
	one := acquire(t.Context(), true)
	two := acquire(ended, true)
	if _, err := Acquire(ended, path, false); !errors.Is(err, ErrLocked) {
		t.Errorf("exclusive, beside shared ones: %v", err)
	}
	unlock(one, two)
	unlock(acquire(t.Context(), false))
}

func TestCreate(t *testing.T) {
	path := newFile(t, 10)
	if err := os.WriteFile(path+".tmp", []byte("left by a crash"), 0o600); err != nil {
		t.Fatal(err)
	}
	wanted := errors.New("no")
	if err := Create(path, path+".old", func(*bbolt.Tx) error { return wanted }); !errors.Is(err, wanted) {
		t.Errorf("create that fails: %v", err)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	err = Create(path, path+".old", func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("new")); return err })
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.Stat(path + ".old")
	if err != nil || !os.SameFile(before, kept) {
		t.Errorf("the old file was not kept: %v", err)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 2 {
		t.Errorf("files %v, %v", files, err)
	}
	f := openFile(t, path)
	if total, free := f.Size(); total != firstSize || free < firstSize-1<<16 {
		t.Errorf("%d of %d bytes free", free, total)
	}
	if err := f.Verify(); err != nil {
		t.Error(err)
	}
}

func TestUpdate(t *testing.T) {
	path := newFile(t, 10)
	content := func() string {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	f := openFile(t, path)
	before := content()
	wanted := errors.New("no")
	for _, result := range []error{nil, wanted} {
		err := f.Update(func(tx *bbolt.Tx) (bool, error) {
			return result != nil, errors.Join(result, tx.Bucket(bucket).Put([]byte("k"), []byte("v")))
		})
		if !errors.Is(err, result) {
			t.Error(err)
		}
	}
	if content() != before {
		t.Error("what was not to be committed is in the file")
	}
	if err := put(f, "k", 1); err != nil {
		t.Error(err)
	}
	if content() == before {
		t.Error("what was to be committed is not in the file")
	}
}

// A transaction that needs more than the file has left makes it grow, and the
// file never has a hole.
func TestGrow(t *testing.T) {
	f := openFile(t, newFile(t, 0))
	for i := range 5 {
		if err := put(f, fmt.Sprint(i), 5<<20); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Update(func(*bbolt.Tx) (bool, error) { return false, nil }); err != nil {
		t.Fatal(err)
	}
	total, free := f.Size()
	if total < 25<<20 || total%growStep != 0 || total > f.used+growStep+pageSize {
		t.Errorf("the file has %d bytes, of which %d were ever used", total, f.used)
	}
	var reserved int64
	err := f.Update(func(*bbolt.Tx) (bool, error) {
		err := f.Reserve(free + 3*growStep)
		reserved, _ = f.size, err
		return false, err
	})
	if err != nil || reserved < total+2*growStep {
		t.Errorf("grew from %d to %d, %v", total, reserved, err)
	}
	info, err := f.file.Stat()
	if err != nil || info.Size() != reserved {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
	if err := f.Verify(); err != nil {
		t.Error(err)
	}
}

// Verify names what is wrong.
func TestVerify(t *testing.T) {
	path := newFile(t, 200)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	meta, err := (&walk{r: bytes.NewReader(good)}).meta()
	if err != nil {
		t.Fatal(err)
	}
	root, free := order.Uint64(meta[16:]), order.Uint64(meta[32:])
	// The bucket's root is a branch; its first child is a leaf.
	_, value, err := entry(good[root*pageSize:], 0, false)
	if err != nil {
		t.Fatal(err)
	}
	branch := order.Uint64(value)
	leaf := order.Uint64(good[branch*pageSize+pageHeader+8:])
	at := func(b []byte, page uint64, off int) []byte { return b[int(page)*pageSize+off:] }
	check := func(b []byte) error {
		t.Helper()
		spoiled := filepath.Join(t.TempDir(), "spoiled")
		if err := os.WriteFile(spoiled, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Open(spoiled, true, true)
		if err == nil {
			_ = f.Close()
		}
		return err
	}
	tests := []struct {
		want  string
		spoil func(b []byte)
	}{
		{"neither of its two head pages is whole", func(b []byte) { clear(b[:2*pageSize]) }},
		{"says it is 0", func(b []byte) { clear(at(b, leaf, 0)[:pageSize]) }},
		{"is of kind 0x10, not one with keys", func(b []byte) { order.PutUint16(at(b, leaf, 8), freelistPage) }},
		{"cannot hold 60000 elements", func(b []byte) { order.PutUint16(at(b, leaf, 10), 60000) }},
		{"branches to nowhere", func(b []byte) { order.PutUint16(at(b, branch, 10), 0) }},
		{"reaches beyond the last", func(b []byte) { order.PutUint32(at(b, leaf, 12), 1<<30) }},
		{"has two uses", func(b []byte) { order.PutUint64(at(b, branch, pageHeader+8), branch) }},
		{"lies beyond the last", func(b []byte) { order.PutUint64(at(b, branch, pageHeader+8), 1<<40) }},
		{"has no key inside of the page", func(b []byte) { order.PutUint32(at(b, leaf, pageHeader+4), 1<<31) }},
		{"has no key inside of the page", func(b []byte) { order.PutUint32(at(b, leaf, pageHeader+8), 0) }},
		{"is out of order", func(b []byte) { copy(at(b, leaf, pageHeader+element), at(b, leaf, pageHeader)[:element]) }},
		{"a bucket is too short", func(b []byte) { order.PutUint32(at(b, root, pageHeader+12), 8) }},
		{"a bucket has no page", func(b []byte) {
			order.PutUint64(at(b, root, pageHeader+int(order.Uint32(at(b, root, pageHeader+4)))+len(bucket)), 0)
		}},
		{"is not the list of free pages", func(b []byte) { order.PutUint16(at(b, free, 8), leafPage) }},
		{"cannot list 60000 free pages", func(b []byte) { order.PutUint16(at(b, free, 10), 60000) }},
		{"is listed as free, and is in use", func(b []byte) {
			order.PutUint16(at(b, free, 10), 1)
			order.PutUint64(at(b, free, pageHeader), leaf)
		}},
	}
	for _, tt := range tests {
		b := bytes.Clone(good)
		tt.spoil(b)
		if err := check(b); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
	if err := check(good); err != nil {
		t.Error(err)
	}
	if err := check(good[:leaf*pageSize]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("cut off: %v", err)
	}
}
