package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
)

// netnsDir is where iproute2 keeps named network namespaces.
const netnsDir = "/run/netns"

// Namespace is a named network namespace.
type Namespace struct {
	ID   string // the name that ip netns knows
	Path string // the file that holds it
}

// addNamespace leaves the mount to ip netns, which makes /run/netns a shared
// mount first: names made without that cannot be deleted after it.
func addNamespace(ctx context.Context, id string) (*Namespace, error) {
	if _, err := run(ctx, "", "ip", "netns", "add", id); err != nil {
		return nil, err
	}
	return &Namespace{ID: id, Path: filepath.Join(netnsDir, id)}, nil
}

func deleteNamespace(ctx context.Context, id string) error {
	_, err := run(ctx, "", "ip", "netns", "delete", id)
	return err
}

// Do runs f on a thread that is in the namespace; processes that f starts are
// in it too. As f runs in a goroutine of its own, it must not end a test.
func (n *Namespace) Do(f func() error) error {
	return ns.WithNetNSPath(n.Path, func(ns.NetNS) error { return f() })
}

// Exec runs a program in the namespace and returns what it printed. The error
// of one that failed carries what it complained of.
func (n *Namespace) Exec(ctx context.Context, argv ...string) (stdout string, err error) {
	err = n.Do(func() error {
		stdout, err = run(ctx, "", argv...)
		return err
	})
	return stdout, err
}

// ip runs lines of iproute2's batch language in the namespace, up to the first
// that fails.
func (n *Namespace) ip(ctx context.Context, lines ...string) error {
	_, err := run(ctx, strings.Join(lines, "\n"), "ip", "-n", n.ID, "-batch", "-")
	return err
}

// Ping says whether addr answers an echo request from the namespace within
// wait, which is rounded up to seconds. It asks five times a second and
// returns at the first answer. An address that cannot even be asked, for want
// of a route, is an error.
func (n *Namespace) Ping(ctx context.Context, addr netip.Addr, wait time.Duration) (bool, error) {
	deadline := time.Now().Add(wait)
	for {
		seconds := max(1, int(math.Ceil(time.Until(deadline).Seconds())))
		_, err := n.Exec(ctx, "ping", "-n", "-q", "-c", "1", "-i", "0.2", "-w", strconv.Itoa(seconds), addr.String())
		var exit *exec.ExitError
		unanswered := errors.As(err, &exit) && exit.ExitCode() == 1 // 2 is any other trouble
		if !unanswered {
			return err == nil, err
		}
		// ping also gives up early, when a look-up of the neighbour fails that
		// may have begun long before.
		if !time.Now().Before(deadline) {
			return false, nil
		}
	}
}

// Link is an interface as iproute2 shows it.
type Link struct {
	Name  string
	Kind  string // "macvlan", "veth"...; empty for lo
	MAC   string
	MTU   int
	Up    bool // administratively
	Addrs []netip.Prefix
}

// Links returns the namespace's interfaces, lo included, in kernel order.
func (n *Namespace) Links(ctx context.Context) ([]Link, error) {
	out, err := run(ctx, "", "ip", "-n", n.ID, "-details", "-json", "addr", "show")
	if err != nil {
		return nil, err
	}
	var shown []struct {
		Name  string   `json:"ifname"`
		MAC   string   `json:"address"`
		MTU   int      `json:"mtu"`
		Flags []string `json:"flags"`
		Info  struct {
			Kind string `json:"info_kind"`
		} `json:"linkinfo"`
		Addrs []struct {
			Local netip.Addr `json:"local"`
			Bits  int        `json:"prefixlen"`
		} `json:"addr_info"`
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		return nil, fmt.Errorf("read the links of %q: %w", n.ID, err)
	}
	links := make([]Link, len(shown))
	for i, s := range shown {
		links[i] = Link{Name: s.Name, Kind: s.Info.Kind, MAC: s.MAC, MTU: s.MTU, Up: slices.Contains(s.Flags, "UP")}
		for _, a := range s.Addrs {
			links[i].Addrs = append(links[i].Addrs, netip.PrefixFrom(a.Local, a.Bits))
		}
	}
	return links, nil
}

// Link returns the named interface; ok is false if there is none.
func (n *Namespace) Link(ctx context.Context, name string) (l Link, ok bool, err error) {
	links, err := n.Links(ctx)
	i := slices.IndexFunc(links, func(l Link) bool { return l.Name == name })
	if i < 0 {
		return Link{}, false, err
	}
	return links[i], true, nil
}

// run runs a program where the calling thread is.
func run(ctx context.Context, stdin string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		what := strings.TrimSpace(strings.Join(argv, " ") + "\n" + stdin)
		return stdout.String(), fmt.Errorf("%s: %w: %s", what, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
