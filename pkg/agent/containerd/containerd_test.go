package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// start starts Debian's containerd in folders of its own and returns its socket.
func start(t *testing.T) string {
	t.Helper()
	for _, program := range []string{"containerd", "ctr"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v; make test installs Debian's containerd", err)
		}
	}
	dir, err := os.MkdirTemp("", "ul") // the path of a socket has 108 octets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "containerd.sock")
	// Without what needs the kernel, or the network.
	conf := fmt.Sprintf(`version = 2
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt"]
[grpc]
address = "%[2]s"
`, dir, socket)
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("containerd", "--config", file)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("containerd said:\n%s", said)
		}
	})
	for end := time.Now().Add(20 * time.Second); exec.Command("ctr", "-a", socket, "version").Run() != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("containerd does not answer")
		}
	}
	return socket
}

func ctr(t *testing.T, socket string, args ...string) {
	t.Helper()
	out, err := exec.Command("ctr", append([]string{"-a", socket}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ctr %q: %v: %s", args, err, out)
	}
}

func TestKnown(t *testing.T) {
	socket := start(t)
	c := Client{Socket: socket}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if known, err := c.Known(ctx); err != nil || len(known) > 0 {
		t.Errorf("before there is anything: %v, %v", known, err)
	}
	rootfs := t.TempDir()
	ctr(t, socket, "containers", "create", "--rootfs", rootfs, "web", "/bin/sh")
	ctr(t, socket, "-n", "k8s.io", "containers", "create", "--rootfs", rootfs, "db", "/bin/sh")
	want := map[string]bool{"web": true, "default-web": true, "db": true, "k8s.io-db": true}
	known, err := c.Known(ctx)
	if diff := cmp.Diff(want, known); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	ctr(t, socket, "containers", "rm", "web")
	delete(want, "web")
	delete(want, "default-web")
	known, err = c.Known(ctx)
	if diff := cmp.Diff(want, known); diff != "" || err != nil {
		t.Errorf("afterwards %v (-want +got):\n%s", err, diff)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.Known(gone); err == nil {
		t.Error("an answer to nobody")
	}
}

// TestNobody: that containerd cannot be asked is no answer.
func TestNobody(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	known, err := Client{Socket: filepath.Join(t.TempDir(), "none.sock")}.Known(ctx)
	if err == nil || known != nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", known, err)
	}
}
