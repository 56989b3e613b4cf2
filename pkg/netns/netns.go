// Package netns is the only way into another network namespace: a handle
// that can be entered, locked, and told from a later namespace at the same
// path.
package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
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
	n, err := ns.GetNS(path)
	if err != nil {
		var notNS ns.NSPathNotNSErr
		var notExist ns.NSPathNotExistErr
		if errors.As(err, &notNS) || errors.As(err, &notExist) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("netns %q: %w", path, ErrGone)
		}
		return nil, fmt.Errorf("netns %q: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(n.Fd()), &st); err != nil {
		n.Close()
		return nil, fmt.Errorf("netns %q: %w", path, err)
	}
	return &NS{ns: n, path: path, dev: st.Dev, ino: st.Ino}, nil
}

// Find opens the living namespace with this device and inode: at path if it
// is still the one there, else through a process that is in it. The error
// wraps ErrGone when neither has it.
func Find(path string, dev, ino uint64) (*NS, error) {
	candidates := []string{path}
	for i := 0; i < len(candidates); i++ {
		var st unix.Stat_t
		if candidates[i] != "" && unix.Stat(candidates[i], &st) == nil && st.Dev == dev && st.Ino == ino {
			if n, err := Open(candidates[i]); err == nil {
				if n.dev == dev && n.ino == ino {
					return n, nil
				}
				n.Close()
			}
		}
		if i == 0 {
			procs, err := filepath.Glob("/proc/[0-9]*/ns/net")
			if err != nil {
				return nil, err
			}
			named, err := filepath.Glob("/run/netns/*")
			if err != nil {
				return nil, err
			}
			candidates = append(append(candidates, named...), procs...)
		}
	}
	return nil, fmt.Errorf("netns %q (%d:%d): %w", path, dev, ino, ErrGone)
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
func (n *NS) Do(f func() error) error {
	return n.ns.Do(func(ns.NetNS) error { return f() })
}

// Lock keeps others who lock this namespace out until the process ends or
// the handle is closed: runtimes attach several networks of one container at
// the same time. The lock is on the namespace itself, so nothing is left
// behind when either dies.
func (n *NS) Lock(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		err := unix.Flock(n.Fd(), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock netns %q: %w", n.path, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock netns %q: another call holds it: %w", n.path, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// Sysctl writes value to a key under /proc/sys, slashes for dots, such as
// net/ipv6/conf/eth0/accept_ra. Only meaningful inside Do.
func Sysctl(key, value string) error {
	f, err := os.OpenFile("/proc/sys/"+key, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	_, err = f.WriteString(value)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", key, value, err)
	}
	return nil
}
