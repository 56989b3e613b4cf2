package client

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
)

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
