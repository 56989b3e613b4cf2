package e2e_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam"
)

// ctr runs a container on the network and removes it.
func TestContainerd(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := newContainerd(t, b.h1)
	daemon := c.daemon.Process.Pid
	mounts := c.mountsOf(daemon)
	// The container reaches another host, and its own through the sibling.
	pings := []string{"exec 2>&1"}
	for _, s := range []station{hostStation(t, b.h2), hostStation(t, b.h1)} {
		for _, addr := range s.addrs {
			pings = append(pings, fmt.Sprintf("ping -c 1 -w %.0f %s", soon.Seconds(), addr))
		}
	}
	c.ctr("run", "--rm", "--cni", "--rootfs", c.dir+"/rootfs", "c1", "/bin/sh", "-c", strings.Join(pings, " && "))

	c.wantNothing()
	c.wantProcesses(daemon)
	if diff := cmp.Diff(mounts, c.mountsOf(daemon)); diff != "" {
		t.Errorf("mounts changed (-before +after):\n%s", diff)
	}
	// The addresses rest, so it was this container that had them.
	var rest []ipam.Attachment
	for _, r := range readBooks(t, b.h1).Addresses {
		if r.State == ipam.Cooling && r.Runtime == "ctr" {
			rest = append(rest, r.Attachment)
		}
	}
	att := ipam.Attachment{Network: "lan", ContainerID: c.id("c1"), IfName: "eth0"}
	if diff := cmp.Diff([]ipam.Attachment{att, att}, rest); diff != "" {
		t.Errorf("holders of the addresses that rest (-want +got):\n%s", diff)
	}
}

// containerd and its shims are killed, some with their containers. A DEL
// afterwards, with whatever the runtime still knows, leaves nothing behind.
func TestContainerdCrash(t *testing.T) {
	t.Parallel()
	victims := []struct {
		name string
		dies bool // with its shim
		told bool // the DEL names the namespace, dead or alive
	}{
		{name: "c1", dies: true, told: true},
		{name: "c2", dies: true},
		{name: "c3", told: true},
		{name: "c4"},
	}
	b := newBed(t)
	c := newContainerd(t, b.h1)
	pids := map[string]int{}
	var shims, dead, living []int
	for _, v := range victims {
		pids[v.name] = c.run(v.name)
		c.reaches(v.name, hostStation(t, b.h2))
		shims = append(shims, c.shim(pids[v.name]))
		if v.dies {
			dead = append(dead, pids[v.name])
		} else {
			living = append(living, pids[v.name])
		}
	}
	held := readBooks(t, b.h1).held()
	for _, v := range victims {
		if n := len(held[c.id(v.name)]); n != 2 {
			t.Fatalf("%s holds %d addresses after ADD, want 2: %v", v.name, n, held)
		}
	}
	if macs := children(t, b.h1); len(macs) != len(victims)+1 {
		t.Fatalf("macvlan links on %s: %v, want one for each container and the sibling", lab.Parent, macs)
	}

	c.kill(c.daemon.Process.Pid)
	c.kill(shims...)
	c.kill(dead...)
	c.wantProcesses(living...)
	if diff := cmp.Diff(held, readBooks(t, b.h1).held()); diff != "" {
		t.Fatalf("held addresses changed without a DEL (-before +after):\n%s", diff)
	}

	want := maps.Clone(held)
	for _, v := range victims {
		rt := &libcni.RuntimeConf{ContainerID: c.id(v.name), IfName: "eth0"}
		path := fmt.Sprintf("/proc/%d/ns/net", pids[v.name])
		if v.told {
			rt.NetNS = path
		}
		delete(want, rt.ContainerID)
		for _, nth := range []string{"first", "second"} {
			wantOK(t, nth+" DEL of "+v.name, b.h1.CNI(ours).Del(t.Context(), c.conf, rt))
			if diff := cmp.Diff(want, readBooks(t, b.h1).held()); diff != "" {
				t.Errorf("held after %s DEL of %s (-want +got):\n%s", nth, v.name, diff)
			}
			if v.dies {
				continue
			}
			n := &lab.Namespace{ID: v.name, Path: path}
			if links := mustDo(t, n, "ip", "-oneline", "link", "show", "type", "macvlan"); links != "" {
				t.Errorf("left in the living namespace of %s after %s DEL: %s", v.name, nth, links)
			}
		}
	}
	c.wantNothing()

	// containerd starts again, clears up on its own side, and the container
	// that comes back has the addresses it had.
	c.start()
	c.wantProcesses(c.daemon.Process.Pid)
	for _, v := range victims {
		c.ctr("containers", "rm", v.name)
	}
	c.run("c1")
	c.reaches("c1", hostStation(t, b.h2))
	if diff := cmp.Diff(map[string][]string{c.id("c1"): held[c.id("c1")]}, readBooks(t, b.h1).held()); diff != "" {
		t.Errorf("held after the restart (-want +got):\n%s", diff)
	}
}

