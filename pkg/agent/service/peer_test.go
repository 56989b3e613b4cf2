package service

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/client/wire"
)

// TestOnlyRoot: whoever is not root may not open the socket, and is refused
// where he may.
func TestOnlyRoot(t *testing.T) {
	p := newPlace(t)
	p.start()
	if err := os.Chmod(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(p.options.RunDir, wire.SocketName)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	asNobody := func(f func() error) error {
		got := make(chan error, 1)
		go func() {
			// Of this thread alone, which ends with the goroutine.
			runtime.LockOSThread()
			const nobody = 65534
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); e != 0 {
				got <- e
				return
			}
			got <- f()
		}()
		return <-got
	}
	dial := func() (fd int, err error) {
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return fd, err
		}
		return fd, unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	if err := asNobody(func() error { _, err := dial(); return err }); err != unix.EACCES {
		t.Errorf("connect: %v", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	c := client.New(p.options.DataDir, p.options.RunDir)
	err := asNobody(func() error {
		// All in this thread: the client makes its own system calls.
		_, _, _, err := c.Attachment(t.Context(), att("a"))
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "only root is served here") || !strings.Contains(err.Error(), "user 65534") {
		t.Errorf("a request: %v", err)
	}
	p.add("a")
}
