package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// parent is the interface that all attachments sit on.
const parent = "eth1"

// The gateway's addresses, at the other end of the parent.
const (
	gateway4 = "10.10.0.1/16"
	gateway6 = "fd00:10::1/64"
)

// stage is where the measuring happens: this process's network namespace with
// the parent, and the namespaces of the attachments. Attachments are numbered,
// since a container's name may be used only once.
type stage struct {
	dir   string   // bind mounts of the namespaces
	count int      // namespaces made so far
	paths []string // namespaces not removed yet
}

// newStage prepares the process's namespaces, or a guest.
func newStage(scratch string, guest bool) (*stage, error) {
	s := &stage{dir: filepath.Join(scratch, "netns")}
	if guest {
		if err := prepareGuest(scratch); err != nil {
			return nil, err
		}
	} else if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		// /run is in memory on a real node, and private to this process here.
		return nil, fmt.Errorf("mount a tmpfs on /run: %w", err)
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	if err := s.connect(); err != nil {
		return nil, fmt.Errorf("connect %s: %w", parent, err)
	}
	return s, nil
}

// prepareGuest makes a guest what a machine is: its /run is in memory already,
// and all else the machine's, which it cannot write to.
func prepareGuest(scratch string) error {
	if err := unix.Mount("none", scratch, "hostfs", 0, scratch); err != nil {
		return fmt.Errorf("mount %s: %w", scratch, err)
	}
	// The first socket makes the kernel load IPv6; an address would not.
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err != nil {
		return fmt.Errorf("load IPv6: %w", err)
	}
	return unix.Close(fd)
}

// connect makes the parent and what is at its other end.
func (s *stage) connect() error {
	path, err := s.namespace()
	if err != nil {
		return err
	}
	s.paths = nil // stays until the end
	far, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer far.Close()

	attrs := netlink.NewLinkAttrs()
	attrs.Name = parent
	attrs.Flags = net.FlagUp
	if err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: parent, PeerNamespace: netlink.NsFd(int(far)),
	}); err != nil {
		return err
	}
	handle, err := netlink.NewHandleAt(far, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	peer, err := handle.LinkByName(parent)
	if err != nil {
		return err
	}
	for _, gateway := range []string{gateway4, gateway6} {
		address, err := netlink.ParseAddr(gateway)
		if err != nil {
			return err
		}
		address.Flags = unix.IFA_F_NODAD
		if err := handle.AddrAdd(peer, address); err != nil {
			return err
		}
	}
	return handle.LinkSetUp(peer)
}

// namespace makes a network namespace and returns its path.
func (s *stage) namespace() (string, error) {
	s.count++
	path := filepath.Join(s.dir, fmt.Sprint(s.count))
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return "", err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and no unlock: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}()
	if err := <-done; err != nil {
		return "", fmt.Errorf("make a network namespace: %w", err)
	}
	s.paths = append(s.paths, path)
	return path, nil
}

// clear removes the namespaces of the attachments. The kernel takes them apart
// some time later and holds the RTNL lock for it, so this is for the end of a
// section, not for its rounds.
func (s *stage) clear() error {
	var errs []error
	for _, path := range s.paths {
		errs = append(errs, unix.Unmount(path, unix.MNT_DETACH), os.Remove(path))
	}
	s.paths = nil
	return errors.Join(errs...)
}
