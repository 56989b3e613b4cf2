package repo

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A sandbox is the root of a file system that `make install` fills.
type sandbox struct{ destdir, bin, root string }

const (
	plugin  = "/opt/cni/bin/macvlan"
	another = "/opt/cni/bin/ipvlan"
	third   = "/opt/cni/bin/hostgw"
	fourth  = "/opt/cni/bin/vxlan"
	ipam    = "/opt/cni/bin/underlay"
	ctl     = "/usr/local/sbin/underlayctl"
	daemon  = "/usr/local/sbin/underlayd"
	foreign = "somebody else's binary"
)

func newSandbox(t *testing.T) sandbox {
	t.Helper()
	return sandbox{destdir: t.TempDir(), bin: programs(t), root: rootDir(t)}
}

// make runs a target and returns what it printed.
func (s sandbox) make(args ...string) (string, error) {
	// No PATH to Go: the machine that installs may have none.
	cmd := exec.Command("make", append(args, "DESTDIR="+s.destdir, "BIN="+s.bin)...)
	cmd.Dir = s.root
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s sandbox) mustMake(t *testing.T, args ...string) {
	t.Helper()
	if out, err := s.make(args...); err != nil {
		t.Fatalf("make %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// put places a foreign file.
func (s sandbox) put(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(s.destdir+path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.destdir+path, []byte(foreign), 0o755); err != nil {
		t.Fatal(err)
	}
}

// want compares the tree with a map from path to "ours" or "foreign".
func (s sandbox) want(t *testing.T, want map[string]string) {
	t.Helper()
	got := make(map[string]string)
	err := filepath.WalkDir(s.destdir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		kind := "ours"
		if string(text) == foreign {
			kind = "foreign"
		}
		if info.Mode().Perm() != 0o755 {
			kind += " " + info.Mode().String()
		}
		got[strings.TrimPrefix(path, s.destdir)] = kind
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("installed files (-want +got):\n%s", diff)
	}
}

func TestInstall(t *testing.T) {
	ours := map[string]string{plugin: "ours", another: "ours", third: "ours", fourth: "ours", ipam: "ours", ctl: "ours", daemon: "ours"}

	t.Run("into nothing, again, and out", func(t *testing.T) {
		s := newSandbox(t)
		s.mustMake(t, "install")
		s.want(t, ours)
		s.mustMake(t, "install")
		s.want(t, ours)
		s.mustMake(t, "uninstall")
		s.want(t, map[string]string{})
		s.mustMake(t, "uninstall")
	})
	t.Run("prefix beside the reference", func(t *testing.T) {
		s := newSandbox(t)
		s.put(t, plugin)
		s.mustMake(t, "install", "PREFIX=underlay-")
		s.want(t, map[string]string{
			plugin: "foreign", "/opt/cni/bin/underlay-macvlan": "ours", "/opt/cni/bin/underlay-ipvlan": "ours", "/opt/cni/bin/underlay-hostgw": "ours", "/opt/cni/bin/underlay-vxlan": "ours",
			ipam: "ours", ctl: "ours", daemon: "ours",
		})
		s.mustMake(t, "uninstall", "PREFIX=underlay-")
		s.want(t, map[string]string{plugin: "foreign"})
	})
	t.Run("other folders", func(t *testing.T) {
		s := newSandbox(t)
		s.mustMake(t, "install", "BINDIR=/usr/libexec/cni", "SBINDIR=/sbin")
		s.want(t, map[string]string{
			"/usr/libexec/cni/macvlan": "ours", "/usr/libexec/cni/ipvlan": "ours", "/usr/libexec/cni/hostgw": "ours", "/usr/libexec/cni/vxlan": "ours", "/usr/libexec/cni/underlay": "ours",
			"/sbin/underlayctl": "ours", "/sbin/underlayd": "ours",
		})
	})
	t.Run("refuses a foreign binary and changes nothing", func(t *testing.T) {
		s := newSandbox(t)
		s.put(t, daemon) // the last to be installed
		out, err := s.make("install")
		if err == nil || !strings.Contains(out, s.destdir+daemon) || !strings.Contains(out, "FORCE=1") {
			t.Errorf("make install = %v, want an error that names %s and FORCE=1\n%s", err, daemon, out)
		}
		s.want(t, map[string]string{daemon: "foreign"})
	})
	t.Run("force keeps the foreign binary, uninstall puts it back", func(t *testing.T) {
		s := newSandbox(t)
		s.put(t, plugin)
		s.mustMake(t, "install", "FORCE=1")
		forced := map[string]string{plugin: "ours", plugin + ".orig": "foreign", another: "ours", third: "ours", fourth: "ours", ipam: "ours", ctl: "ours", daemon: "ours"}
		s.want(t, forced)
		s.mustMake(t, "install", "FORCE=1")
		s.want(t, forced)
		s.mustMake(t, "uninstall")
		s.want(t, map[string]string{plugin: "foreign"})
	})
	t.Run("uninstall leaves what came after us", func(t *testing.T) {
		s := newSandbox(t)
		s.put(t, plugin)
		s.mustMake(t, "install", "FORCE=1")
		s.put(t, plugin) // a package was upgraded
		s.mustMake(t, "uninstall")
		s.want(t, map[string]string{plugin: "foreign", plugin + ".orig": "foreign"})
	})
}
