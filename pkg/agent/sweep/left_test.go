package sweep

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
)

// pin gives a namespace a name, as runtimes do, and returns the record of an
// attachment to it.
func pin(t *testing.T, n *netns.NS) ipam.AttachmentRecord {
	t.Helper()
	name := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", n.Fd()), name, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(name, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	dev, ino := n.ID()
	return ipam.AttachmentRecord{Attachment: ipam.Attachment{Network: "lan", ContainerID: "c1", IfName: "eth0"}, Netns: ipam.Netns{Path: name, Dev: dev, Inode: ino}}
}

func TestLeft(t *testing.T) {
	empty, linked, busy := netnstest.New(t), netnstest.New(t), netnstest.New(t)
	netnstest.Batch(t, linked, "ip", "link add eth0 type veth peer name peer\n")
	sleep := exec.Command("sleep", "1h")
	if err := busy.Do(sleep.Start); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = sleep.Process.Kill()
		_ = sleep.Wait()
	}()
	gone := pin(t, empty)
	gone.Netns.Inode = 1
	moved := pin(t, linked)
	moved.Netns.Path = "/nowhere"
	got, err := lookAt([]ipam.AttachmentRecord{pin(t, empty), pin(t, linked), pin(t, busy), gone, moved})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Left{LeftNothing, LeftLink, LeftProcess, LeftUnseen, LeftLink}, got); diff != "" {
		t.Errorf("empty, with a link, with a process, gone, by another name (-want +got):\n%s", diff)
	}
}
