package chaos_test

import (
	"fmt"
	"os"
	"syscall"
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
