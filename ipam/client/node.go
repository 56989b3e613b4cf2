package client

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// reclaimAge is the least time between the two observations that a holder's
// namespace is gone.
const reclaimAge = 30 * time.Second

// reclaim releases what containers hold that went without a DEL. It is called
// when a pool has nothing left: a first look marks the holders whose
// namespace is gone, a later one, after reclaimAge, releases those that are
// still gone. It does nothing where it cannot see (in a mount namespace other
// than init's), nor when most holders look dead at once, which says more of
// the observer than of them.
func reclaim(l *ledger.Ledger, pool string) (freed bool, err error) {
	if !sameMountNamespaceAsInit() {
		return false, nil
	}
	alive, err := livingNamespaces()
	if err != nil {
		return false, err
	}
	var held int
	var dead, back []ipam.Attachment
	err = l.Records(func(r ipam.Record) error {
		if r.State != ipam.Held || r.Pool != pool || r.Netns.Inode == 0 {
			return nil
		}
		held++
		switch there := alive.has(r.Netns); {
		case !there && !slices.Contains(dead, r.Attachment):
			dead = append(dead, r.Attachment)
		case there && !r.MissedAt.IsZero():
			back = append(back, r.Attachment)
		}
		return nil
	})
	if err == nil && len(back) > 0 {
		err = l.Seen(back)
	}
	const few = 8
	if err != nil || len(dead) == 0 || len(dead) > few && len(dead) > held/2 {
		return false, err
	}
	released, err := l.Missed(dead, reclaimAge)
	return len(released) > 0, err
}

func sameMountNamespaceAsInit() bool {
	self, err1 := os.Readlink("/proc/self/ns/mnt")
	init, err2 := os.Readlink("/proc/1/ns/mnt")
	return err1 == nil && err2 == nil && self == init
}

// namespaces are network namespaces by device and inode.
type namespaces map[[2]uint64]bool

// livingNamespaces lists those that a process is in.
func livingNamespaces() (namespaces, error) {
	procs, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	alive := make(namespaces)
	for _, p := range procs {
		var st unix.Stat_t
		if unix.Stat(p, &st) == nil {
			alive[[2]uint64{st.Dev, st.Ino}] = true
		}
	}
	return alive, nil
}

// has reports whether n lives: a process is in it, or it is at its path.
func (s namespaces) has(n ipam.Netns) bool {
	return s[[2]uint64{n.Dev, n.Inode}] || Identify(n.Path) == n
}

// Identify names the namespace at path; device and inode are zero when there
// is nothing.
func Identify(path string) ipam.Netns {
	n := ipam.Netns{Path: path}
	var st unix.Stat_t
	if path != "" && unix.Stat(path, &st) == nil {
		n.Dev, n.Inode = st.Dev, st.Ino
	}
	return n
}

// Runtime names the program that called the plugin: the nearest ancestor
// whose binary is not itself a plugin, one in the folders of cniPath. Two
// runtimes on one node may use one network, and neither may collect what the
// other has running.
func Runtime(cniPath string) string {
	dirs := filepath.SplitList(cniPath)
	pid := os.Getppid()
	for range 8 {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			return "unknown"
		}
		// A binary that was upgraded while it runs.
		exe = strings.TrimSuffix(exe, " (deleted)")
		if !slices.Contains(dirs, filepath.Dir(exe)) {
			return filepath.Base(exe)
		}
		if pid = parentOf(pid); pid <= 1 {
			break
		}
	}
	return "unknown"
}

func parentOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// "pid (name) state ppid ...", where name may hold anything.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	ppid, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return ppid
}
