package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// as runs f with other credentials, which end with its thread. f has to make its
// system calls itself.
func as(uid, gid uintptr, more []uint32, f func() error) error {
	got := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock it
		var list unsafe.Pointer
		if len(more) > 0 {
			list = unsafe.Pointer(&more[0])
		}
		_, _, e1 := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(more)), uintptr(list), 0)
		_, _, e2 := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid)
		_, _, e3 := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid)
		for _, e := range []unix.Errno{e1, e2, e3} {
			if e != 0 {
				got <- fmt.Errorf("change credentials: %w", e)
				return
			}
		}
		got <- f()
	}()
	return <-got
}

// TestWhoMayCall: root and the group may, by whatever their group is theirs; whoever
// else can open the socket is told that he may not.
func TestWhoMayCall(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "ul")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const daemon, nobody = 1, 65534 // the same everywhere
	socket := filepath.Join(dir, SocketName)
	server, err := New(Config{Node: "n1", Socket: socket, DataDir: "/data", Ledger: &shelf{away: errors.New("away")}, Group: "daemon",
		Pending: func() []string { return nil }, Log: slogNowhere(), Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	<-server.Ready()
	var stat unix.Stat_t
	if err := unix.Stat(socket, &stat); err != nil || stat.Mode&0o777 != 0o660 || stat.Uid != 0 || stat.Gid != daemon {
		t.Errorf("%o, %d:%d, %v", stat.Mode, stat.Uid, stat.Gid, err)
	}
	many := make([]uint32, 100) // more than one look takes
	for i := range many {
		many[i] = uint32(1000 + i)
	}
	many[99] = daemon
	call := func(uid, gid uintptr, more []uint32) (code int, body string, err error) {
		var c net.Conn
		if err := as(uid, gid, more, func() (err error) { c, err = net.Dial("unix", socket); return err }); err != nil {
			return 0, "", err
		}
		defer c.Close()
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return 0, "", err
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		return r.StatusCode, string(text), err
	}
	for _, tt := range []struct {
		name     string
		uid, gid uintptr
		more     []uint32
		may      bool
	}{
		{"root", 0, 0, nil, true},
		{"group", nobody, daemon, nil, true},
		{"one of two groups", nobody, nobody, []uint32{2, daemon}, true},
		{"one of many groups", nobody, nobody, many, true},
		{"nobody", nobody, nobody, nil, false},
		{"group of root", nobody, 0, []uint32{0}, false},
	} {
		_, _, err := call(tt.uid, tt.gid, tt.more)
		if tt.may && err != nil || !tt.may && !errors.Is(err, unix.EACCES) {
			t.Errorf("%s, by the mode: %v", tt.name, err)
		}
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if code, _, err := call(nobody, nobody, []uint32{daemon}); code != http.StatusOK {
		t.Errorf("the group, on a socket for all: %d, %v", code, err)
	}
	for gid, more := range map[uintptr][]uint32{nobody: nil, 0: many[:99]} {
		code, body, err := call(nobody, gid, more)
		if err != nil || code != http.StatusForbidden || !strings.Contains(body, "only root and the group 1") || !strings.Contains(body, "api.group") {
			t.Errorf("a stranger of group %d, on a socket for all: %d %s, %v", gid, code, body, err)
		}
	}
}
