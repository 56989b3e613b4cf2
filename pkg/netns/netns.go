// Package netns is the only way into another network namespace: a handle
// that can be entered, locked, and told from a later namespace at the same
// path; and the search for the namespaces that there are.
package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/flock"
)

// ErrGone is returned when there is no namespace at the path: it was never
// there, it has been removed, or something else stands in its place.
var ErrGone = errors.New("no network namespace there")

// NS is an open network namespace.
type NS struct {
	ns   ns.NetNS
	path string
	dev  uint64
	ino  uint64
}

// Open opens the namespace at path. The error wraps ErrGone when there is
// none.
func Open(path string) (*NS, error) {
	// The library drops the reason.
	var st unix.Stat_t
	if err := unix.Stat(path, &st); errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil, fmt.Errorf("netns %q: %w", path, ErrGone)
	}
	n, err := ns.GetNS(path)
	if err != nil {
		var notNS ns.NSPathNotNSErr
		var notExist ns.NSPathNotExistErr
		if errors.As(err, &notNS) || errors.As(err, &notExist) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("netns %q: %w", path, ErrGone)
		}
		return nil, fmt.Errorf("netns %q: %w", path, err)
	}
	if err := unix.Fstat(int(n.Fd()), &st); err != nil {
		n.Close()
		return nil, fmt.Errorf("netns %q: %w", path, err)
	}
	return &NS{ns: n, path: path, dev: st.Dev, ino: st.Ino}, nil
}

// Close releases the handle.
func (n *NS) Close() error { return n.ns.Close() }

// Path is where it was opened.
func (n *NS) Path() string { return n.path }

// ID is the device and inode of the namespace, its identity for this boot.
func (n *NS) ID() (dev, ino uint64) { return n.dev, n.ino }

// Fd is the file descriptor, good until Close.
func (n *NS) Fd() int { return int(n.ns.Fd()) }

// Do runs f on a thread inside the namespace. What f starts in goroutines
// runs outside.
func (n *NS) Do(f func() error) error { return DoAt(n.Fd(), f) }

// DoAt is Do for the namespace that a descriptor refers to.
func DoAt(fd int, f func() error) error {
	return aside(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter netns: %w", err)
		}
		return f()
	})
}

// aside runs f on a thread that ends with it, in whatever namespace.
func aside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread does not end with a goroutine, and what it is in
			// counts as the process's own namespace.
			defer runtime.UnlockOSThread()
			done <- aside(f)
			return
		}
		// There is no way back, and none is needed: a thread that stays locked
		// ends with its goroutine.
		done <- f()
	}()
	return <-done
}

// Lock keeps others who lock this namespace out until the process ends or
// the handle is closed: runtimes attach several networks of one container at
// the same time. The lock is on the namespace itself, so nothing is left
// behind when either dies.
func (n *NS) Lock(ctx context.Context) error {
	if err := flock.Lock(ctx, n.Fd(), false); err != nil {
		return fmt.Errorf("lock netns %q: %w", n.path, err)
	}
	return nil
}

// Sysctl writes value to a key under /proc/sys, slashes for dots, such as
// net/ipv6/conf/eth0/accept_ra. Only meaningful inside Do.
func Sysctl(key, value string) error {
	for try := 1; ; try++ {
		f, err := os.OpenFile("/proc/sys/"+key, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("sysctl: %w", err)
		}
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
		// Seen once, on a busy host: a key that could be opened had gone. The kernel
		// registers an interface's keys anew when IPv6 goes and comes there.
		if errors.Is(err, fs.ErrNotExist) && try < 3 {
			continue
		}
		if err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", key, value, err)
		}
		return nil
	}
}
