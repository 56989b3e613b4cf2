package netns

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Find opens the living namespace with this device and inode: at path if it
// is still the one there, else by its name or through a process that is in
// it. The error wraps ErrGone when none has it.
func Find(path string, dev, ino uint64) (*NS, error) {
	want := id{dev, ino}
	if n, err := openIf(path, want); n != nil || err != nil {
		return n, err
	}
	for place, err := range places() {
		if err != nil {
			return nil, err
		}
		if n, err := openIf(place, want); n != nil || err != nil {
			return n, err
		}
	}
	return nil, fmt.Errorf("netns %q (%d:%d): %w", path, dev, ino, ErrGone)
}

// Each visits all namespaces, until visit says that it has seen enough: those
// that have a name, and then those that only a process is in. visit runs inside
// the namespace, whose handle is closed when it returns. Each cannot see what
// nothing but a descriptor keeps, and leaves out what vanishes meanwhile and
// what the caller may not enter.
func Each(visit func(*NS) (enough bool, err error)) error {
	return aside(func() error {
		seen := make(map[id]bool)
		for place, err := range places() {
			if err != nil {
				return err
			}
			at, ok := identify(place)
			if !ok || seen[at] {
				continue
			}
			n, err := openIf(place, at)
			if err != nil {
				return err
			}
			if n == nil {
				continue
			}
			seen[at] = true
			if enough, err := n.visit(visit); err != nil || enough {
				return err
			}
		}
		return nil
	})
}

// visit enters the namespace with the calling thread, which stays there.
func (n *NS) visit(f func(*NS) (bool, error)) (enough bool, err error) {
	defer n.Close()
	switch err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); {
	case errors.Is(err, unix.EPERM): // of a user namespace beside or above this one
		return false, nil
	case err != nil:
		return false, fmt.Errorf("enter netns %q: %w", n.path, err)
	}
	return f(n)
}

// id is a namespace's identity for this boot.
type id struct{ dev, ino uint64 }

// identify fails where there is nothing, where a process is about to end (its
// namespaces are gone before it is), and where a sandbox hides a process.
func identify(path string) (id, bool) {
	var st unix.Stat_t
	if path == "" || unix.Stat(path, &st) != nil {
		return id{}, false
	}
	return id{st.Dev, st.Ino}, true
}

// openIf opens path if it is that namespace; nil if not. What goes wrong when
// the namespace vanishes at the same time is no error: of a name, a plain file
// stays for a moment.
func openIf(path string, want id) (*NS, error) {
	is := func() bool {
		at, ok := identify(path)
		return ok && at == want
	}
	if !is() {
		return nil, nil
	}
	n, err := Open(path)
	switch {
	case err != nil && !errors.Is(err, ErrGone) && is():
		return nil, err
	case err != nil:
		return nil, nil
	case id{n.dev, n.ino} != want:
		n.Close()
		return nil, nil
	}
	return n, nil
}

// places are paths that lead to namespaces: the names, then the processes.
func places() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			yield("", fmt.Errorf("find network namespaces: %w", err))
			return
		}
		for name := range names(string(mounts)) {
			if !yield(name, nil) {
				return
			}
		}
		// A pattern would read all the directories on the way.
		proc, err := os.Open("/proc")
		if err == nil {
			var entries []string
			entries, err = proc.Readdirnames(-1)
			err = errors.Join(err, proc.Close())
			for _, e := range entries {
				if _, nerr := strconv.Atoi(e); nerr == nil && !yield("/proc/"+e+"/ns/net", nil) {
					return
				}
			}
		}
		if err != nil {
			yield("", fmt.Errorf("find network namespaces: %w", err))
		}
	}
}

// names are the bind mounts of network namespaces in a mountinfo (proc(5)),
// which is what `ip netns add` and the runtimes make of a name.
func names(mountinfo string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range strings.Lines(mountinfo) {
			// 42 25 0:4 net:[4026532281] /run/netns/a rw shared:7 - nsfs nsfs rw
			f := strings.Fields(line)
			if len(f) > 4 && strings.HasPrefix(f[3], "net:[") && !yield(unescape.Replace(f[4])) {
				return
			}
		}
	}
}

// unescape undoes what the kernel does to a path that a line has to hold.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
