package nlsock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
)

// heard reads until an interface of that name is told of, and returns what came
// before.
func heard(t *testing.T, w *Watcher, until string) (before []string) {
	t.Helper()
	for {
		ended := false
		must(t, w.Read(func(m Message) {
			switch m.Type {
			case unix.RTM_NEWADDR:
				before = append(before, "address")
			case unix.RTM_NEWLINK:
				ended = ended || strings.Contains(string(m.Body), until+"\x00")
			}
		}))
		if ended {
			return before
		}
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	n := netnstest.New(t)
	c, err := Dial(n.Fd())
	must(t, err)
	defer c.Close()
	w, err := c.Watch(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR)
	must(t, err)
	all, err := Watch(n.Fd(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR)
	must(t, err)
	defer all.Close()

	add := func(i int) {
		t.Helper()
		verdicts, err := c.Batch(t.Context(), []*nl.NetlinkRequest{address(i, true)})
		must(t, errors.Join(append(verdicts, err)...))
	}
	add(1)
	ip(t, n, "addr add 192.0.2.1/32 dev lo\nlink add b1 type bridge")
	if got := heard(t, all, "b1"); len(got) != 2 {
		t.Errorf("heard %q, want both addresses", got)
	}
	if got := heard(t, w, "b1"); len(got) != 1 {
		t.Errorf("heard %q, want the address of another", got)
	}

	// More than fits.
	var many strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&many, "addr add 198.51.%d.%d/32 dev lo\n", 100+i/250, i%250)
	}
	ip(t, n, many.String())
	ctx, cancel := context.WithCancel(t.Context())
	overrun, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() { ended <- w.Listen(ctx, func(Message) {}, func() { overrun <- struct{}{} }) }()
	<-overrun
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) || !errors.Is(err, os.ErrClosed) {
		t.Errorf("ends with %v", err)
	}
	if _, err := Watch(-1, unix.NETLINK_ROUTE, 1<<20); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a group that there is not: %v", err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	n := netnstest.New(t)
	c, err := Dial(n.Fd())
	must(t, err)
	defer c.Close()
	names := NewNames(c)
	if _, err := names.Index("b1"); !errors.Is(err, ErrNoInterface) {
		t.Errorf("before it is there: %v", err)
	}
	ip(t, n, "link add b1 index 77 type bridge")
	if _, err := names.Index("b1"); !errors.Is(err, ErrNoInterface) {
		t.Errorf("asked again before Forget: %v", err)
	}
	names.Forget()
	index, err := names.Index("b1")
	must(t, err)
	name, err := names.Name(77)
	must(t, err)
	if index != 77 || name != "b1" {
		t.Errorf("got %d, %q", index, name)
	}
	ip(t, n, "link del b1")
	_, err = names.Index("b1")
	must(t, err)
	names.Forget()
	_, err = names.Index("b1")
	wantError(t, err, `look up interface "b1": no such interface`)
	_, err = names.Name(77)
	wantError(t, err, `look up interface 77: no such interface`)
	for _, odd := range []string{"", "a name that is too long for the kernel", "a/b"} {
		if _, err := names.Index(odd); !errors.Is(err, ErrNoInterface) {
			t.Errorf("%q: %v", odd, err)
		}
	}
	// What was asked for matters, found or not, also while all is read anew.
	names.Forget()
	for _, tt := range []struct {
		index int
		name  string
		want  bool
	}{{77, "other", true}, {5, "b1", true}, {5, "a/b", true}, {5, "b2", false}} {
		if got := names.Knows(tt.index, tt.name); got != tt.want {
			t.Errorf("knows %d, %q: %t", tt.index, tt.name, got)
		}
	}
	names.Forget()
	if names.Knows(77, "b1") {
		t.Error("knows what has been forgotten twice")
	}
	if _, err := names.Name(-1); !errors.Is(err, ErrNoInterface) {
		t.Errorf("index -1: %v", err)
	}
}
