package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tailscale/hujson"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// agent is an underlayd on a host.
type agent struct {
	t    *testing.T
	h    *lab.Host
	cmd  *exec.Cmd
	log  *bytes.Buffer // to be read when it has ended
	told *net.UnixConn // what it tells systemd
	once sync.Once
	err  error
	took time.Duration // from its start until it was ready
}

// launch starts an agent out of bin; env is added to its environment.
func launch(t *testing.T, h *lab.Host, bin string, env ...string) *agent {
	t.Helper()
	dir := t.TempDir()
	conf, err := json.Marshal(keys{"nodeName": h.Name, "dataDir": h.DataDir, "runDir": h.RunDir})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "underlayd.json")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, h: h, log: new(bytes.Buffer)}
	// systemd's end; an abstract name, since a path may be too long.
	a.told, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "@" + dir, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	a.cmd = exec.Command(filepath.Join(bin, "underlayd"), "--config", file)
	a.cmd.Env = append(append(os.Environ(), "NOTIFY_SOCKET=@"+dir), env...)
	a.cmd.Stderr = a.log
	// Abstract names belong to the network namespace, so it runs in the test's;
	// what it looks at of the network is the processes of the machine.
	began := time.Now()
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.end(syscall.SIGKILL); a.told.Close() })
	_ = a.told.SetReadDeadline(time.Now().Add(time.Minute))
	told := make([]byte, 64)
	n, err := a.told.Read(told)
	if err != nil || string(told[:n]) != "READY=1" {
		a.end(syscall.SIGKILL)
		t.Fatalf("the agent told %q, %v\n%s", told[:n], err, a.log)
	}
	a.took = time.Since(began)
	return a
}

// end sends a signal and waits for the end of the process.
func (a *agent) end(s syscall.Signal) error {
	a.once.Do(func() {
		_ = a.cmd.Process.Signal(s)
		a.err = a.cmd.Wait()
	})
	return a.err
}

// stop is how systemd stops it.
func (a *agent) stop() {
	a.t.Helper()
	if err := a.end(syscall.SIGTERM); err != nil {
		a.t.Errorf("the agent ended with %v\n%s", err, a.log)
	}
}

// ctl runs underlayctl on the host's ledger.
func ctl(t *testing.T, h *lab.Host, args ...string) string {
	t.Helper()
	return mustDo(t, h.Namespace, append([]string{filepath.Join(ours, "underlayctl"), "--data-dir", h.DataDir, "--run-dir", h.RunDir}, args...)...)
}

// TestAgent: what plugins, people and programs do with an agent, and that it
// comes to the same as without.
func TestAgent(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	first := attach(t, h, "c1", lan(t, h, keys{"hostAccess": true})) // before the agent
	a := launch(t, h, ours)
	second := attach(t, h, "c2", lan(t, h, keys{"hostAccess": true}))
	reaches(t, second.station, first.station)
	for _, x := range []*attachment{first, second} {
		wantOK(t, "CHECK", x.cni.Check(t.Context(), x.conf, x.rt))
		x.add() // again
	}
	wantOK(t, "STATUS", first.cni.Status(t.Context(), first.conf))

	c := api.NewClient(h.RunDir)
	defer c.Close()
	recs, err := c.Addresses(t.Context(), api.AddressFilter{Network: "lan", State: ipam.Held})
	if err != nil || len(recs) != 4 {
		t.Errorf("addresses: %+v, %v", recs, err)
	}
	if r, err := c.Ready(t.Context()); err != nil || !r.Ready {
		t.Errorf("ready: %+v, %v", r, err)
	}
	// All that people can ask for says the same while the agent runs and after.
	questions := [][]string{{"address", "list"}, {"attachment", "list"}, {"pool", "list"}, {"pool", "show", "lan"},
		{"attachment", "show", second.rt.ContainerID}, {"address", "show", second.addrs[0].String()}, {"ledger", "check"}}
	ask := func() (answers []string) {
		for _, q := range questions {
			answers = append(answers, ctl(t, h, append(q, "-o", "json")...))
		}
		return answers
	}
	with := ask()
	a.stop()
	if diff := cmp.Diff(ask(), with); diff != "" {
		t.Errorf("underlayctl (-without the agent +with it):\n%s", diff)
	}
	if _, err := c.Node(t.Context()); !errors.Is(err, api.ErrNoAgent) {
		t.Errorf("after it has stopped: %v", err)
	}

	a = launch(t, h, ours)
	first.del()
	second.del()
	if out := ctl(t, h, "address", "release", first.addrs[0].String()); !strings.Contains(out, first.addrs[0].String()) {
		t.Errorf("release: %s", out)
	}
	wantOK(t, "GC", first.cni.GC(t.Context(), first.conf))
	a.stop()
	wantNothingHeld(t, h)
	if !strings.Contains(a.log.String(), "as an operator asked") {
		t.Errorf("the release went past the agent:\n%s", a.log)
	}
}

