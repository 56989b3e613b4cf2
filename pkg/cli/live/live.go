// Package live finds what is alive on this machine: the network namespaces,
// and in them the attachments of this suite, told by the alias of their
// links. It tells a leaked record from one in use, and is the truth that a
// lost ledger is made from again. It changes nothing.
package live

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/fault"
)

// State of the namespace that a record names.
type State string

const (
	// Alive: the namespace exists.
	Alive State = "alive"
	// Gone: it does not, or it was that of an earlier boot.
	Gone State = "gone"
	// Unknown: the record does not say which one it is.
	Unknown State = "unknown"
)

// Namespaces are the network namespaces that were alive when List looked.
type Namespaces struct {
	all  []ipam.Netns // each once
	ids  map[id]bool
	boot string
}

// id is a namespace's identity for this boot.
type id struct{ dev, inode uint64 }

// List lists the namespaces that have a name in /run/netns or /var/run/netns
// and those that a process is in. It needs to be root, in the host's PID
// namespace.
func List() (*Namespaces, error) {
	boot, err := fault.Boot()
	if err != nil {
		return nil, err
	}
	n := &Namespaces{ids: make(map[id]bool), boot: boot}
	// The first one is what runtimes call it, mostly a link to the second.
	for _, pattern := range []string{"/var/run/netns/*", "/run/netns/*", "/proc/[0-9]*/ns/net"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			if err := n.add(path); err != nil {
				return nil, fmt.Errorf("namespace %q: %w", path, err)
			}
		}
	}
	return n, nil
}

func (n *Namespaces) add(path string) error {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		return nil // the process has ended meanwhile
	case errors.Is(err, unix.EACCES) && strings.HasPrefix(path, "/proc/"):
		// The process is about to end. Or a sandbox hides that of init even
		// from root: it is on the host.
		return nil
	case err != nil:
		return err
	}
	key := id{st.Dev, st.Ino}
	if n.ids[key] {
		return nil
	}
	// What a removed name leaves in /run/netns is a plain file.
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
		return nil
	}
	n.ids[key] = true
	n.all = append(n.all, ipam.Netns{Path: path, Dev: st.Dev, Inode: st.Ino})
	return nil
}

// State is that of a namespace in a record that was made in the given boot.
func (n *Namespaces) State(ns ipam.Netns, boot string) State {
	switch {
	case boot != n.boot:
		return Gone
	case ns.Inode == 0:
		return Unknown
	case n.ids[id{ns.Dev, ns.Inode}], client.Identify(ns.Path) == ns:
		return Alive
	}
	return Gone
}

// BootID is that of the running kernel.
func (n *Namespaces) BootID() string { return n.boot }
