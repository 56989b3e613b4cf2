package repo

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// debian makes the package of a folder of programs, and returns its path.
func debian(t *testing.T, bin string) string {
	t.Helper()
	s := newSandbox(t)
	s.bin = bin
	s.mustMake(t, "deb", "VERSION=1.2.3+4.gabcdef")
	found, err := filepath.Glob(filepath.Join(s.destdir, "*.deb"))
	if err != nil || len(found) != 1 || !strings.HasPrefix(filepath.Base(found[0]), "underlay_1.2.3+4.gabcdef_") {
		t.Fatalf("make deb left %v, %v", found, err)
	}
	return found[0]
}

// mustRun returns what a program printed.
func mustRun(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// What the package holds, whose it is and who may write it.
func TestDebContents(t *testing.T) {
	deb := debian(t, programs(t))
	programs := map[string]string{}
	documents := 0
	for line := range strings.Lines(mustRun(t, "dpkg-deb", "--contents", deb)) {
		fields := strings.Fields(line)
		mode, owner, path := fields[0], fields[1], strings.TrimPrefix(fields[5], ".")
		if owner != "root/root" {
			t.Errorf("%s is %s's", path, owner)
		}
		switch folder := mode[0] == 'd'; {
		case folder && mode != "drwxr-xr-x":
			t.Errorf("%s has mode %s", path, mode)
		case folder:
		case strings.HasPrefix(path, "/usr/share/doc/underlay/"):
			if documents++; mode != "-rw-r--r--" {
				t.Errorf("%s has mode %s", path, mode)
			}
		default:
			programs[path] = mode
		}
	}
	const program, file = "-rwxr-xr-x", "-rw-r--r--"
	want := map[string]string{
		"/usr/lib/cni/underlay": program, "/usr/lib/cni/underlay-macvlan": program, "/usr/lib/cni/underlay-ipvlan": program,
		"/usr/lib/cni/underlay-hostgw": program, "/usr/lib/cni/underlay-vxlan": program,
		"/usr/bin/underlayctl": program, "/usr/sbin/underlayd": program,
		"/usr/lib/systemd/system/underlayd.service": file,
	}
	if diff := cmp.Diff(want, programs); diff != "" {
		t.Errorf("besides documents (-want +got):\n%s", diff)
	}
	atLeast(t, "documents", documents, 25)
	machine := strings.TrimSpace(mustRun(t, "dpkg", "--print-architecture"))
	for want, deb := range map[string]string{machine: deb, "arm64": debian(t, armPrograms(t))} {
		got := strings.TrimSpace(mustRun(t, "dpkg-deb", "--field", deb, "Architecture"))
		if got != want || !strings.HasSuffix(deb, "_"+want+".deb") {
			t.Errorf("%s is for %s, and its programs for %s", deb, got, want)
		}
	}
}

// The package is installed beside the reference's, does an ADD by a sample of its
// own, and goes without the ledger.
func TestDebLife(t *testing.T) {
	deb := debian(t, programs(t))
	root := t.TempDir()
	dpkg := func(args ...string) string {
		t.Helper()
		// The scripts run outside, since there is no shell in an empty root.
		return mustRun(t, append([]string{"dpkg", "--root=" + root, "--force-script-chrootless"}, args...)...)
	}
	for _, dir := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "usr/lib/cni", "var/lib/cni/underlay"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	reference := filepath.Join(root, "usr/lib/cni/macvlan")
	if err := os.WriteFile(reference, []byte(foreign), 0o755); err != nil {
		t.Fatal(err)
	}
	dpkg("--install", deb)
	if text, err := os.ReadFile(reference); err != nil || string(text) != foreign {
		t.Errorf("somebody else's macvlan: %.40q, %v", text, err)
	}
	unit, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system/underlayd.service"))
	if err != nil || !strings.HasPrefix(string(unit), "[Unit]\n") || !strings.Contains(string(unit), "\nExecStart=/usr/sbin/underlayd\n") {
		t.Errorf("the unit is %v\n%s", err, unit)
	}
	if wants, _ := filepath.Glob(filepath.Join(root, "etc/systemd/system/*/underlayd.service")); len(wants) > 0 {
		t.Errorf("the agent is started unasked: %v", wants)
	}
	dpkg("--verify", "underlay")

	attachWith(t, filepath.Join(root, "usr/lib/cni"), filepath.Join(root, "usr/share/doc/underlay/examples"))

	dpkg("--install", deb) // as an upgrade does
	dpkg("--remove", "underlay")
	if said := dpkg("--purge", "underlay"); !strings.Contains(said, "left "+root+"/var/lib/cni/underlay") {
		t.Errorf("purge says nothing of the ledger: %s", said)
	}
	left := map[string]bool{}
	err = filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !strings.HasPrefix(path, filepath.Join(root, "var/lib/dpkg")) && !strings.HasPrefix(path, filepath.Join(root, "var/log")) {
			if entries, _ := os.ReadDir(path); len(entries) == 0 {
				left[strings.TrimPrefix(path, root)] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]bool{"/usr/lib/cni/macvlan": true, "/var/lib/cni/underlay": true}, left); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
}

// attachWith has a container attached, checked and detached by installed plugins,
// for each kind of link that any kernel has.
func attachWith(t *testing.T, plugins, samples string) {
	t.Helper()
	h, err := lab.Test(t).AddHost(t.Context(), "h1", netip.MustParsePrefix("192.0.2.1/24"))
	if err != nil {
		t.Fatal(err)
	}
	for i, sample := range []string{"macvlan/bridge.conflist", "hostgw/bridge.conflist", "vxlan/segment.conflist"} {
		conf, err := os.ReadFile(filepath.Join(samples, sample))
		if err != nil {
			t.Fatal(err)
		}
		c, err := h.AddContainer(t.Context(), fmt.Sprint("c", i))
		if err != nil {
			t.Fatal(err)
		}
		cni := h.CNI(plugins)
		result, err := cni.Add(t.Context(), string(conf), c.Runtime())
		if err != nil {
			t.Errorf("ADD by %s: %v", sample, err)
			continue
		}
		if len(result.IPs) == 0 {
			t.Errorf("ADD by %s: no address", sample)
		}
		if err := cni.Check(t.Context(), string(conf), c.Runtime()); err != nil {
			t.Errorf("CHECK by %s: %v", sample, err)
		}
		if err := cni.Del(t.Context(), string(conf), c.Runtime()); err != nil {
			t.Errorf("DEL by %s: %v", sample, err)
		}
	}
}