// TestAgentDies between the commit and the answer: the plugin asks again, of
// the ledger itself, and has the addresses that were its own already.
func TestAgentDies(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"ledger.commit.begin", "ledger.commit.durable", "ledger.commit.marked"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			attach(t, h, "first", lan(t, h, nil)).del() // makes the ledger
			a := launch(t, h, faulty(t), "UNDERLAY_FAULT="+point)
			c1 := attach(t, h, "c1", lan(t, h, nil))
			if err := a.end(syscall.SIGCONT); err == nil {
				t.Error("the agent is alive: this proves nothing")
			}
			if held := readBooks(t, h).held(); len(held) != 1 || len(held[c1.rt.ContainerID]) != 2 {
				t.Errorf("held: %v, want the two addresses of c1", held)
			}
			c1.del()
			wantNothingHeld(t, h)
		})
	}
}

// TestAgentHangs: DEL goes on at once, ADD says what is wrong and leaves
// nothing, and when the agent goes on it knows what has happened.
func TestAgentHangs(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	a := launch(t, h, ours)
	c1 := attach(t, h, "c1", lan(t, h, nil))
	c2, rt2 := container(t, h, "c2")
	if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	began := time.Now()
	// One of them would wait for 20 s if the agent had read what it is asked.
	soon := func(what string) {
		if took := time.Since(began); took > 12*time.Second {
			t.Errorf("%s took %v", what, took)
		}
	}
	wg.Go(func() {
		_, err := h.CNI(ours).Add(t.Context(), c1.conf, rt2)
		wantError(t, err, codeTryAgain, "the agent does not answer", "is it stopped?", "underlayd")
		soon("ADD")
	})
	wg.Go(func() {
		c1.del()
		soon("DEL")
	})
	wg.Wait()
	wantNoLink(t, c2)
	if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c3 := attach(t, h, "c3", lan(t, h, nil))
	a.stop()
	if held := readBooks(t, h).held(); len(held) != 1 || len(held[c3.rt.ContainerID]) != 2 {
		t.Errorf("held: %v, want the two addresses of c3", held)
	}
}

// TestSecondAgent: one at a time.
func TestSecondAgent(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	a := launch(t, h, ours)
	file := filepath.Join(t.TempDir(), "underlayd.json")
	for _, dirs := range []keys{{"dataDir": h.DataDir, "runDir": h.RunDir + "-other"}, {"dataDir": h.DataDir + "-other", "runDir": h.RunDir}} {
		conf, _ := json.Marshal(dirs)
		if err := os.WriteFile(file, conf, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), filepath.Join(ours, "underlayd"), "--config", file).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "another underlayd is running") {
			t.Errorf("%v: %v\n%s", dirs, err, out)
		}
	}
	attach(t, h, "c1", lan(t, h, nil)) // the first goes on
	a.stop()
}

// TestAgentRestarts in no time with many records. The limit is generous; what
// it took is in the log.
func TestAgentRestarts(t *testing.T) {
	const records, limit = 10_000, 5 * time.Second
	h := oneHost(t)
	fillLedger(t, h, records)
	for range 3 {
		a := launch(t, h, ours)
		t.Logf("ready after %v with %d records", a.took, records)
		if a.took > limit {
			t.Errorf("it took %v", a.took)
		}
		a.stop()
	}
}

// fillLedger has n attachments hold an address each.
func fillLedger(t *testing.T, h *lab.Host, n int) {
	t.Helper()
	cfg, err := ipam.Load([]byte(`{"type":"underlay","ranges":[[{"subnet":"10.0.0.0/16"}]]}`), "filler", nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), ledger.Options{DataDir: h.DataDir, RunDir: h.RunDir})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	next := make(chan int)
	var wg sync.WaitGroup
	for range 128 { // they share commits
		wg.Go(func() {
			for i := range next {
				id := netip.AddrFrom4([4]byte{0, 0, byte(i >> 8), byte(i)}).String()
				att := ipam.Attachment{Network: "filler", ContainerID: id, IfName: "eth0"}
				if _, err := l.Allocate(ipam.AllocateRequest{Attachment: att, Pool: cfg.Pool}, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// TestAgentSamples: the reference configuration is one, and the unit starts
// what is installed.
func TestAgentSamples(t *testing.T) {
	root, err := binaries.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "conf/reference/underlayd.jsonc"))
	if err != nil {
		t.Fatal(err)
	}
	if text, err = hujson.Standardize(text); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "underlayd.json")
	for name, content := range map[string]string{
		"underlayd.json": strings.ReplaceAll(string(text), "/etc/underlay/", ""),
		"ca.pem":         "", "n1.pem": "", "n1.key": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), filepath.Join(ours, "underlayd"), "--check", "--config", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	unit, err := os.ReadFile(filepath.Join(root, "conf/systemd/underlayd.service"))
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(unit), "\n")
	if !slices.Contains(lines, "ExecStart=/usr/local/sbin/underlayd") || !strings.Contains(string(makefile), "SBINDIR ?= /usr/local/sbin") {
		t.Error("the unit does not start what `make install` installs")
	}
}
