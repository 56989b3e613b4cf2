package documents

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// enough is what one command may take on a busy machine.
const enough = time.Minute

// machine is a host of the lab that is one in all that documents speak of: it
// has folders of its own in the places of the real ones, and sees its own
// processes alone. What commands leave in these folders goes with the lab.
type machine struct {
	*lab.Host
	t   *testing.T
	pid string // of its first process
	// env is what commands have besides the environment of the test.
	env map[string]string
}

// furnish makes the folders of a machine, and stays until its stdin is closed.
// Namespaces of other labs must not be kept alive by a private copy of their
// mounts, so these are slaves.
const furnish = `
for place in /etc /opt /usr/local/sbin /var/lib /var/backups /var/tmp; do
	mkdir -p "$place" "$0$place/upper" "$0$place/work"
	mount -t overlay machine -o "lowerdir=$place,upperdir=$0$place/upper,workdir=$0$place/work" "$place"
done
rm -rf /etc/cni /etc/underlay /var/lib/cni /var/lib/underlay
mkdir -p "$0/run"
mount --bind "$0/run" /run
hostname "$1"
echo ready
cat`

// systemctl stands in for systemd, which no machine of the lab has: it starts
// and stops underlayd, as Type=notify does it.
const systemctl = `#!/bin/sh -e
stop() { pkill -x underlayd || true; while pgrep -x underlayd >/dev/null; do sleep 0.1; done; }
start() {
	mkdir -p /run/underlay
	if ! pgrep -x underlayd >/dev/null; then
		setsid underlayd >>/run/underlayd.log 2>&1 </dev/null &
	fi
	for _ in $(seq 300); do
		if curl -sf --unix-socket /run/underlay/api.sock http://underlayd/readyz >/dev/null 2>&1; then exit 0; fi
		sleep 0.1
	done
	tail -n 20 /run/underlayd.log >&2
	exit 1
}
case "$*" in
daemon-reload) ;;
"start underlayd" | "enable --now underlayd") start ;;
"stop underlayd") stop ;;
"restart underlayd") stop; start ;;
*) echo "systemctl $*: this machine has no such service" >&2; exit 1 ;;
esac
`

// newMachine makes a machine of a host; with programs it has ours installed,
// and cnitool.
func newMachine(t *testing.T, h *lab.Host, programs bool) *machine {
	t.Helper()
	dir := filepath.Join(filepath.Dir(h.DataDir), "machine")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m := &machine{Host: h, t: t, env: map[string]string{"CNI_PATH": "/opt/cni/bin", "BIN": ours}}
	cmd := exec.Command("unshare", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child",
		"--propagation", "slave", "sh", "-ec", furnish, dir, h.Name)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	stay, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	told, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stay.Close()
		_, _ = io.Copy(io.Discard, told)
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(told).ReadString('\n'); line != "ready\n" {
		t.Fatalf("make a machine of %s: %q, %v\n%s", h.Name, line, err, complaint.String())
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m.pid = strings.TrimSpace(string(children))
	m.do("cat >/usr/local/sbin/systemctl <<'EOF'\n" + systemctl + "EOF\nchmod +x /usr/local/sbin/systemctl\ncp " + ours + "/cnitool /usr/local/sbin")
	if programs {
		m.do("mkdir -p /opt/cni/bin /etc/cni/net.d /etc/underlay\ncp " + ours + "/* /opt/cni/bin\ncp " + ours + "/underlayctl " + ours + "/underlayd /usr/local/sbin")
	}
	return m
}

// run runs a script as root of the machine, in the folder of the repository, and
// returns what it printed, to stdout and stderr alike.
func (m *machine) run(script string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), enough)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "--target", m.pid, "--mount", "--pid", "--net", "--uts",
		"bash", "-euo", "pipefail", "-c", "cd "+root+"\n"+script)
	cmd.WaitDelay = time.Second // for what a command has left running
	cmd.Env = os.Environ()
	for _, key := range slices.Sorted(maps.Keys(m.env)) {
		cmd.Env = append(cmd.Env, key+"="+m.env[key])
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// do runs a script that has to succeed.
func (m *machine) do(script string) string {
	m.t.Helper()
	out, err := m.run(script)
	if err != nil {
		m.t.Fatalf("on %s: %v\n%s\nprinted:\n%s", m.Name, err, script, out)
	}
	return strings.TrimSpace(out)
}
