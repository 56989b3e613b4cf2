package client

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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

// few holders may be dead at once without looking strange.
const few = 8

// Reclaimed is what a Reclaim has found.
type Reclaimed struct {
	// Seen is how many attachments were looked at, Dead how many of them have
	// lost their namespace.
	Seen, Dead int
	// Released are those that had lost it before.
	Released []ipam.Attachment
	// Doubt says why nothing was done, if so.
	Doubt string
}

// reclaimFor is Reclaim in the pool that req draws on.
func reclaimFor(l *ledger.Ledger, req ipam.AllocateRequest) (Reclaimed, error) {
	pool, err := poolOf(l, req)
	if err != nil {
		return Reclaimed{}, err
	}
	return Reclaim(l, pool.ID())
}

func poolOf(l *ledger.Ledger, req ipam.AllocateRequest) (ipam.Pool, error) {
	if req.Cluster == "" {
		return req.Pool, nil
	}
	return l.Cluster(req.Cluster)
}

// Reclaim releases what containers hold that went without a DEL, in the pool of
// an ID (ipam.Pool.ID) or, if that is "", in all: a first look marks the attachments whose namespace is
// gone, a later one, after reclaimAge, releases those that are still gone. A
// link goes with its namespace, so nothing answers for the addresses any more.
// It does nothing where it cannot see (in a mount namespace other than init's),
// nor when most attachments look dead at once, which says more of the observer
// than of them.
func Reclaim(l *ledger.Ledger, pool string) (out Reclaimed, err error) {
	if !sameMountNamespaceAsInit() {
		return Reclaimed{Doubt: "not in init's mount namespace"}, nil
	}
	// The ledger first: what is added to it later is not in question.
	atts, err := attachments(l, pool)
	if err != nil {
		return out, err
	}
	alive, err := livingNamespaces()
	if err != nil {
		return out, err
	}
	dead := map[ipam.Attachment]ipam.Netns{}
	for _, a := range atts {
		if !alive.has(a.Netns) {
			dead[a.Attachment] = a.Netns
		}
	}
	if len(dead) > 0 {
		held, err := heldNamespaces()
		if errors.Is(err, fs.ErrPermission) {
			return Reclaimed{Doubt: err.Error()}, nil
		}
		if err != nil {
			return out, err
		}
		maps.DeleteFunc(dead, func(_ ipam.Attachment, n ipam.Netns) bool { return held[n.Inode] })
	}
	out.Seen, out.Dead = len(atts), len(dead)
	var back []ipam.Attachment
	for _, a := range atts {
		if _, isDead := dead[a.Attachment]; !isDead && !a.MissedAt.IsZero() {
			back = append(back, a.Attachment)
		}
	}
	if len(back) > 0 {
		if err := l.Seen(back); err != nil {
			return out, err
		}
	}
	switch {
	case len(dead) == 0:
	case len(dead) > few && len(dead) > len(atts)/2:
		out.Doubt = fmt.Sprintf("%d of %d attachments look dead at once", len(dead), len(atts))
	default:
		out.Released, err = l.Missed(slices.Collect(maps.Keys(dead)), reclaimAge)
	}
	return out, err
}

// attachments lists those that hold something in pool, if that is not "", and
// whose namespace is known.
func attachments(l *ledger.Ledger, pool string) (out []ipam.AttachmentRecord, err error) {
	holders := map[ipam.Attachment]bool{}
	if pool != "" {
		err = l.Records(func(r ipam.Record) error {
			if r.State == ipam.Held && r.PoolID() == pool {
				holders[r.Attachment] = true
			}
			return nil
		})
	}
	if err != nil {
		return nil, err
	}
	err = l.Attachments(func(a ipam.AttachmentRecord) error {
		if a.Netns.Inode != 0 && (pool == "" || holders[a.Attachment]) {
			out = append(out, a)
		}
		return nil
	})
	return out, err
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

// heldNamespaces lists, by inode, the namespaces that live without a process:
// mounted at some path in any mount namespace, open in a process, or with a
// thread in them. It reads all of /proc, and fails where it may not.
func heldNamespaces() (map[uint64]bool, error) {
	var own unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &own); err != nil {
		return nil, fmt.Errorf("own network namespace: %w", err)
	}
	held := map[uint64]bool{}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	mounts := map[string]bool{} // mount namespaces that have been read
	for _, p := range procs {
		for _, pattern := range []string{p + "/fd/*", p + "/task/[0-9]*/ns/net"} {
			links, err := filepath.Glob(pattern)
			if err != nil {
				return nil, err
			}
			for _, link := range links {
				// Not what the link says: of a file that was opened by a path it
				// says that. And without asking the server of a network's files.
				var st unix.Statx_t
				err := unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st)
				if err == nil && unix.Mkdev(st.Dev_major, st.Dev_minor) == own.Dev {
					held[st.Ino] = true
				}
				if err := unlessEnded(p, err); err != nil {
					return nil, fmt.Errorf("%s: %w", link, err)
				}
			}
		}
		ns, err := os.Readlink(p + "/ns/mnt")
		if err == nil && !mounts[ns] {
			mounts[ns] = true
			err = mounted(p+"/mountinfo", held)
		}
		if err := unlessEnded(p, err); err != nil {
			return nil, err
		}
	}
	return held, nil
}

// mounted reads which network namespaces a mount namespace has at some path:
// the fourth field is the root of the mount, "net:[4026532281]" for these.
func mounted(mountinfo string, held map[uint64]bool) error {
	b, err := os.ReadFile(mountinfo)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 3 {
			note(held, fields[3])
		}
	}
	return lines.Err()
}

func note(held map[uint64]bool, name string) {
	number, ok := strings.CutPrefix(name, "net:[")
	if !ok {
		return
	}
	if inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64); err == nil {
		held[inode] = true
	}
}

// unlessEnded is err, unless it is that the process in the folder proc has ended
// meanwhile or is about to, or that a sandbox hides init, which has no
// container's namespace open, even from root.
func unlessEnded(proc string, err error) error {
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
		return nil
	case errors.Is(err, fs.ErrPermission) && proc == "/proc/1":
		return nil
	}
	return err
}
