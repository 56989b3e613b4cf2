package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
)

// smallDisk mounts a file system of its own for the ledger's data folder.
func smallDisk(t *testing.T, o *Options, size string) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system")
	}
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	o.DataDir = filepath.Join(dir, "data")
	return dir
}

// A full disk stops ADD while every DEL still works, and ADD goes on as soon
// as there is room.
func TestFullDisk(t *testing.T) {
	c := newClock()
	o := testOptions(t, c)
	dir := smallDisk(t, &o, "9m") // room for the first 8 MiB, and not to grow
	p := pool("lan", set(t, "10.0.0.0/16"))
	p.Sticky, p.StickyFor = ipam.StickySoft, 1000*60*60*1e9 // nothing expires: the hardest case
	l := open(t, o)
	var full error
	n := 0
	for ; full == nil && n < 65_000; n++ {
		// Not one commit for each: what they leave in the file is the same.
		full = l.update(func(x *tx) error {
			for k := range 50 {
				req := request(p, fmt.Sprintf("%d-%d", n, k))
				req.Owner = "ns/" + req.Attachment.ContainerID
				if _, err := x.allocate(req); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if !errors.Is(full, ErrNoSpace) {
		t.Fatalf("the disk should be full: %v", full)
	}
	info, err := l.Info()
	if err != nil || info.Size != 8<<20 || info.FreeBytes < minFree/2 {
		t.Errorf("%+v, %v", info, err)
	}
	coded := interface{ CNICode() uint }(nil)
	if _, err := l.Allocate(request(p, "new"), nil); !errors.Is(err, ErrNoSpace) || !errors.As(err, &coded) || coded.CNICode() != ipam.CodeLedger {
		t.Errorf("allocate: %v", err)
	}
	held := info.Held
	for i := range n - 1 {
		for k := range 50 {
			id := fmt.Sprintf("%d-%d", i, k)
			if r, err := l.Release(ipam.ReleaseRequest{Attachment: att(id)}); err != nil || len(r.Records) != 1 {
				t.Fatalf("release of %s, %d of %d: %+v, %v", id, i*50+k, held, r, err)
			}
		}
	}
	if info, err = l.Info(); err != nil || info.Held != 0 || info.Attachments != 0 {
		t.Errorf("after the releases: %+v, %v", info, err)
	}
	t.Logf("%d held, then %d cooling, %d bytes free", held, info.Cooling, info.FreeBytes)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	add(t, l, request(p, "new"))
}

func TestNoRoomForALedger(t *testing.T) {
	o := testOptions(t, newClock())
	smallDisk(t, &o, "4m")
	for range 2 {
		if _, err := Open(t.Context(), o); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("open: %v", err)
		}
		files, err := filepath.Glob(filepath.Join(o.DataDir, "ledger.db*"))
		if err != nil || len(files) > 0 {
			t.Errorf("left behind: %v, %v", files, err)
		}
	}
}

func TestReadOnlyDisk(t *testing.T) {
	o := testOptions(t, newClock())
	dir := smallDisk(t, &o, "16m")
	p := pool("lan", set(t, "10.0.0.0/24"))
	l := open(t, o)
	add(t, l, request(p, "a"))
	shut(t, l)
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrReadOnly) {
		t.Errorf("open: %v", err)
	}
	reading := o
	reading.ReadOnly = true
	l = open(t, reading)
	wantStates(t, l, "10.0.0.2 held a")
	shut(t, l)
	// A DEL meanwhile goes to the other folder.
	if err := Spool([]string{o.DataDir, o.RunDir}, ipam.ReleaseRequest{Attachment: att("a"), Before: o.Now().Add(1e9)}); err != nil {
		t.Fatal(err)
	}
	remount(0)
	wantStates(t, open(t, o), "10.0.0.2 cooling a")
}