// containerd is Debian's, with runc, on a host of the lab. Its folders are in
// the host's, which lab.Remove removes.
type containerd struct {
	t    *testing.T
	host *lab.Host
	// dir has what the host has for itself of the file system: etc, opt, run
	// and var/lib.
	dir    string
	conf   string // of the network
	daemon *exec.Cmd
}

// newContainerd starts a containerd whose containers go to the network lan.
func newContainerd(t *testing.T, h *lab.Host) *containerd {
	t.Helper()
	for _, program := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v; make test installs Debian's containerd, runc and busybox-static", err)
		}
	}
	c := &containerd{t: t, host: h, dir: filepath.Dir(h.DataDir)}
	c.conf = placed(t, h, keys{"cniVersion": "1.0.0", "hostAccess": true})
	// ctr's libcni and the lab's remember in one place, as a runtime's own does.
	const furnish = `cd "$0"
		mkdir -p cache etc/cni/net.d etc/containerd opt/cni run var/lib rootfs/bin
		ln -s "$1" opt/cni/bin
		ln -s "$0/cache" var/lib/cni
		cp "$(command -v busybox)" rootfs/bin/busybox
		for program in sh ping sleep; do ln -s busybox rootfs/bin/$program; done
		printf '%s' "$2" >etc/cni/net.d/lan.conf
		printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[debug]\nlevel = "warn"\n' >etc/containerd/config.toml`
	mustDo(t, h.Namespace, "sh", "-ec", furnish, c.dir, ours, c.conf)
	t.Cleanup(c.end)
	c.start()
	return c
}

// argv is a command in a mount namespace where the host's folders cover those
// of the machine: ctr has no flag for /etc/cni/net.d, /opt/cni/bin and
// /var/lib/cni, nor a shim for /run/containerd. A private namespace would keep
// the network namespaces of other labs alive, that iproute2 unmounts; a slave
// lets go of them.
func (c *containerd) argv(command ...string) []string {
	const script = `for d in run etc opt var/lib; do mount --bind "$0/$d" "/$d"; done; exec "$@"`
	return append([]string{"unshare", "--mount", "--propagation", "slave", "sh", "-ec", script, c.dir}, command...)
}

// start starts the daemon and waits until it answers.
func (c *containerd) start() {
	c.t.Helper()
	log, err := os.OpenFile(filepath.Join(c.dir, "containerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	argv := c.argv("containerd")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := c.host.Do(cmd.Start); err != nil {
		c.t.Fatal(err)
	}
	c.daemon = cmd
	eventually(c.t, "containerd answers", func() bool {
		_, err := c.host.Exec(c.t.Context(), c.argv("ctr", "version")...)
		return err == nil
	})
}

// end removes what lives outside the lab's namespaces and folder.
func (c *containerd) end() {
	if c.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(c.dir, "containerd.log"))
		c.t.Logf("containerd said:\n%s", log)
	}
	eventually(c.t, "no process is left", func() bool {
		pids := c.processes()
		c.kill(pids...)
		return len(pids) == 0
	})
	eventually(c.t, "no cgroup is left", func() bool {
		cgroups := c.cgroups()
		for _, dir := range slices.Backward(cgroups) {
			os.Remove(dir)
		}
		return len(cgroups) == 0
	})
	if mounts := c.mountsOf(os.Getpid()); len(mounts) > 0 {
		c.t.Errorf("mounts left: %v", mounts)
	}
}

// namespace is containerd's: the lab's name, since it is that of a cgroup too.
func (c *containerd) namespace() string { return strings.TrimSuffix(c.host.ID, "-"+c.host.Name) }

// id is the container ID that ctr tells plugins.
func (c *containerd) id(name string) string { return c.namespace() + "-" + name }

// ctr returns what ctr printed.
func (c *containerd) ctr(args ...string) string {
	c.t.Helper()
	argv := append([]string{"ctr", "--namespace", c.namespace()}, args...)
	return mustDo(c.t, c.host.Namespace, c.argv(argv...)...)
}

