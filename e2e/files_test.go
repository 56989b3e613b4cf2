package e2e_test

import (
	"bufio"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/spool"
)

// TestFiles: each file and socket is in the table of SECURITY.md with its mode, and
// each that is there is made.
func TestFiles(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[string]string)
	for _, row := range regexp.MustCompile("(?m)^\\| `((?:dataDir|runDir|registry)/[^`]*)` \\| (\\d{4}) \\|").FindAllStringSubmatch(string(text), -1) {
		want[row[1]] = row[2]
	}

	c := newPeers(t, 1)
	c.pool(redPool)
	h := c.hosts[0]
	h.inSegment("red", 5001, "r1")
	h.pod("p1", nil)
	alone := newBed(t).h1
	attach(t, alone, "c1", pods(t, alone, nil))
	// As a DEL that cannot write to the ledger.
	if err := spool.Write([]string{alone.DataDir}, ipam.ReleaseRequest{Attachment: ipam.Attachment{Network: "lan", ContainerID: "c9", IfName: "eth0"}}); err != nil {
		t.Fatal(err)
	}
	number := regexp.MustCompile(`^[0-9]{10,}-[0-9a-f]+`) // of a release
	got := make(map[string]string)
	walk := func(as, dir string) {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			name := number.ReplaceAllString(filepath.Base(path), "*")
			for _, parent := range []string{"eth1", "lg5001"} {
				name = strings.Replace(name, "parent-"+parent+".", "parent-*.", 1)
			}
			rel, err := filepath.Rel(dir, filepath.Join(filepath.Dir(path), name))
			if path == dir {
				rel, err = "", nil
			}
			if filepath.Dir(rel) == "static.d" && strings.HasSuffix(rel, ".json") {
				rel = "static.d/*.json"
			}
			if entry.IsDir() && rel != "" {
				rel += "/"
			}
			got[as+"/"+rel] = fmt.Sprintf("%04o", info.Mode().Perm())
			if as == "registry" {
				return fs.SkipDir // etcd's own, and nobody gets there
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	walk("registry", h.etcd())
	for _, dirs := range [][2]string{{h.DataDir, h.RunDir}, {alone.DataDir, alone.RunDir}} {
		walk("dataDir", dirs[0])
		walk("runDir", dirs[1])
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-SECURITY.md +there):\n%s", diff)
	}
}

// listens are what a process listens on: paths of unix sockets, and of TCP and UDP
// the kernel's lines.
func listens(t *testing.T, pid int) (found []string) {
	t.Helper()
	own := make(map[string]bool)
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:[") {
			own[strings.Trim(to, "socket:[]")] = true
		}
	}
	for _, table := range []struct {
		name         string
		inode, state int
		listens      string
		what         int
	}{
		{"tcp", 9, 3, "0A", 1}, {"tcp6", 9, 3, "0A", 1}, {"udp", 9, 3, "07", 1}, {"udp6", 9, 3, "07", 1}, {"unix", 6, 3, "00010000", 7},
	} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, table.name))
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			field := strings.Fields(lines.Text())
			if len(field) > max(table.inode, table.what) && own[field[table.inode]] && field[table.state] == table.listens {
				found = append(found, table.name+" "+field[table.what])
			}
		}
		f.Close()
	}
	slices.Sort(found)
	return found
}

// TestListens: an agent listens on its two sockets in runDir, on no port, and on no
// abstract socket, which a container in the host's network namespace would reach. One
// that embeds the registry has one port besides; without TLS that is open to whoever
// reaches the host, a container too.
func TestListens(t *testing.T) {
	t.Parallel()
	c := newPeers(t, 2)
	for _, m := range c.hosts {
		want := []string{"unix " + filepath.Join(m.RunDir, "api.sock"), "unix " + filepath.Join(m.RunDir, "cni.sock")}
		if m.Name == "h1" {
			want = slices.Insert(want, 0, "tcp 010200C0:094B") // 192.0.2.1:2379
		}
		if diff := cmp.Diff(want, listens(t, m.cmd.Process.Pid)); diff != "" {
			t.Errorf("%s listens on (-want +got):\n%s", m.Name, diff)
		}
	}
	pod := c.hosts[1].pod("p1", nil)
	err := pod.Do(func() error {
		conn, err := net.Dial("tcp", "192.0.2.1:2379")
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		t.Errorf("a container does not reach a registry without TLS; SECURITY.md says that it does: %v", err)
	}
}
