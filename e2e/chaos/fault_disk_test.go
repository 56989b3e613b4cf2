package chaos_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// diskSize is enough for a ledger and a copy of it.
const diskSize = "size=48m,mode=0700"

// mount gives the host's state a file system of its own.
func (h *host) mount() error {
	if err := os.MkdirAll(h.DataDir, 0o700); err != nil {
		return err
	}
	if err := syscall.Mount("none", h.DataDir, "tmpfs", 0, diskSize); err != nil {
		return fmt.Errorf("mount %s: %w", h.DataDir, err)
	}
	h.x.t.Cleanup(func() {
		if err := syscall.Unmount(h.DataDir, syscall.MNT_DETACH); err != nil {
			h.x.t.Error(err)
		}
	})
	return nil
}

// fillDisk fills it to the last byte.
func fillDisk(n *nemesis, h *host) error {
	full := filepath.Join(h.DataDir, "full")
	if err := os.WriteFile(full, make([]byte, 64<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("the disk is not full: %v", err)
	}
	if n.choose.IntN(2) == 0 {
		h.End(syscall.SIGKILL)
		n.rest(0, time.Second)
		h.Start()
	}
	n.rest(time.Second, 5*time.Second)
	return os.Remove(full)
}

// lockDisk makes it read-only, which the kernel does not while somebody writes.
// An agent does not start on such a disk; systemd would try again and again.
func lockDisk(n *nemesis, h *host) error {
	remount := func(flags uintptr) error {
		h.gate.Lock()
		defer h.gate.Unlock()
		h.End(syscall.SIGKILL)
		// A process that was killed may still be about to end.
		return within(10*time.Second, func() error { return syscall.Mount("none", h.DataDir, "", syscall.MS_REMOUNT|flags, diskSize) })
	}
	if err := remount(syscall.MS_RDONLY); err != nil {
		return fmt.Errorf("make the disk read-only: %w", err)
	}
	n.rest(time.Second, 5*time.Second)
	defer h.Start()
	return remount(0)
}