// run runs a container that does nothing, and returns the pid of its init.
// Started like this ctr does not wait for its end, so it sends no DEL.
func (c *containerd) run(name string) int {
	c.t.Helper()
	file := filepath.Join(c.dir, name+".pid")
	c.ctr("run", "--detach", "--null-io", "--cni", "--pid-file", file, "--rootfs", c.dir+"/rootfs", name, "/bin/sleep", "1h")
	text, err := os.ReadFile(file)
	pid, notNumber := strconv.Atoi(string(text))
	if err := errors.Join(err, notNumber); err != nil {
		c.t.Fatal(err)
	}
	return pid
}

// reaches: the container's ping is answered. ctr fails as the program does.
func (c *containerd) reaches(name string, to station) {
	c.t.Helper()
	for _, addr := range to.addrs {
		c.ctr("tasks", "exec", "--exec-id", "ping", name, "/bin/ping", "-c", "1", "-w", fmt.Sprint(soon.Seconds()), addr.String())
	}
}

// shim is the pid of the shim of the container with that init.
func (c *containerd) shim(init int) int {
	c.t.Helper()
	var parent int
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", init))
	for line := range strings.Lines(string(status)) {
		fmt.Sscanf(line, "PPid: %d", &parent)
	}
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", parent))
	if err != nil || filepath.Base(exe) != "containerd-shim-runc-v2" {
		c.t.Fatalf("parent of the container's init %d is %d (%s), error %v; want a shim", init, parent, exe, err)
	}
	return parent
}

// kill kills processes of this test, as a crash does, and nobody else's.
func (c *containerd) kill(pids ...int) {
	c.t.Helper()
	mine := c.processes()
	for _, pid := range pids {
		if !slices.Contains(mine, pid) {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			c.t.Errorf("kill %d: %v", pid, err)
		}
		if pid == c.daemon.Process.Pid {
			c.daemon.Wait()
		}
	}
}

// processes are those that see the host's folders as their own or have their
// root there: containerd, shims, ctr and containers.
func (c *containerd) processes() []int {
	c.t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		c.t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && len(c.mountsOf(pid)) > 0 {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

func (c *containerd) wantProcesses(want ...int) {
	c.t.Helper()
	slices.Sort(want)
	eventually(c.t, fmt.Sprintf("%v are the processes left", want), func() bool { return slices.Equal(c.processes(), want) })
}

// mountsOf are the mounts of the host's folders that a process sees; none if it
// has ended. The lines have paths from the root of a file system, which may be
// below /, so that only their end is sure.
func (c *containerd) mountsOf(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil
	}
	mark := filepath.Join(filepath.Base(filepath.Dir(c.dir)), filepath.Base(c.dir)) + "/"
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, mark) {
			lines = append(lines, line)
		}
	}
	return lines
}

// cgroups are those of the containers, in either version of the hierarchy, a
// parent before what is in it. runc removes a container's own and leaves that
// of the namespace.
func (c *containerd) cgroups() []string {
	var all []string
	two, _ := filepath.Glob("/sys/fs/cgroup/" + c.namespace())
	one, _ := filepath.Glob("/sys/fs/cgroup/*/" + c.namespace())
	for _, root := range append(two, one...) {
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
	}
	return all
}

// wantNothing: there is no macvlan link on the host's parent or in any
// namespace of the lab, and nothing is held.
func (c *containerd) wantNothing() {
	c.t.Helper()
	wantNothingHeld(c.t, c.host)
	paths, err := filepath.Glob(strings.TrimSuffix(c.host.Path, c.host.Name) + "*")
	if err != nil || len(paths) < 2 {
		c.t.Fatalf("namespaces of the lab: %v, error %v", paths, err)
	}
	for _, path := range paths {
		n := &lab.Namespace{ID: filepath.Base(path), Path: path}
		if links := mustDo(c.t, n, "ip", "-oneline", "link", "show", "type", "macvlan"); links != "" {
			c.t.Errorf("left in %s: %s", n.ID, links)
		}
	}
	// The kernel takes its time over the namespace of the dead.
	eventually(c.t, "no macvlan link is on the parent", func() bool { return len(children(c.t, c.host)) == 0 })
}

// children are the MACs of the macvlan links on the host's parent, in whatever
// namespace they are: each has the parent receive for it.
func children(t *testing.T, h *lab.Host) []string {
	t.Helper()
	var macs []string
	for line := range strings.Lines(mustDo(t, h.Namespace, "bridge", "fdb", "show", "dev", lab.Parent)) {
		first, _, _ := strings.Cut(line, " ")
		mac, err := net.ParseMAC(first)
		if err != nil {
			t.Fatalf("bridge fdb show: %q: %v", line, err)
		}
		if mac[0]&1 == 0 { // the others are multicast groups
			macs = append(macs, first)
		}
	}
	return macs
}
