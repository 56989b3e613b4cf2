package client

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// AgentLock is the file in the data folder that an agent has locked while it runs;
// it holds the agent's run folder.
const AgentLock = "agent.lock"

// Elsewhere says that the ledger belongs to an agent which listens in another run
// folder, so that its lock is not let go; nil where that is not so. It asks the
// socket: to try the lock would be in the way of an agent that starts.
func Elsewhere(o ledger.Options) error {
	b, err := os.ReadFile(filepath.Join(o.DataDir, AgentLock))
	dir := strings.TrimSpace(string(b))
	if err != nil || dir == "" || filepath.Clean(dir) == filepath.Clean(o.RunDir) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), poll)
	defer cancel()
	s, err := (&Client{o: ledger.Options{RunDir: dir}}).dial(ctx)
	if err != nil {
		return nil // left by one that is gone
	}
	s.close()
	return &ipam.FieldError{Place: "runDir", Msg: fmt.Sprintf("%q is not that of the node agent which has the ledger in %q: %q", o.RunDir, o.DataDir, dir)}
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
