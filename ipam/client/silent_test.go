package client

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client/wire"
)

// TestUnreadIsNotUndone: an ADD that an agent has not read leaves no order to
// undo it, and one that it has read does.
func TestUnreadIsNotUndone(t *testing.T) {
	t.Parallel()
	for _, reads := range []bool{false, true} {
		dir := t.TempDir()
		c := New(filepath.Join(dir, "data"), filepath.Join(dir, "run"))
		for _, d := range []string{c.o.DataDir, c.o.RunDir} {
			if err := os.Mkdir(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(c.o.RunDir, wire.SocketName), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if reads {
			go func() {
				if s, err := l.AcceptUnix(); err == nil {
					defer s.Close()
					_, _ = s.Read(make([]byte, wire.MaxRequest))
					time.Sleep(time.Minute)
				}
			}()
		}
		ctx, cancel := context.WithTimeout(t.Context(), unreadPatience+2*time.Second)
		defer cancel()
		req := ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "lan", ContainerID: "c", IfName: "eth0"}, Cluster: "a"}
		if _, err := c.Allocate(ctx, req, nil); !errors.Is(err, errSilent) || errors.Is(err, errUnread) == reads {
			t.Errorf("read %v: %v", reads, err)
		}
		orders, err := filepath.Glob(filepath.Join(c.o.DataDir, "released.d", "*"))
		if err != nil || len(orders) > 0 != reads {
			t.Errorf("read %v: %q, %v", reads, orders, err)
		}
	}
}
