package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newNS is a namespace that nothing but its handle keeps.
func newNS(t testing.TB) *NS {
	t.Helper()
	var n *NS
	must(t, aside(func() error {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n, err = Open("/proc/thread-self/ns/net")
		}
		return err
	}))
	t.Cleanup(func() { must(t, n.Close()) })
	return n
}

// name gives a namespace a name, until the test ends or the name is taken away.
func (n *NS) name(t testing.TB, name string) (path string, unname func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, unix.Mount(fmt.Sprintf("/proc/self/fd/%d", n.Fd()), path, "", unix.MS_BIND, ""))
	named := true
	unname = func() {
		if named {
			must(t, unix.Unmount(path, unix.MNT_DETACH))
			named = false
		}
	}
	t.Cleanup(unname)
	return path, unname
}

// live starts a process in a namespace, which ends with the test or before.
func (n *NS) live(t testing.TB) (path string, end func()) {
	t.Helper()
	cmd := exec.Command("sleep", "infinity")
	must(t, n.Do(cmd.Start))
	alive := true
	end = func() {
		if alive {
			if err := errors.Join(cmd.Process.Kill(), cmd.Wait()); err == nil {
				t.Error("the process has ended by itself")
			}
			alive = false
		}
	}
	t.Cleanup(end)
	return fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), end
}

func TestFind(t *testing.T) {
	t.Parallel()
	n := newNS(t)
	dev, ino := n.ID()
	expect := func(asked, want string) {
		t.Helper()
		got, err := Find(asked, dev, ino)
		if want == "" {
			if !errors.Is(err, ErrGone) {
				t.Errorf("at %q: got %v, want %v", asked, err, ErrGone)
			}
			return
		}
		must(t, err)
		defer got.Close()
		if d, i := got.ID(); got.Path() != want || d != dev || i != ino {
			t.Errorf("at %q: found %q, want %q", asked, got.Path(), want)
		}
	}
	expect("", "") // nothing but a descriptor
	process, end := n.live(t)
	expect("", process)
	expect("/proc/0/ns/net", process)
	expect("/proc/self/ns/net", process)
	expect(process, process)
	name, unname := n.name(t, "a name\twith\\blanks\n")
	expect("", name)
	expect(process, process)
	end()
	expect(process, name)
	// The path is of another one by now.
	other, _ := newNS(t).name(t, "other")
	expect(other, name)
	unname()
	expect(name, "")
	expect(other, "")
}

func TestEach(t *testing.T) {
	t.Parallel()
	named, living, both, hidden := newNS(t), newNS(t), newNS(t), newNS(t)
	inode := func(n *NS) uint64 { _, ino := n.ID(); return ino }
	want := make(map[uint64]string)
	want[inode(named)], _ = named.name(t, "named")
	want[inode(living)], _ = living.live(t)
	want[inode(both)], _ = both.name(t, "both")
	both.live(t)
	both.name(t, "again")

	got, visits := make(map[uint64]string), make(map[uint64]int)
	var last *NS
	must(t, Each(func(n *NS) (bool, error) {
		visits[inode(n)]++
		here, ok := identify("/proc/thread-self/ns/net")
		if dev, ino := n.ID(); !ok || here != (id{dev, ino}) {
			t.Errorf("the visit to %q is in %v", n.Path(), here)
		}
		if want[inode(n)] != "" {
			got[inode(n)] = n.Path()
		}
		last = n
		return false, nil
	}))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("paths by inode (-want +got):\n%s", diff)
	}
	for ino, times := range visits {
		if times != 1 {
			t.Errorf("namespace %d is visited %d times", ino, times)
		}
	}
	self, _ := identify("/proc/self/ns/net")
	if visits[self.ino] == 0 || visits[inode(hidden)] != 0 {
		t.Errorf("own namespace: %d visits, one without name and process: %d", visits[self.ino], visits[inode(hidden)])
	}
	if last.Close() == nil {
		t.Error("a handle is open after its visit")
	}
}

// TestVanishing: what is left of a name, after its namespace, is passed over.
func TestVanishing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "name")
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	at, ok := identify(path)
	if n, err := openIf(path, at); !ok || n != nil || err != nil {
		t.Errorf("a plain file: %v, %v, want nothing", n, err)
	}
}

func TestEachEnds(t *testing.T) {
	t.Parallel()
	newNS(t).live(t)
	newNS(t).live(t)
	visits := 0
	must(t, Each(func(*NS) (bool, error) { visits++; return true, nil }))
	if visits != 1 {
		t.Errorf("%d visits, the first was enough", visits)
	}
	failed := errors.New("failed")
	if err := Each(func(*NS) (bool, error) { visits++; return false, failed }); !errors.Is(err, failed) || visits != 2 {
		t.Errorf("%d visits, %v", visits-1, err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	const mountinfo = `22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
281 26 0:4 net:[4026532281] /run/netns/one rw shared:141 - nsfs nsfs rw
282 26 0:4 mnt:[4026532282] /run/snapd/ns/mnt rw - nsfs nsfs rw
283 26 0:4 net:[4026532283] /run/a\040blank\011and\134040\012 rw shared:141 master:3 - nsfs nsfs rw
284 28 8:1 /net:[1] /net:[1] rw - ext4 /dev/sda1 rw
285 26 0:4 net:[4026532285]

`
	want := []string{"/run/netns/one", "/run/a blank\tand\\040\n"}
	if diff := cmp.Diff(want, slices.Collect(names(mountinfo))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for range names(mountinfo) {
		break
	}
}
